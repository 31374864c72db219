"""A general model with its weights: put into their places by transformers, and then checked."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from weighbridge.errors import BadInput, said, some_of
from weighbridge.models.compute.finite import is_finite, not_finite
from weighbridge.models.general.description import Description
from weighbridge.models.general.given import with_weights
from weighbridge.models.general.packed.mxfp4 import WIDTHS
from weighbridge.models.general.packed.places import narrowed
from weighbridge.models.general.seam import NAME


def read_weights(path: Path, description: Description, dtype: torch.dtype) -> Any:
    """Return the model in `dtype`: tensors go from the mapped files to their places, one after another.

    Raises BadInput for files that are damaged or another model's.
    """
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        config, given = copy.deepcopy(description.config), description.given
        model_class = description.model_class
        if given.coded is not None:  # without its experts
            setattr(config, WIDTHS[config.model_type], 1)
        if given.placed is not None:
            model_class = narrowed(model_class, given.placed.shapes)
        model, found = with_weights(
            model_class,
            config,
            given,
            dtype=dtype,
            attn_implementation=NAME,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise BadInput(f"{path} cannot be read by transformers: {said(error)}") from error
    if description.given.coded is not None:
        found["missing_keys"] = [
            key for key in found.get("missing_keys") or () if ".experts." not in str(key)
        ]
    _check_found(path, found)
    for name, tensor in model.named_parameters():
        if not is_finite(tensor):
            raise not_finite(name, path)
    return model.eval()


def _check_found(path: Path, found: dict[str, Any]) -> None:
    """Raise BadInput for a checkpoint that is not the model's: transformers would fill gaps with random numbers."""
    missing = sorted(map(str, found.get("missing_keys") or ()))
    mismatched = sorted(str(one[0]) for one in found.get("mismatched_keys") or ())
    unexpected = sorted(map(str, found.get("unexpected_keys") or ()))
    if missing:
        raise BadInput(f"{path} has no tensor {some_of(missing)}: the checkpoint is incomplete")
    if mismatched:
        raise BadInput(f"{path} has tensors of other shapes than its configuration: {some_of(mismatched)}")
    if unexpected:
        raise BadInput(
            f"{path} has tensors that its configuration has no place for: {some_of(unexpected)}; without them the "
            "answers would be wrong"
        )
