"""What is asked about calibrations."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from weighbridge.server.decisions.calibration import FEWEST, MOST
from weighbridge.wire.protocols.decisions import Name
from weighbridge.wire.protocols.openai import Fraction


class CalibrationExample(Struct):
    """What was said of a label, and whether it was the right one."""

    probability: Fraction
    outcome: bool


class CalibrationRequest(Struct, kw_only=True):
    """What came true of the answers to the questions of one name."""

    name: Name
    examples: Annotated[list[CalibrationExample], Meta(min_length=FEWEST, max_length=MOST)]
    model: str | None = None
