"""What `PrefixIndex` promises, block by block: one ordered dictionary per replica, each block counted on its own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from weighbridge.engine.memory.prefix import Digest


class _Replica:
    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.blocks: OrderedDict[Digest | int, int] = (
            OrderedDict()
        )  # a digest or number of an output -> blocks
        self.prompts: set[Digest] = set()  # last digests of the prompts that were sent and are held since
        self.answers: dict[Digest, int] = {}  # of these -> number of the output behind it
        self.outputs = 0

    def evict(self) -> None:
        while sum(self.blocks.values()) > self.capacity:
            key, _ = self.blocks.popitem(last=False)
            self.dropped(key)

    def dropped(self, key: Digest | int) -> None:
        if isinstance(key, bytes):
            self.prompts.discard(key)
            self.answers.pop(key, None)


class BlockIndex:
    """The same methods as `PrefixIndex`; every one takes time in proportion to the blocks."""

    def __init__(self) -> None:
        self.replicas: dict[str, _Replica] = {}

    def add_replica(self, name: str, blocks: int) -> None:
        self.replicas.setdefault(name, _Replica(blocks)).capacity = blocks
        self.replicas[name].evict()

    def remove_replica(self, name: str) -> None:
        self.replicas.pop(name, None)

    def blocks(self, name: str) -> int:
        return (
            sum(isinstance(key, bytes) for key in self.replicas[name].blocks) if name in self.replicas else 0
        )

    def matched(self, chain: Sequence[Digest]) -> dict[str, int]:
        found = {}
        for name, replica in self.replicas.items():
            held = 0
            while held < len(chain) and chain[held] in replica.blocks:
                held += 1
            if held:
                output = replica.answers.get(chain[held - 1], 0)
                found[name] = min(held + replica.blocks.get(output, 0), len(chain))
        return found

    def enter(self, name: str, chain: Sequence[Digest]) -> None:
        replica = self.replicas[name]
        for digest in reversed(chain):
            replica.blocks[digest] = 1
            replica.blocks.move_to_end(digest)
        for digest in chain[:-1]:
            replica.blocks.pop(replica.answers.pop(digest, 0), None)
        replica.prompts.update(chain[-1:])
        replica.evict()

    def occupy(self, name: str, blocks: int, behind: Digest | None = None) -> None:
        replica = self.replicas.get(name)
        if replica is None or blocks < 1:
            return
        if behind is not None:
            replica.blocks.pop(replica.answers.pop(behind, 0), None)
        replica.outputs += 1
        replica.blocks[replica.outputs] = blocks
        if behind in replica.prompts:
            replica.answers[behind] = replica.outputs
        replica.evict()

    def forget(self, name: str, chain: Sequence[Digest], start: int = 0) -> None:
        replica = self.replicas.get(name)
        for digest in chain[start:] if replica is not None else ():
            if replica.blocks.pop(digest, None):
                replica.dropped(digest)
