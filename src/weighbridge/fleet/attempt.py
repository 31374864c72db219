"""One try at one replica: send the call, read until the first byte of content, and judge what came."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from weighbridge.errors import Inside, WeighbridgeError, wording, words_of
from weighbridge.fleet.abilities.refusal import ReplicaRefusal, error_of, read_refusal
from weighbridge.fleet.api import Answer
from weighbridge.fleet.dispatch import Lease
from weighbridge.fleet.limits.remaining import retry_after, seconds_of, used_up
from weighbridge.fleet.member import Member
from weighbridge.fleet.reliability.retry import KEY_REFUSED, OVERLOADED, may_retry
from weighbridge.fleet.replica import BytesAnswer, Failure, ReplicaError, has_content
from weighbridge.ticket.trace import SentCall
from weighbridge.wire.ask import Ask
from weighbridge.wire.errors import error_fields

#: How long a replica that refuses our key is left alone, in seconds; keys are seldom repaired faster.
KEY_PAUSE = 30.0
#: And one that says it is overloaded without saying for how long.
BRIEF_PAUSE = 0.25

#: Bytes of an answer in one piece: 2,048 embeddings of 4,096 numbers have 180 MiB as text.
LARGEST_ANSWER = 256 << 20

#: What OpenAI says with 429 where the account has no money left.
NO_QUOTA = "insufficient_quota"

_ERROR_EVENT = b'data: {"error"'


@dataclass(slots=True, eq=False)
class OpenedAttempt:
    """A replica's answer that has begun. `first` is its first content; `chunks` goes on behind it.

    `status` of 400 and above: an error that is the client's own, with its body in `first`.
    """

    lease: Lease
    answer: Answer
    chunks: AsyncIterator[bytes]
    first: bytes
    sent: SentCall | None = None  # its span in a distributed trace

    @property
    def status(self) -> int:
        return self.answer.status

    @property
    def is_stream(self) -> bool:
        return "event-stream" in self.answer.headers.get("content-type", "")

    async def close(self, now: float) -> None:
        """Cancel what still runs there, and give the place back."""
        await self.answer.close()
        self.lease.release(now)
        if self.sent is not None:
            self.sent.end(time.time())


class AttemptFailed(WeighbridgeError):
    """Nothing came that could be passed on. `answer` is the error the replica gave, if it gave one.

    `refusal`: the replica is well, and will not serve this request, which another one may.
    """

    def __init__(
        self,
        member: Member,
        why: str,
        *,
        timed_out: bool = False,
        answer: BytesAnswer | None = None,
        refusal: ReplicaRefusal | None = None,
    ):
        super().__init__(wording("{}: {}", member.name, why))
        self.member = member
        self.timed_out = timed_out
        self.answer = answer
        self.refusal = refusal
        self.wait = 0.0  # seconds that the replica asked to be left alone


class Attempts:
    """Sends calls. Notes at each replica how it went: its breaker, its pauses, its signs of life."""

    def __init__(self, clock: Callable[[], float], slow_start: float) -> None:
        self._clock = clock
        self._slow_start = slow_start

    async def open(self, ask: Ask, lease: Lease, attempt: int) -> OpenedAttempt:
        """The beginning of an answer. Raises AttemptFailed; then, and when cancelled, the place is free again."""
        sent = lease.member.traced(ask, attempt)
        return await self._noted(lease, self._open_unless_gone(ask, lease, attempt, sent), sent)

    async def take(self, ask: Ask, lease: Lease, answer: Answer) -> OpenedAttempt:
        """The beginning of an answer that somebody else fetched, judged as if we had. Raises like `open`."""
        return await self._noted(lease, self._read(ask, lease, 1, answer))

    def unreached(self, lease: Lease) -> None:
        """Take note that whoever carries the request could not reach the replica; its place is free again."""
        name = lease.member.name
        self._blame(
            lease.member, ReplicaError(name, Failure.CONNECT, "who carried the request went on elsewhere")
        )
        lease.release(self._clock())

    async def _noted(
        self, lease: Lease, opening: Awaitable[OpenedAttempt], sent: SentCall | None = None
    ) -> OpenedAttempt:
        """What was opened; how it went wrong, if it did, is noted at its replica."""
        try:
            opened = await opening
        except ReplicaError as error:
            self._blame(lease.member, error)
            lease.release(self._clock())
            if sent is not None:
                sent.end(time.time(), error.kind.value)
            timed_out = error.kind in (Failure.FIRST_BYTE, Failure.IDLE)
            raise AttemptFailed(lease.member, words_of(error), timed_out=timed_out) from error
        except BaseException as error:
            if not isinstance(error, AttemptFailed):
                lease.member.breaker.gave_up()
            lease.release(self._clock())
            if sent is not None:
                sent.end(time.time(), "failed" if isinstance(error, AttemptFailed) else "cancelled")
            raise
        if sent is not None:
            opened.sent, sent.first = sent, time.time()
        return opened

    async def _open_unless_gone(
        self, ask: Ask, lease: Lease, attempt: int, sent: SentCall | None
    ) -> OpenedAttempt:
        """The same while its replica may still answer; `Member.let_go` ends it."""
        waiting, limit = lease.member.waiting, asyncio.timeout(None)
        waiting.add(limit)
        try:
            async with limit:
                return await self._open(ask, lease, attempt, sent)
        except TimeoutError as error:
            if not limit.expired():
                raise
            why = "gave no sign of life any more, before anything came"
            raise ReplicaError(lease.member.name, Failure.FIRST_BYTE, why) from error
        finally:
            waiting.discard(limit)

    async def _open(self, ask: Ask, lease: Lease, attempt: int, sent: SentCall | None) -> OpenedAttempt:
        member = lease.member
        call = member.call(ask, self._remaining_ms(ask))
        if sent is not None:
            call = member.with_trace(call, ask, sent)
        answer = await member.replica.open(call)
        if sent is not None:
            sent.status = answer.status
        return await self._read(ask, lease, attempt, answer)

    async def _read(self, ask: Ask, lease: Lease, attempt: int, answer: Answer) -> OpenedAttempt:
        """Read an answer up to its first content, or whole, and judge it."""
        member = lease.member
        self._heed(member, answer.headers)
        try:
            if not 200 <= answer.status < 600:
                why = f"answered with status {answer.status}, which is none of an answer"
                raise ReplicaError(member.name, Failure.BROKEN, why)
            chunks = answer.chunks()
            if answer.status >= 300:
                body = await self._whole(member, chunks)
                return self._judge(ask, lease, attempt, answer, body)
            if not ask.stream:
                body = await self._whole(member, chunks)
                self._well(lease)
                return OpenedAttempt(lease, answer, chunks, body)
            first = await self._first_content(member, chunks)
            if first.startswith(_ERROR_EVENT):
                status, body = _error_in_stream(first)
                return self._judge(ask, lease, attempt, BytesAnswer(status, body, answer.headers), body)
        except BaseException:
            await answer.close()
            raise
        self._well(lease)
        return OpenedAttempt(lease, answer, chunks, first)

    async def _whole(self, member: Member, chunks: AsyncIterator[bytes]) -> bytes:
        """A body in one piece, bounded in bytes and in seconds."""
        limit, parts, size = member.spec.timeouts.answer, [], 0
        try:
            async with asyncio.timeout(limit):
                async for chunk in chunks:
                    parts.append(chunk)
                    size += len(chunk)
                    if size > LARGEST_ANSWER:
                        why = f"its answer does not end: over {LARGEST_ANSWER >> 20} MiB"
                        raise ReplicaError(member.name, Failure.BROKEN, why)
        except TimeoutError as error:
            raise ReplicaError(member.name, Failure.IDLE, f"its answer took over {limit:g} s") from error
        return b"".join(parts)

    async def _first_content(self, member: Member, chunks: AsyncIterator[bytes]) -> bytes:
        """The first event that is more than a comment to keep the line open."""
        deadline = self._clock() + member.spec.timeouts.first_byte
        async for chunk in chunks:
            if has_content(chunk):
                return chunk
            member.alive(self._clock(), self._slow_start)
            if self._clock() > deadline:
                raise ReplicaError(
                    member.name,
                    Failure.FIRST_BYTE,
                    f"nothing came within {member.spec.timeouts.first_byte:g} s",
                )
        raise ReplicaError(member.name, Failure.BROKEN, "ended its stream before anything came")

    def _judge(self, ask: Ask, lease: Lease, attempt: int, answer: Answer, body: bytes) -> OpenedAttempt:
        """Judge an error answer: the client's own fault is passed on, everything else may be tried elsewhere."""
        member, status = lease.member, answer.status
        if status < 400:
            place = answer.headers.get("location", "somewhere else")
            why = f"redirects to {place}; write that URL into the configuration"
            raise AttemptFailed(member, Inside(why, "redirects to another place"))
        kept = BytesAnswer(status, body, answer.headers)
        refusal = read_refusal(status, body, ask.path, lease.arrival.needs)
        if refusal is not None:
            refusal = replace(refusal, adapter=member.asks_for_adapter(ask))
            lease.look_away()
            self._well(lease)
            raise AttemptFailed(
                member, said("refused it with status", status, body), answer=kept, refusal=refusal
            )
        if not may_retry(status, attempt, ask.deadline is not None):
            lease.look_away()  # a refusal is quick, whatever the replica is
            self._well(lease)
            return OpenedAttempt(lease, kept, kept.chunks(), body)
        now = self._clock()
        failed = AttemptFailed(member, said("answered with status", status, body), answer=kept)
        member.last_error = words_of(failed)
        member.counts.failures += 1
        wait = retry_after(answer.headers, time.time())
        wait = retry_delay(body) if wait is None else wait
        if status in KEY_REFUSED:
            failed = AttemptFailed(member, said("refuses the key it was sent, with status", status, body))
            member.last_error = words_of(failed)
            member.hold(now + KEY_PAUSE, member.last_error)
            member.breaker.gave_up()
        elif status in OVERLOADED:
            if wait is None and error_of(body).get("code") == NO_QUOTA:
                wait = KEY_PAUSE  # money is not there again in a moment
            failed.wait = BRIEF_PAUSE if wait is None else wait
            member.hold(
                now + failed.wait, f"answered with status {status} and wants {failed.wait:g} s of rest"
            )
            member.alive(now, self._slow_start)
            if status == 503 and wait is None:
                member.breaker.failed(now)
            else:
                member.breaker.gave_up()  # it is well and says when to come back
        else:
            member.breaker.failed(now)
        raise failed

    def _heed(self, member: Member, headers: Mapping[str, str]) -> None:
        """Leave it alone until the limits of our account with it, as it says them, have room again."""
        spent = used_up(headers, time.time())
        if spent is not None:
            why = f"says that its limit of {spent.kind} is used up for {spent.rest_s:.0f} s"
            member.hold(self._clock() + spent.rest_s, why)

    def _well(self, lease: Lease) -> None:
        now = self._clock()
        lease.first_byte(now)
        lease.member.breaker.succeeded(now)
        lease.member.alive(now, self._slow_start)

    def _blame(self, member: Member, error: ReplicaError) -> None:
        now = self._clock()
        member.last_error = words_of(error)
        member.counts.failures += 1
        member.breaker.failed(now)
        if error.kind is Failure.CONNECT and member.spec.probe:
            member.state.healthy = False  # the next probe that is answered brings it back

    def broke_off(self, opened: OpenedAttempt, error: ReplicaError) -> None:
        """Take note that a stream which had begun ended too early."""
        self._blame(opened.lease.member, error)
        if opened.sent is not None:
            opened.sent.end(time.time(), error.kind.value)

    def _remaining_ms(self, ask: Ask) -> float | None:
        return None if ask.deadline is None else max((ask.deadline - self._clock()) * 1e3, 1.0)


def _error_in_stream(event: bytes) -> tuple[int, bytes]:
    """Status and body of an error that came as the first event of a stream with status 200."""
    body = event.split(b"\n", 1)[0].removeprefix(b"data:").strip()
    code = error_fields(body).get("code")
    return (code if isinstance(code, int) and 400 <= code < 600 else 500), body


def retry_delay(body: bytes) -> float | None:
    """Seconds that Google's errors ask to wait, in a detail of theirs; None without one."""
    details = error_of(body).get("details")
    for one in details if isinstance(details, list) else ():
        delay = one.get("retryDelay") if isinstance(one, dict) else None
        if isinstance(delay, str) and (seconds := seconds_of(delay, 0.0)):
            return seconds
    return None


def said(what: str, status: int, body: bytes) -> str:
    """What a replica did with a request, and what its error says, short, for the operator's ticket and the log."""
    message = str(error_of(body).get("message") or "").strip()
    plain = f"{what} {status}"
    return Inside(f"{plain}: {message[:200]}", plain) if message else plain
