"""The linear layers of a general model as places where adapters add."""

from __future__ import annotations

from collections.abc import Iterator

from weighbridge.models.adapters.sites import AdapterSite, SitePart
from weighbridge.models.general.decoder import GeneralDecoder
from weighbridge.models.general.packed.linears import OwnLinear


def general_sites(decoder: GeneralDecoder) -> Iterator[AdapterSite]:
    """Yield every layer of ours; which of them adapters can add to, the model's description says."""
    for name, module in decoder.model.named_modules():
        if isinstance(module, OwnLinear):
            yield AdapterSite(
                (SitePart(name, 0, module.out_features),),
                module.linear,
                lambda linear, module=module: setattr(module, "linear", linear),  # type: ignore[misc]
            )
