"""What a structured answer must be, for drivers of clients that take pydantic's models."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class Parcel(BaseModel):
    """What a structured answer must be."""

    size: Literal["small", "large"]
    heavy: bool
