"""The adapters that an engine serves now, by name: they come and go while it runs, and never under a request.

All of it is called on the event loop, where requests are submitted too; weights are read and written beside it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

from weighbridge.engine.adapters.room import AdapterRoom
from weighbridge.engine.request import Adapter
from weighbridge.errors import AdapterBusy, AdaptersFixed, UnknownModel
from weighbridge.models.adapters.named import checked_name
from weighbridge.models.adapters.peft_file import CONFIG, WEIGHTS, AdapterFile
from weighbridge.models.adapters.shelf import AdapterShelf

#: Seconds between two looks whether an adapter is still in use.
LOOK = 0.02


class AdapterUsers(Protocol):
    """What the desk asks of its engine."""

    def users_of(self, adapter: Adapter) -> int:
        """Requests that wait or run with it."""
        ...

    def fence(self) -> Future[None]:
        """Return a promise that is kept once the iteration that runs now is over."""
        ...


class AdapterDesk:
    """Slots of a shelf, and the names of what is in them. One change at a time."""

    def __init__(
        self,
        room: AdapterRoom,
        shelf: AdapterShelf,
        model_name: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._room, self._shelf, self._model_name, self._clock = room, shelf, model_name, clock
        self._served: dict[str, Adapter] = {}
        self._free = list(range(shelf.size.slots))
        self._changing = asyncio.Lock()
        for named, file in room.first:
            slot = self._free.pop(0)
            shelf.put(slot, file)
            self._served[named.name] = self._adapter(named.name, slot, file)

    def served(self) -> Sequence[Adapter]:
        return tuple(self._served.values())

    def get(self, name: str) -> Adapter:
        """Return the adapter of this name. Raises UnknownModel."""
        adapter = self._served.get(name)
        if adapter is None:
            known = ", ".join([self._model_name, *self._served])
            raise UnknownModel(
                f"the model {name!r} does not exist here; this server has {known}", param="model"
            )
        return adapter

    async def load(self, name: str, path: str) -> Adapter:
        """Serve a directory below the root under `name`. Raises BadInput for what is none, or may not be."""
        checked_name(name, "lora_name")
        return await asyncio.shield(self._load(name, path))  # whoever goes away leaves it going

    async def _load(self, name: str, path: str) -> Adapter:
        async with self._changing:
            if name in self._served or name == self._model_name:
                raise AdapterBusy(
                    f"lora_name: {name!r} is served already; unload it first, or take another name",
                    param="lora_name",
                )
            file = await asyncio.to_thread(self._opened, path)
            if not self._free:
                raise AdapterBusy(
                    f"all {self._shelf.size.slots} slots for adapters are taken: unload one of "
                    f"{', '.join(self._served)}, or start with a larger --max-loras",
                    param="lora_name",
                )
            slot = min(self._free)
            await asyncio.to_thread(self._shelf.put, slot, file)
            self._free.remove(slot)
            self._served[name] = adapter = self._adapter(name, slot, file)
            return adapter

    async def unload(self, name: str, users: AdapterUsers, timeout: float) -> None:
        """Take an adapter out once nobody uses it; new requests for it are refused meanwhile.

        Raises AdapterBusy when `timeout` seconds were not enough: it is served as before then.
        """
        async with self._changing:
            adapter = self.get(name)
            del self._served[name]
            try:
                await self._wait(adapter, users, timeout)
            except BaseException:
                self._served[name] = adapter
                raise
            await asyncio.shield(self._take_out(adapter, users))

    async def _wait(self, adapter: Adapter, users: AdapterUsers, timeout: float) -> None:
        until = self._clock() + timeout
        while count := users.users_of(adapter):
            if self._clock() >= until:
                raise AdapterBusy(
                    f"{count} requests use the adapter {adapter.name!r}: it is unloaded when they are done; ask again, "
                    "or wait longer (?timeout=SECONDS)",
                    param="lora_name",
                )
            await asyncio.sleep(LOOK)

    async def _take_out(self, adapter: Adapter, users: AdapterUsers) -> None:
        """Free the slot. What was cancelled may be in the iteration that runs now: that one still reads it."""
        await asyncio.wrap_future(users.fence())
        await asyncio.to_thread(self._shelf.clear, adapter.slot)
        self._free.append(adapter.slot)

    def _adapter(self, name: str, slot: int, file: AdapterFile) -> Adapter:
        share = file.parameters / max(self._room.base_parameters, 1)
        return Adapter(name, slot, file.fingerprint, file.rank, share, file.path.name)

    def _opened(self, path: str) -> AdapterFile:
        """Check a directory that somebody names over HTTP: it must be below the root, links followed."""
        root = self._room.root
        if root is None:
            raise AdaptersFixed(
                "adapters are fixed when this server starts: start it with --lora-root DIR to load those below DIR",
                param="lora_path",
            )
        try:
            directory = (root / path).resolve()
            files = (directory, directory / CONFIG, directory / WEIGHTS)
            is_below = all(file.resolve().is_relative_to(root) for file in files) and directory.is_dir()
        except (OSError, ValueError, RuntimeError):  # no path at all, or links in a circle
            is_below = False
        if not is_below:
            raise AdaptersFixed(
                f"lora_path: {path[:200]!r} is no directory below the one that --lora-root names",
                param="lora_path",
            )
        return self._room.open(directory)
