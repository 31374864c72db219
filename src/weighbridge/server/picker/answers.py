"""An answer that Envoy carries, as the fleet reads one: whole events of a stream, or the body."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

from weighbridge.fleet.replica import Failure, ReplicaError
from weighbridge.server.picker.conversation import AnswerHead, EnvoyTalk
from weighbridge.unzip import Unzip, unzip_of
from weighbridge.wire.sse import DONE, EventFramer, event_data

#: What an event in words that the fleet does not read is to it: something that was said.
_SAID = b'data: {"choices":[{"index":0,"delta":{"content":"."}}]}\n\n'
#: The same for an answer of which nothing is seen: it has begun.
_BEGUN = b'data: {"choices":[{"index":0,"delta":{}}]}\n\n'


class CarriedAnswer:
    """The answer to one request. `is_read`: its events are those that the fleet reads; else each of them counts as a
    token."""

    def __init__(
        self,
        talk: EnvoyTalk,
        head: AnswerHead,
        told: Sequence[tuple[str, str]],
        *,
        streams: bool,
        is_read: bool,
    ) -> None:
        """`told`: headers of ours that the client gets with it."""
        self.status = head.status
        self.headers: Mapping[str, str] = head.headers
        self._talk = talk
        self._told = told
        self._streams = streams
        self._is_read = is_read

    async def chunks(self) -> AsyncIterator[bytes]:
        """Whole events of a stream as they go by, or the body. Raises ReplicaError for what cannot be read."""
        await self._talk.pass_head(self._told)
        if not self._talk.sees_answer:
            if self._streams:
                yield _BEGUN
            await self._talk.let_go_by()
            yield DONE if self._streams else b"{}"
            return
        try:
            unzip = unzip_of(self.headers.get("content-encoding"))
            if not self._streams or self.status >= 300:
                async for piece in self._plain(unzip):
                    yield piece
                return
            framer = EventFramer()
            async for piece in self._plain(unzip):
                if whole := framer.feed(piece):
                    yield whole if self._is_read else _SAID * len(event_data(whole)) or b": .\n\n"
            rest = framer.flush()
        except ValueError as error:
            raise ReplicaError("its endpoint", Failure.BROKEN, str(error)) from error
        if rest and self._is_read:
            yield rest
        if not self._is_read:
            yield DONE

    async def _plain(self, unzip: Unzip | None) -> AsyncIterator[bytes]:
        async for sent in self._talk.pieces():
            for piece in (sent,) if unzip is None else unzip.pieces(sent):
                yield piece

    async def close(self) -> None:
        """Do nothing: whoever carries it ends it."""
