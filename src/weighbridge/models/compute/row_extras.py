"""What is added to the linear layers of a decoder for some rows of a batch, as far as the decoder has to know of it."""

from __future__ import annotations

from typing import Protocol

from weighbridge.models.compute.kernels.api import Int32


class RowExtras(Protocol):
    @property
    def active(self) -> bool:
        """Whether something is added to a row of this batch: the layers must be called then, one after another."""
        ...

    def select(self, rows: Int32) -> None:
        """Go on with these rows of the batch alone."""
        ...
