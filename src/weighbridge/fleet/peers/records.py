"""What gateways tell each other of replicas: who is there, who is to rest and who was removed. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import msgspec

from weighbridge.fleet.peers.registers import REMOVED_KEPT, SharedRecord

#: Characters of a replica's and a model's name.
LONGEST_NAME = 200


class Rest(StrEnum):
    """What is so of a replica by an operator's word."""

    HERE = "here"
    DRAINING = "draining"
    REMOVED = "removed"


Text = Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_NAME)]


class MemberRecord(SharedRecord, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What holds of one replica.

    `entry`: the replica as in weighbridge.yaml, where it was added at run time, and also once it was removed; None: it
    is the file's own, or (`is_secret`) it was added with a secret, which is not shared.
    """

    name: Text
    model: Text
    rest: Rest
    entry: dict[str, Any] | None = None
    is_secret: bool = False

    @property
    def is_a_files(self) -> bool:
        """Whether it is of a replica that some gateway's file names. Its removal holds for ever: without the record
        the file would bring it back."""
        return self.entry is None and not self.is_secret

    def is_past(self, now: float) -> bool:
        """Whether it says that an added replica was removed so long ago that nobody need know."""
        return self.rest is Rest.REMOVED and not self.is_a_files and self.at < now - REMOVED_KEPT

    def in_words(self) -> str:
        """What was done, for a sentence."""
        return {Rest.HERE: "added or undrained", Rest.DRAINING: "drained", Rest.REMOVED: "removed"}[self.rest]
