"""The limits of a tenant as they are sent, written down and said to people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from weighbridge.errors import BadInput
from weighbridge.fleet.limits.periods import zone_of
from weighbridge.fleet.limits.tenant import TenantLimits

#: The largest limit that can be set.
_MOST = 10**15
#: What limits are called, and the unit of each for people.
UNITS = {
    "requests_per_minute": "requests a minute",
    "tokens_per_minute": "tokens a minute",
    "concurrent_tokens": "tokens at one time",
    "usd_per_day": "USD a day",
}


class LimitsAsked(Struct, frozen=True, forbid_unknown_fields=True):
    """The limits of a tenant; what is left out, or null, is no limit. `zone`: by whose days `usd_per_day` counts."""

    requests_per_minute: Annotated[int, Meta(gt=0, le=_MOST)] | None = None
    tokens_per_minute: Annotated[int, Meta(gt=0, le=_MOST)] | None = None
    concurrent_tokens: Annotated[int, Meta(gt=0, le=_MOST)] | None = None
    usd_per_day: Annotated[float, Meta(gt=0.0, le=float(_MOST))] | None = None
    zone: Annotated[str, Meta(min_length=1, max_length=100)] | None = None


def limits_of(value: LimitsAsked | Mapping[str, Any]) -> TenantLimits:
    """Limits as they are sent and written. Raises BadInput naming what is wrong."""
    try:
        asked = value if isinstance(value, LimitsAsked) else msgspec.convert(value, LimitsAsked)
    except msgspec.ValidationError as error:
        raise BadInput(f"limits: {error}", param="limits") from None
    if asked.zone is not None:
        zone_of(asked.zone)
        if asked.usd_per_day is None:
            raise BadInput("zone: is that of usd_per_day, which is missing", param="zone")
    return TenantLimits(**msgspec.structs.asdict(asked))


def written(limits: TenantLimits) -> dict[str, Any]:
    """Limits as `limits_of` reads them, without those that are none."""
    return {name: value for name, value in asdict(limits).items() if value is not None}


def in_words(limits: TenantLimits | None) -> str | None:
    if limits is None:
        return None
    said = [f"{getattr(limits, name):g} {unit}" for name, unit in UNITS.items() if getattr(limits, name)]
    if limits.zone is not None:
        said[-1] += f" in {limits.zone}"
    return ", ".join(said) or "no limits"
