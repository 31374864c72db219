"""All responses that a server keeps: in memory, for an hour, and in a file where that is wanted and allowed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from weighbridge.errors import BadInput, words_of
from weighbridge.fleet.config.keeping import ALWAYS, NEVER, KeepSettings
from weighbridge.models.files.cache import weighbridge_home
from weighbridge.server.responses.file import RESPONSES_FILE, ResponseFile
from weighbridge.server.responses.record import KeptResponse, ResponseMemory
from weighbridge.state.believed_time import believed_time
from weighbridge.state.database import StateError
from weighbridge.wire.body import apart
from weighbridge.wire.errors import ApiError
from weighbridge.wire.protocols.response.items import Item

log = logging.getLogger("weighbridge.server")

#: Seconds that a response is kept in memory, after it was made or a conversation went on from it.
KEPT_S = 3600.0
#: Seconds between two looks at what has expired.
SWEEP_S = 30.0
#: Turns of a conversation that the server puts together.
MAX_TURNS = 1000
_DAY = 86_400.0


@dataclass(slots=True)
class Conversation:
    """The turns before a request, and what holds for all that goes on from them."""

    items: list[Item] = field(default_factory=list)
    size: int = 0  # bytes of its JSON
    labels: frozenset[str] = frozenset()
    only_edge: bool = False
    private: bool = False

    def inherit(self, record: KeptResponse) -> None:
        self.labels |= record.labels
        self.only_edge = self.only_edge or record.only_edge
        self.private = self.private or record.private


class ResponseKeeper:
    """Keeps, finds and erases responses. All of it happens on one event loop; files are used on threads."""

    def __init__(
        self, settings: KeepSettings, largest: int, *, clock: Callable[[], float] = believed_time
    ) -> None:
        """`largest`: bytes of a conversation that is put together. Raises BadInput for a file that is needed and cannot
        be used."""
        whole = settings.responses_memory
        self.memory = ResponseMemory(tenant_bytes=max(whole // 8, 1), all_bytes=whole, kept_s=KEPT_S)
        self.unwritten = 0  # responses that should have been written down and could not be
        self._settings = settings
        self._largest = largest
        self._clock = clock
        self._path = settings.responses_file or weighbridge_home() / RESPONSES_FILE
        self._file: ResponseFile | None = None
        self._writing: dict[str, asyncio.Task[Any]] = {}
        self._sweeping: asyncio.Task[None] | None = None
        self._open_what_is_there()

    def _open_what_is_there(self) -> None:
        """A file of before goes on expiring, whatever the settings are now."""
        needed = self._settings.responses_on_disk == ALWAYS
        if not (needed or self._path.is_file()):
            return
        try:
            self._file = ResponseFile(self._path)
        except BadInput as error:
            if needed:
                raise
            log.error("responses cannot be written down: %s", error)

    # -- keeping ---------------------------------------------------------------------------------------

    def writes(self, record: KeptResponse, store: bool | None) -> bool:
        """Whether a response is written down. `store`: what its client says of it."""
        mode = self._settings.responses_on_disk
        return not record.private and mode != NEVER and (store is True or (mode == ALWAYS and store is None))

    def keep(self, record: KeptResponse, store: bool | None) -> None:
        """Keep a response from now on."""
        self._sweep_from_now_on()
        if not self.memory.add(record, self._clock()) and record.events is not None:
            record.events = None  # too much; the response alone may fit
            self.memory.add(record, self._clock())
        if self.writes(record, store):
            expires = self._clock() + self._settings.responses_days * _DAY
            self._start(record.id, self._write(record, expires))

    async def find(self, name: str, owner: str | None) -> KeptResponse | None:
        """A response by its name. `owner`: whose it must be; None: nobody's in particular."""
        await self._written(name)
        found = self.memory.get(name, self._clock())
        if found is None and self._file is not None:
            found = await self._in_file(self._file.get, name, self._clock())
        return found if found is not None and owner in (None, found.tenant) else None

    async def erase(self, name: str, owner: str | None) -> bool:
        """Forget a response, in the file too; False where there is none. Raises ApiError for a file that fails."""
        if await self.find(name, owner) is None:
            return False
        self.memory.remove(name)
        if self._file is not None:
            await self._in_file(self._file.remove, name)
        return True

    # -- conversations ---------------------------------------------------------------------------------

    async def conversation(self, name: str, owner: str | None) -> Conversation:
        """All turns up to a response, the first of them first. Raises ApiError where one of them is gone."""
        told, turns = Conversation(), []
        following: str | None = name
        while following is not None:
            record = await self.find(following, owner)
            if record is None:
                raise _not_found(name, following)
            self.memory.touch(record.id, self._clock())
            told.inherit(record)
            turns.append(record)
            told.size += len(record.input) + len(record.response)
            if told.size > self._largest or len(turns) > MAX_TURNS:
                message = f"the turns up to {name!r} are more than this server puts together; send a shorter history"
                raise ApiError(400, message, code="context_length_exceeded", param="previous_response_id")
            following = record.previous
        told.items = await apart(told.size, _items, turns[::-1])
        return told

    async def item(self, name: str, owner: str | None, told: Conversation) -> Item:
        """An item of a response by its own name. Raises ApiError where there is none."""
        record = self.memory.with_item(name, owner, self._clock())
        if record is None and self._file is not None:
            record = await self._in_file(self._file.with_item, name, owner, self._clock())
        found = (
            next((one for one in record.items if one.get("id") == name), None) if record is not None else None
        )
        if found is None or record is None:
            message = f"input: there is no item {name[:80]!r}; it may have expired: send what it says instead"
            raise ApiError(404, message, code="item_not_found", param="input")
        told.inherit(record)
        return found

    # -- the file --------------------------------------------------------------------------------------

    async def _write(self, record: KeptResponse, expires: float) -> None:
        try:
            if self._file is None:
                self._file = await asyncio.to_thread(ResponseFile, self._path)
            await asyncio.to_thread(self._file.put, record, expires)
        except (StateError, BadInput) as error:
            self._not_written(error)

    def _not_written(self, error: Exception) -> None:
        if not self.unwritten:
            log.error("a response could not be written down, nor may later ones be: %s", error)
        self.unwritten += 1

    async def _in_file(self, work: Callable[..., Any], *args: Any) -> Any:
        try:
            return await asyncio.to_thread(work, *args)
        except StateError as error:
            log.error("%s", error)
            raise ApiError(503, words_of(error), kind="server_error", code="responses_unreadable") from error

    def _start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = self._writing[name] = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._writing.pop(name, None))

    async def _written(self, name: str) -> None:
        """Wait until a response that is being written down is, so that what is erased stays so."""
        if (task := self._writing.get(name)) is not None:
            await asyncio.shield(task)

    # -- time ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to look for what has expired; called on the event loop that serves."""
        if self._file is not None:
            self._sweep_from_now_on()

    def _sweep_from_now_on(self) -> None:
        if self._sweeping is None:
            self._sweeping = asyncio.create_task(self._sweep())

    async def _sweep(self) -> None:
        while True:
            self.memory.expire(self._clock())
            if self._file is not None:
                try:
                    await asyncio.to_thread(self._file.purge, self._clock())
                except StateError as error:
                    log.error("responses that have expired could not be erased: %s", error)
            await asyncio.sleep(SWEEP_S)

    async def close(self) -> None:
        """Write down what is still to be, and let go of the file."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
        await asyncio.gather(*self._writing.values(), return_exceptions=True)
        if self._file is not None:
            await asyncio.to_thread(self._file.close)


def _items(turns: list[KeptResponse]) -> list[Item]:
    return [item for turn in turns for item in turn.items]


def _not_found(asked: str, missing: str) -> ApiError:
    if asked == missing:
        message = f"previous_response_id: there is no response {asked[:80]!r}"
    else:
        message = f"previous_response_id: {missing!r}, a turn before {asked[:80]!r}, is gone"
    message += (
        "; those of before are kept for an hour, or longer with `store: true`: send all turns in `input`"
    )
    return ApiError(400, message, code="previous_response_not_found", param="previous_response_id")
