"""One request from the door to its last byte: placed, tried, tried again, hedged, relayed, settled."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial

from weighbridge.cost.usage import Charge, Credible, Usage, charge
from weighbridge.errors import Inside, Refused, WeighbridgeError, some_of, wording, words_of
from weighbridge.fleet.api import Answer, Arrival
from weighbridge.fleet.attempt import AttemptFailed, OpenedAttempt, said
from weighbridge.fleet.dispatch import Lease
from weighbridge.fleet.load.weigher import Weighed
from weighbridge.fleet.member import Member
from weighbridge.fleet.meter import Meter
from weighbridge.fleet.pool import JourneyEnd, Pool
from weighbridge.fleet.race import race
from weighbridge.fleet.reliability.plain_errors import is_shown, plain_body, plain_headers, shown_events
from weighbridge.fleet.reliability.resume import NotResumable, Resumption
from weighbridge.fleet.reliability.retry import backoff
from weighbridge.fleet.replica import Failure, ReplicaError
from weighbridge.ticket import Ticket, prefix
from weighbridge.ticket.decisions import Words
from weighbridge.wire.answer import passed_headers
from weighbridge.wire.ask import Ask
from weighbridge.wire.body import apart
from weighbridge.wire.errors import ApiError, error_event, error_message
from weighbridge.wire.events import Event
from weighbridge.wire.journey import Answered, HeaderList, WholeAnswer
from weighbridge.wire.protocols import ANSWER_PARSERS, EVENT_PARSERS

log = logging.getLogger("weighbridge.fleet")

#: Events a stream may have beyond the tokens it was allowed: role, finish, usage, a comment or two.
SPARE_EVENTS = 64


#: Seconds that a client may take for an event until its stream says nothing of the replica's speed.
READ_SLOWLY = 0.05

#: So many times the output that a server tells must have been guessed from text to be believed more than the server.
CLEARLY_MORE = 1.5

#: A server is believed that a request took so many times what it weighs, and what may come on top of a small one: words
#: that its template adds. Beyond that its word would use up a tenant's limits and money.
CREDIBLE, SPARE_PROMPT_TOKENS = 2, 1024
#: What a choice of a server that is paid may have thought beyond that, unless the model's `thinking_tokens` says so.
HIDDEN_THINKING_TOKENS = 32_768


class Unavailable(Refused):
    """Every try failed. `status` 504 when the replicas took too long, 502 when they could not be reached."""

    code = "replicas_failed"

    def __init__(self, message: str, status: int, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.status = status


class CannotGoOn(Refused):
    """The rest of an answer that another gateway began cannot be had."""

    status = 410
    kind = "invalid_request_error"
    code = "stream_gone"


class FleetJourney:
    """`open` until the first byte, then `stream` (or `whole`); `close` is the one way out, whatever happened.

    `settled` hears once that it has ended, to settle what was reserved for it. `charged` hears before, with US dollars,
    what it costs as far as is known when its end is seen, and the end waits for that.
    """

    def __init__(
        self,
        pool: Pool,
        ask: Ask,
        arrival: Arrival,
        weighed: Weighed,
        ticket: Ticket,
        settled: Callable[[FleetJourney], None] | None = None,
        charged: Callable[[FleetJourney, float], Awaitable[None]] | None = None,
    ) -> None:
        self.ask = ask
        self.ticket = ticket
        self.charge = Charge(Usage(0, 0))  # as settled
        self.meter = Meter(not ask.wants_usage, ask.echoes)
        self.pool = pool
        self._arrival = arrival
        self._weighed = weighed
        self._clock = pool.clock
        self._opened: OpenedAttempt | None = None
        self._headers: Mapping[str, str] | None = None  # that go to the client in place of the replica's
        self._asked: Member | None = None  # it may be at work on the request, and has not answered
        self._failures: list[AttemptFailed] = []
        self._refusals: list[AttemptFailed] = []  # by replicas that are well, but will not serve this one
        self._resumption: Resumption | None = None
        self._asking = ask  # what replicas are asked for
        self._settled = settled
        self._hear_charged = charged
        self._closed = False

    # -- until the first byte --------------------------------------------------------------------------

    async def open(self) -> OpenedAttempt:
        """The answer that won, with its first content. Raises Refused or Answered when none did."""
        lease = await self.placed()
        attempt = 1
        while True:
            try:
                opened = await self._first_byte(lease, attempt)
            except AttemptFailed as failure:
                if failure.refusal is not None:
                    lease = await self._elsewhere(failure)
                else:
                    lease = await self._another(failure, attempt)
                    attempt += 1
                self._note_choice(lease)
                continue
            self._begin(opened)
            return opened

    async def _be_there(self) -> None:
        """Wait until the model is loaded, where that is done on demand. Raises Refused."""
        if self.pool.on_demand is not None:
            waited = await self.pool.on_demand.enter(self._arrival, self.ask.deadline)
            if waited:
                self.ticket.decisions.append(waited)

    async def placed(self) -> Lease:
        """Its first place. `open` goes on from there; so may somebody else, who carries the request himself and then
        calls `answered`, or `abandoned`. Raises Refused."""
        await self._be_there()
        if self.ask.sent:
            self._go_on()
        avoid = self.pool.unsure(self._arrival.needs)
        lease = await self.pool.dispatcher.place(self._arrival, avoid, streamed=self.ask.stream)
        self.pool.retries.earn()
        self._note_choice(lease)
        return lease

    def moved(self, lease: Lease, name: str) -> Lease:
        """Take note that whoever carries it could not reach its place, and went on to another replica."""
        self.pool.attempts.unreached(lease)
        now = self._clock()
        other = self.pool.dispatcher.desk.put(self._arrival, name, now, streamed=self.ask.stream)
        if other is None:  # it is in the fleet no more
            raise Unavailable(f"{lease.member.name} was out of reach, and {name} is not there any more", 502)
        self.ticket.decisions.append(f"{lease.member.name} was out of reach: it was carried to {name}")
        self._note_choice(other)
        return other

    async def answered(self, lease: Lease, answer: Answer) -> OpenedAttempt:
        """What came back from its place, up to the first content; `stream` and `whole` go on from there. Raises Refused
        and Answered for an error that is not the request's own."""
        try:
            opened = await self.pool.attempts.take(self.ask, lease, answer)
        except AttemptFailed as failure:
            self._asked = None
            self._failures.append(failure)
            self.ticket.decisions.append(words_of(failure))
            raise self._given_up() from failure
        self._begin(opened)
        return opened

    def abandoned(self, lease: Lease) -> None:
        """Give back a place of which nothing was heard: the client went away, or whoever carried the request."""
        lease.member.breaker.gave_up()
        lease.release(self._clock())

    def _go_on(self) -> None:
        """Ask for the rest of an answer whose beginning another gateway has sent. Raises CannotGoOn."""
        resumption = Resumption(self.ask, self.pool.tokenizer)
        for event in self.ask.sent:
            resumption.passing(event)
        try:
            self._asking = resumption.next_ask(len(self.ask.sent))
        except NotResumable as why:
            raise CannotGoOn(f"the gateway that served it is gone, and it cannot go on: {why}") from None
        self._resumption = resumption
        self.meter.produced += resumption.before
        self.ticket.decisions.append(f"goes on behind {len(self.ask.sent)} events of another gateway")

    async def _elsewhere(self, failure: AttemptFailed) -> Lease:
        """A place at a replica that may serve what this one refused; raises what the client is told without one."""
        self._asked = None
        self._refusals.append(failure)
        self.ticket.decisions.append(words_of(failure))
        others = self.pool.refused(failure, [one.member.name for one in self._refusals], self._arrival)
        if not others:
            raise self.pool.all_refused(self._refusals)
        avoid = self.pool.members.keys() - others
        return await self.pool.dispatcher.place(self._arrival, avoid, streamed=self.ask.stream, again=True)

    def _begin(self, opened: OpenedAttempt) -> None:
        now = self._clock()
        self._asked = None
        if opened.status < 400:
            opened.lease.member.abilities.answered(self._arrival.needs)
            self.pool.proved(self._refusals, now)
        self._take(opened)
        self.ticket.replica = opened.lease.member.name
        self.ticket.replica_ticket = opened.answer.headers.get("x-weighbridge-ticket", "")
        self.ticket.prefix = prefix.read(opened.answer.headers.get(prefix.HEADER, ""))
        if opened.status < 400 and self.ask.stream:
            self.ticket.first_token = time.time()
            self.pool.hedger.observe(now - opened.lease.sent, opened.lease.expected_first)
            self.pool.pulse.first(now - self._arrival.arrived, now)
        if self._resumption is None and self.pool.resume_wanted(self.ask) and opened.is_stream:
            self._resumption = Resumption(self.ask, self.pool.tokenizer)

    def _take(self, opened: OpenedAttempt) -> None:
        """Make this the answer that the client gets from now on."""
        self._opened = opened
        self.meter.hide_cached = bool(self.ask.cache_salt) and not opened.lease.member.keeps_apart(self.ask)

    async def _first_byte(self, lease: Lease, attempt: int) -> OpenedAttempt:
        hedger = self.pool.hedger
        hedger.sent(self._arrival.weight.prompt_tokens)
        delay = hedger.delay(lease.expected_first) if self.ask.stream else None
        if delay is None:
            return await self.pool.attempts.open(self._asking, lease, attempt)
        return await race(
            lambda one: self.pool.attempts.open(self._asking, one, attempt),
            lease,
            delay,
            self._copy,
            self.pool.lost,
        )

    def _copy(self, lease: Lease) -> Lease | None:
        """A place for a second copy, on another replica and within the budget; None: no hedge."""
        pool = self.pool
        if not any(name != lease.member.name and m.usable(self._clock()) for name, m in pool.members.items()):
            return None
        if not pool.hedger.take(self._arrival.weight.prompt_tokens):
            return None
        copy = pool.dispatcher.place_now(self._arrival, {lease.member.name}, copy=True)
        if copy is not None:
            copy.member.counts.hedges += 1
            self.ticket.hedged = True
            self.ticket.decisions.append(
                f"no first token after {self._clock() - lease.sent:.3f} s: a second copy went to {copy.member.name}"
            )
        return copy

    async def _another(self, failure: AttemptFailed, attempt: int) -> Lease:
        """A place for the next try; raises what the client is told when there is none."""
        self._failures.append(failure)
        if not failure.timed_out:
            self._asked = None
        self.ticket.decisions.append(wording("try {} failed at {}", attempt, failure))
        pool, failed = self.pool, {one.member.name for one in self._failures}
        now = self._clock()
        if attempt >= pool.retry.attempts:
            raise self._given_up()
        others = any(n not in failed and m.usable(now) and m.state.healthy for n, m in pool.members.items())
        # A retry at a replica that is well and has nothing to do adds to nobody's load, whatever the others do.
        idle = any(n not in failed and m.is_idle_and_well(now) for n, m in pool.members.items())
        if not pool.retries.spend() and not idle:
            raise self._given_up("the retry budget is spent")
        if not others:
            wait = max(failure.wait, backoff(attempt, random.random()))
            late = self.ask.deadline is not None and now + wait > self.ask.deadline
            if wait > pool.retry.longest_wait or late:
                raise self._given_up()
            await asyncio.sleep(wait)
        failure.member.counts.retries += 1
        await self._be_there()
        avoid = failed if others else frozenset()
        return await pool.dispatcher.place(self._arrival, avoid, streamed=self.ask.stream, again=True)

    def _given_up(self, why: str = "") -> WeighbridgeError:
        """What the client is told; `why` no further try was made, where there could have been one."""
        last = self._failures[-1]
        if last.answer is not None:
            status, body, headers = last.answer.status, last.answer.body, last.answer.headers
            if not is_shown(last.member.spec.dialect, status):
                body, headers = plain_body(status, body, self.ticket.id), plain_headers(headers)
            return Answered(status, body, headers)
        reasons = list(dict.fromkeys(words_of(one) for one in self._failures))
        status = 504 if last.timed_out else 502
        tries = "1 try" if len(self._failures) == 1 else f"{len(self._failures)} tries"
        more = f"; {why}" if why else ""
        words = some_of(reasons, len(reasons), joint="; ")
        return Unavailable(wording("no replica answered after {}: {}{}", tries, words, more), status)

    def _note_choice(self, lease: Lease) -> None:
        choice, ticket = lease.choice, self.ticket
        self._asked = lease.member
        if ticket.scheduled is None:
            ticket.scheduled = time.time()
        ticket.attempts += 1
        ticket.replica = choice.replica
        ticket.note_scores(choice.scores, choice.replica, choice.unit)
        ticket.decisions.append(
            partial(_chosen, self.pool.dispatcher.policy.name, choice.replica, choice.why)
        )

    # -- the answer ------------------------------------------------------------------------------------

    async def stream(self) -> AsyncIterator[Event]:
        """Whole events for the client. A replica that breaks off is replaced, or the stream ends with an error."""
        opened = self._begun()
        parse, meter, clock = EVENT_PARSERS[self.ask.path], self.meter, self._clock
        most, had_failed, charges = self._most_events(), False, self._hear_charged is not None
        while True:
            broken: ReplicaError | None = None
            lease, resumption, chunks = opened.lease, self._resumption, opened.chunks
            idle = lease.member.spec.timeouts.idle
            chunk, silent_since = opened.first, clock()
            try:
                while True:
                    lease.member.alive_at = now = clock()
                    if events := meter.count(chunk):
                        lease.tokens(events, now)
                        silent_since = now
                    elif now - silent_since > idle and not meter.done:
                        raise ReplicaError(
                            lease.member.name, Failure.IDLE, f"nothing but comments for {idle:g} s"
                        )
                    if resumption is not None:
                        chunk = resumption.passing(chunk)
                    if meter.hide_cached or b'"usage"' in chunk:
                        chunk = meter.strip(chunk)
                    if meter.failed:
                        if not had_failed:
                            self._note_failure(chunk)
                        had_failed = True
                        chunk = shown_events(lease.member.spec.dialect, chunk, self.ticket.id)
                    if chunk:
                        if charges and meter.complete:
                            charges = False
                            await self._charge_now()
                        yield Event(chunk, parse, meter.done)
                        if clock() - now > READ_SLOWLY:
                            lease.look_away()
                    if meter.events > most:
                        raise ReplicaError(
                            lease.member.name, Failure.BROKEN, f"does not end: over {most} events"
                        )
                    chunk = await anext(chunks)
            except StopAsyncIteration:
                pass
            except ReplicaError as error:
                broken = error
            if broken is None and (meter.complete or not opened.is_stream):
                return
            name = opened.lease.member.name
            broken = broken or ReplicaError(name, Failure.BROKEN, "ended its stream before its end")
            self.pool.attempts.broke_off(opened, broken)
            await opened.close(self._clock())
            self.ticket.decisions.append(wording("after {} events: {}", meter.events, broken))
            try:
                opened = await self._continued(name)
                self._take(opened)
            except (WeighbridgeError, NotResumable) as why:
                told = wording("{}; {}", broken, why) if self._resumption is not None else words_of(broken)
                self.ticket.error = told
                meter.failed = True
                yield Event(broken_off(told), parse, last=True)
                return
            self.ticket.resumed += 1

    def _note_failure(self, events: bytes) -> None:
        """Keep for the operator what a replica says of a failure in its stream."""
        what = "failed in its stream"
        self.ticket.decisions.append(Inside(f"{what}: {error_message(events.removeprefix(b'data:'))}", what))

    def _most_events(self) -> int:
        weight = self._arrival.weight
        longest = self.ask.max_tokens
        if longest is None:
            longest = self._opened_limit() or 1_000_000
        return weight.choices * longest + SPARE_EVENTS

    def _opened_limit(self) -> int | None:
        return self._opened.lease.member.state.capacity.max_model_len if self._opened else None

    async def _continued(self, lost: str) -> OpenedAttempt:
        """The rest of the stream from another replica. Raises NotResumable, or what `open` raises."""
        if self._resumption is None:
            raise NotResumable("the stream could be continued elsewhere with `resume: true`")
        ask = self._resumption.next_ask(self.meter.produced)
        await self._be_there()
        lease = await self.pool.dispatcher.place(self._arrival, {lost}, again=True)
        self._note_choice(lease)
        opened = await self.pool.attempts.open(ask, lease, attempt=2)
        if opened.status >= 400 or not opened.is_stream:
            await opened.close(self._clock())
            raise NotResumable(f"{lease.member.name} refused to continue it (status {opened.status})")
        self.ticket.decisions.append(f"continued on {lease.member.name} behind {self.meter.events} events")
        return opened

    async def whole(self) -> WholeAnswer:
        """The answer in one piece, read for its usage."""
        opened = self._begun()
        content_type = opened.answer.headers.get("content-type", "application/json")
        if opened.status < 400:
            self.meter.whole(opened.first)
            await self._count_whole()
            await self._charge_now()
            body = self.meter.shown(opened.first)
        elif is_shown(opened.lease.member.spec.dialect, opened.status):
            body = opened.first
        else:
            body, content_type = plain_body(opened.status, opened.first, self.ticket.id), "application/json"
            self._headers = plain_headers(opened.answer.headers)
            self.ticket.decisions.append(said("answered with status", opened.status, opened.first))
        return WholeAnswer(body, ANSWER_PARSERS[self.ask.path], opened.status, content_type)

    def headers(self) -> HeaderList:
        """The replica's own headers and ours. What a stream costs is known at its end only: here it is expected."""
        opened = self._begun()
        usd = self.cost()
        cost = f"{usd:.8f}".rstrip("0").rstrip(".") if usd else "0"
        return [
            (b"x-weighbridge-ticket", self.ask.id.encode()),
            *passed_headers(opened.answer.headers if self._headers is None else self._headers),
            (b"x-weighbridge-replica", opened.lease.member.name.encode()),
            (b"x-weighbridge-placement", self.ticket.placement.encode()),
            (b"x-weighbridge-cost", cost.encode()),
        ]

    def _begun(self) -> OpenedAttempt:
        assert self._opened is not None, "open() comes first"
        return self._opened

    def cost(self) -> float:
        """US dollars: of an answer that is here, what it costs; of one that begins, what it is expected to."""
        opened = self._begun()
        member, weight = opened.lease.member, self._arrival.weight
        if opened.status >= 400 or member.spec.price.is_free:
            return 0.0
        if self.meter.usage is not None or self.meter.done:
            return member.cost(self._charged().usage)
        output = round(weight.choices * weight.output.mean)
        cached = min(opened.lease.choice.cached_tokens, weight.prompt_tokens)
        return member.cost(Usage(weight.prompt_tokens, output, cached))

    async def _count_whole(self) -> None:
        """Count an answer in one piece, where its server does not, or may have counted one choice of several."""
        meter, told = self.meter, self.meter.usage
        is_credible = told is not None and self._credible().covers(told)
        if not meter.texts or (is_credible and len(meter.texts) == 1):
            return
        size = sum([len(text) for text in meter.texts])
        counts = await apart(size, lambda: [self.pool.scales.count(text) for text in meter.texts])
        counted, exact = sum([tokens for tokens, _ in counts]), all(exact for _, exact in counts)
        most = self._arrival.weight.max_tokens
        is_one = told is not None and told.output_tokens <= most  # it may be that of one choice
        if (
            told is None
            or not is_credible
            or (is_one and (exact or counted > CLEARLY_MORE * told.output_tokens))
        ):
            meter.produced = min(counted, most * len(meter.texts))

    async def _charge_now(self) -> None:
        """Charge an answer before its client has the end of it: we may be killed between the two."""
        if self._hear_charged is not None:
            self.charge = self._charged()
            await self._hear_charged(self, self._begun().lease.member.cost(self.charge.usage))

    def _charged(self) -> Charge:
        """What is charged now."""
        weighed, opened, told = self._arrival.weight.prompt_tokens, self._opened, self.meter.usage
        if opened is None:  # whoever was asked and cut off has the prompt, and bills it
            return Charge(Usage(weighed, 0), True) if self._asked is not None else Charge(Usage(0, 0))
        if told is None:
            return Charge(Usage(0, 0)) if opened.status >= 400 else charge(None, self._counted(), weighed)
        most = self._credible()
        if opened.status >= 400:
            return Charge(told if most.covers(told) else Usage(0, 0))
        return charge(told, self._counted(), weighed, most)

    def _counted(self) -> int:
        """Output tokens that were seen to come; an event says itself how many it has, and is not believed all."""
        return min(self.meter.produced, self._most_events())

    def _credible(self) -> Credible:
        """What its server may say that it took."""
        weight, ask, counted = self._arrival.weight, self.ask, self._counted()
        choices = weight.choices
        beside = sum(map(len, ask.fields.values())) - len(ask.prompt or b"")  # tools, schemas
        prompt = max(CREDIBLE * weight.prompt_tokens, self._weighed.size) + beside
        prompt += SPARE_PROMPT_TOKENS + counted  # which a stream that goes on elsewhere repeats
        output = CREDIBLE * max(choices * weight.max_tokens, counted) + SPARE_EVENTS
        reserved = choices * (weight.max_tokens if ask.max_tokens is not None else weight.output.p90)
        return Credible(prompt, output + choices * self._thinking_tokens(), reserved)

    def _thinking_tokens(self) -> int:
        """What a choice may have thought beyond `max_tokens` and what is shown: a server that is paid may hide it."""
        told = self.pool.spec.thinking_tokens
        if told is not None:
            return told
        if self._opened is None or self._opened.lease.member.spec.price.is_free:
            return 0
        return HIDDEN_THINKING_TOKENS

    # -- the end ---------------------------------------------------------------------------------------

    async def close(self, error: str | None = None) -> bool:
        """Give the place back and settle what the request really took. False when that was done before."""
        if self._closed:
            return False
        self._closed = True
        if self.pool.on_demand is not None:
            self.pool.on_demand.leave(self._arrival.id, self.ask.keep_alive)
        opened, self.charge = self._opened, self._charged()
        if self.meter.hide_cached:
            self.charge = replace(self.charge, hidden_tokens=self.charge.usage.cached_tokens)
        self._note_doubt()
        if opened is not None:
            if self.meter.usage is not None:  # what is charged for it
                opened.lease.produced = self.charge.usage.output_tokens
            await opened.close(self._clock())
        member = self._asked if opened is None else opened.lease.member
        end = JourneyEnd(self.charge, self.meter, member, opened is not None and opened.status < 400)
        if self._refusals and self.meter.usage is not None:
            used = self.charge.usage
            self.pool.learn_contexts(
                self._refusals, used.prompt_tokens + max(used.output_tokens, self.ask.max_tokens or 0)
            )
        self.pool.settle(self.ask, self._arrival, self._weighed, self.ticket, end, error)
        if self._settled is not None:
            self._settled(self)
        return True

    def _note_doubt(self) -> None:
        """Say in the ticket where a server's word is not what is charged, because it cannot be true."""
        told, charged = self.meter.usage, self.charge.usage
        if told is None or self._credible().covers(told):
            return
        self.ticket.decisions.append(
            f"it says that it took {told.prompt_tokens} and {told.output_tokens} tokens, which cannot be: "
            f"{charged.prompt_tokens} and {charged.output_tokens} are charged (thinking beyond max_tokens: see "
            "`thinking_tokens` of the model)"
        )


def _chosen(policy: str, replica: str, why: str | Words) -> str:
    return f"{policy} chose {replica}: {why if isinstance(why, str) else why()}"


def broken_off(why: str) -> bytes:
    """The error at the end of a stream that nobody could continue."""
    message = wording("the answer broke off: {}", why)
    return error_event(ApiError(502, message, kind="server_error", code="replica_lost"))
