"""Continuous batching: what each iteration computes, chosen anew every time.

A request is its tokens: `#` computed, `.` not yet. Whatever is not computed is work, be it a prompt, a token
just sampled, or what a preemption lost. One iteration, by rank (class, then arrival):

    running   a  ####################.     one left: a decode        -+
              b  ###########.              one left: a decode         |  schedule()
              c  ######..............      a prompt, half way         |  -> Batch
    waiting   d  ....................      its blocks are there       |
              e  ......................    no room yet: it waits     -+
                                                                      |
    batch    | a | b |  c: its next chunk  |  d: its first chunk  |   |  <= max_batch_tokens, and
             |streams|  prompts fill up to the ITL target         |   |  <= itl_target seconds
                                                                      |
    Runner.execute(batch) computes it, and samples wherever a slice  -+  update()
    reaches the end of its request's tokens                              -> Progress of each request

Requests of the last class (`SPARE_CLASS`) keep their places and advance only while nobody else runs.

When blocks run out, the request of lowest rank gives way: its blocks return (the full ones stay in the prefix
cache), it goes back to the front of its line and is computed again later. The request of highest rank always
gets its blocks and its tokens, so something always advances: no deadlock, no livelock, nothing lost.

Tenants take turns: who is next is by the service each received (`queue`), and a tenant that waits and gets nothing
for a while takes over a seat of the one that holds most.

Plain Python: time is passed in, and the simulator runs this very class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from weighbridge.engine.api import Load
from weighbridge.engine.batch import Batch, Sampled
from weighbridge.engine.memory.block_tables import Opening
from weighbridge.engine.request import SPARE_CLASS, FinishReason, Places, Request, RequestState
from weighbridge.engine.schedule.admission import min_seconds
from weighbridge.engine.schedule.books import Books
from weighbridge.engine.schedule.places import Backlog
from weighbridge.engine.schedule.plan import Plan
from weighbridge.engine.schedule.scheduler_api import CostSource, Progress, SchedulerSettings

#: Prompt tokens that an iteration takes even when its decodes alone miss the target.
SMALLEST_CHUNK = 8
#: Rows of prompts that are scored in one iteration: each has a number for every token of the vocabulary.
MOST_SCORED = 256
#: Tenants that are looked at, those that got nothing for longest, when somebody may pass a prompt under way.
MOST_PASSING = 8


class Scheduler:
    """Decides what runs, one iteration at a time. `SchedulerLike` is the contract of its methods.

    The books know where each request is and change that when told to; everything here is a decision.
    """

    def __init__(self, settings: SchedulerSettings, cost: CostSource, books: Books | None = None) -> None:
        self.settings = settings
        self._books = Books(settings, cost) if books is None else books
        self.pool = self._books.pool
        self._tables = self._books.tables
        self._queue = self._books.queue
        self._running = self._books.running
        self._turns = self._books.turns
        self._speculator = self._books.speculator
        self._cost = self._books.cost  # as it was when the iteration began
        self._now = 0.0

    def keep_places(self, tenant: str, sizes: Sequence[tuple[int, int]]) -> Places:
        return self._books.keep_places(tenant, sizes)

    def give_back(self, places: Places) -> None:
        self._queue.kept.give_back(places)

    def add(self, request: Request, now: float, places: Places | None = None) -> None:
        self._books.add(request, now, places)

    def schedule(self, now: float) -> Batch:
        self._begin(now)
        self._books.expire_overdue()
        plan = Plan(self.settings.max_batch_tokens)
        self._plan_decodes(plan)
        self._plan_chunks(plan)
        self._plan_drafts(plan)
        batch = plan.batch()
        self._books.put_in_flight(batch)
        return batch

    def update(self, batch: Batch, sampled: Sampled, now: float) -> list[Progress]:
        self._begin(now)
        return self._books.update(batch, sampled)

    def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT) -> Request | None:
        return self._books.abort(request_id, reason)

    def finish(self, request_id: str, reason: FinishReason) -> Request | None:
        return self._books.abort(request_id, reason)

    def take_finished(self) -> list[Request]:
        return self._books.take_finished()

    def has_work(self) -> bool:
        return len(self._books) > 0

    def wake_at(self) -> float | None:
        return None

    def load(self) -> Load:
        return self._books.load()

    def waiting(self) -> dict[tuple[int, str], Backlog]:
        return self._books.waiting()

    def check_integrity(self) -> None:
        self._books.check_integrity()

    # -- one iteration ---------------------------------------------------------------------------------

    def _begin(self, now: float) -> None:
        self._now = now
        self._cost = self._books.cost
        self._books.begin(now)

    def _plan_decodes(self, plan: Plan) -> None:
        """Plan the streams first: every running request with one token left to compute."""
        for request in self._running:
            if request.priority >= SPARE_CLASS and self._running.stand_aside():
                return  # nor do those behind it
            position = request.num_computed_tokens
            if position + 1 != len(request.tokens) or request.state is not RequestState.RUNNING:
                continue  # a prompt under way, or preempted for one of higher rank
            if self._tables.writable(request, position) or self._make_room(request, position + 1, plan):
                plan.add_decode(request, position)

    def _plan_chunks(self, plan: Plan) -> None:
        """Plan prompts: of each class those under way, then those that wait, before any of a less urgent class."""
        if self.settings.ageing_seconds is not None:
            self._running.lift_unserved(self._now - self.settings.ageing_seconds)
        reached: int | None = None
        for request in self._prompts(plan):
            if request in plan or request.state is not RequestState.RUNNING:
                continue
            if request.priority >= SPARE_CLASS and self._running.stand_aside():
                break
            priority = self._running.priority(request)
            if priority != reached:
                self._admit(plan, above=priority)
                reached = priority
            self._admit_before(request, plan)
            if request.state is RequestState.RUNNING:  # not displaced by one that was admitted
                self._books.take_over(request)
                if not self._plan_chunk(request, plan):
                    return
        self._admit(plan)

    def _prompts(self, plan: Plan) -> list[Request]:
        """The prompts under way: by rank, and those of several tenants in one class by their turns."""
        found = [one for one in self._running if one not in plan and one.state is RequestState.RUNNING]
        if len({request.tenant for request in found}) > 1:
            found.sort(key=lambda request: (self._running.priority(request), self._turns.due(request)))
        return found

    def _plan_chunk(self, request: Request, plan: Plan) -> bool:
        """Plan the next chunk of a running request; False when this iteration takes no more prompt tokens.

        A request whose next block is computed by another chunk of this very iteration sits it out and takes
        the block over in the next: a burst of requests with one system prompt computes it once.
        """
        start = request.num_computed_tokens
        if request.is_scoring:
            if plan.scored >= MOST_SCORED:  # the next iteration has room for it, and this one for others
                return True
        elif plan.computes(self._tables.next_block(request, start)):
            return True
        count = self._chunk_size(request, start, self._running.priority(request), plan)
        if count and self._make_room(request, start + count, plan):
            plan.add_chunk(request, start, count, self._tables.touched(request, start, start + count))
            self._running.served(request, self._now, done=start + count == request.num_tokens)
            self._turns.advance(request, start + count)
        return count > 0

    def _chunk_size(self, request: Request, start: int, priority: int, plan: Plan) -> int:
        """Return how many tokens of `request` run from `start` on: what the budget and, beside decodes, the ITL target
        allow, and where they are scored, what there is room for.

        Streams that are all of a less urgent class than `priority` wait for the prompt. What gets only what is spare
        takes no longer at once than streams would wait for it: somebody may come meanwhile. The first chunk gets a few
        tokens however long the decodes take by themselves, or one beside a more urgent stream: prompts never starve.
        """
        limit = min(request.num_tokens - start, plan.budget)
        if request.is_scoring:
            limit = min(limit, MOST_SCORED - plan.scored)
        first = next(iter(plan.decodes), None)  # the most urgent: decodes are planned by rank
        urgent = priority + 1 if first is None else self._running.priority(first)
        if limit and (urgent <= priority or priority >= SPARE_CLASS):
            smallest = 0 if plan.chunks else min(limit, 1 if urgent < priority else SMALLEST_CHUNK)
            target, cost = self._itl_target(plan), self._cost
            fitting = cost.largest_chunk(target, start, limit, *plan.work)
            limit = max(fitting, smallest)
        return limit

    def _itl_target(self, plan: Plan) -> float:
        """Seconds that the streams of this iteration may wait for it."""
        if self.settings.itl_target is not None:
            return self.settings.itl_target
        alone = self._cost.seconds(len(plan.decodes), len(plan.decodes), plan.decode_pairs)
        without_token = len(self._queue) + len(self._running) - len(plan.decodes)
        pressed = without_token >= self.settings.backlog
        floor = self.settings.itl_backlog if pressed else self.settings.itl_floor
        return max(self.settings.itl_stretch * alone, floor)

    def _plan_drafts(self, plan: Plan) -> None:
        """Add guessed tokens to the decodes when they pay: never while prompts need the same compute."""
        if plan.chunks or self._queue.has_eligible or not self._speculator.worthwhile(self._cost, plan):
            return
        for request, piece in plan.decodes.items():
            if request.ends_with_prompt:  # its last token
                continue
            room = min(self._tables.room(request), plan.budget, self._output_left(request) - 1)
            drafts = self._speculator.propose(request, room, self._cost, plan)
            if drafts:
                self._tables.prepare_write(request, piece.start + 1 + len(drafts))
                plan.add_drafts(request, drafts)

    def _output_left(self, request: Request) -> int:
        return min(
            request.params.max_tokens - request.num_output_tokens,
            self.settings.max_model_len - request.num_tokens,
        )

    # -- admission -------------------------------------------------------------------------------------

    def _admit(self, plan: Plan, above: int | None = None) -> None:
        """Admit from the queue, in its order, while seats, blocks and budget last; only classes before `above`.

        Not in an iteration in which memory ran short.
        """
        while plan.budget and not plan.preempted:
            turn = self._queue.peek(self._now)
            if turn is None:
                return
            request, priority = turn
            if above is not None and priority >= above:
                return
            if priority >= SPARE_CLASS and self._running.stand_aside():
                return
            if self._over_share(request.tenant):
                request = self._within_share(request)
            opening = self._books.opening(request)
            if self._too_late(request, opening):
                self._books.expire(request)
                continue
            if not self._chunk_size(request, opening.computed, priority, plan):
                return
            if self._fits(opening):
                plan.copies += self._books.start(request, priority, opening)
                self._plan_chunk(request, plan)
            elif not self._displace(self._running.below(priority), opening, plan) and not self._take_turns(
                priority, plan
            ):
                return

    def _admit_before(self, running: Request, plan: Plan) -> None:
        """Admit those of other tenants whose prompts are due before that of `running`, where they have a seat."""
        priority = self._running.priority(running)
        while plan.budget and not plan.preempted and running.state is RequestState.RUNNING:
            found = self._due_before(running)
            if found is None:
                return
            request, opening = found
            if self._too_late(request, opening):
                self._books.expire(request)
                continue
            if not self._chunk_size(request, opening.computed, priority, plan):
                return
            if self._fits(opening):
                plan.copies += self._books.start(request, priority, opening)
                self._plan_chunk(request, plan)
            elif not self._claims(request) or not self._take_turns(priority, plan):
                return

    def _due_before(self, running: Request) -> tuple[Request, Opening] | None:
        """The next request of a tenant that got nothing for long, where it is due before `running`, and would have been
        served before the one whose turn it is if that had not to wait either.

        Not one that goes on where `running` does, which computes that for both.
        """
        turn = self._queue.peek(self._now)
        if turn is None or self._queue.best_class != running.priority or turn[0].priority != running.priority:
            return None
        passed = self._queue.service(turn[0]) + turn[0].num_tokens
        for request, _ in islice(self._queue.unserved(), MOST_PASSING):
            is_next = self._queue.service(request) + request.num_tokens <= passed
            if request.tenant == running.tenant or not is_next or self._over_share(request.tenant):
                continue
            opening = self._books.opening(request)
            start, at = opening.computed, running.num_computed_tokens
            if self._turns.would_be_due(request.tenant, request.num_tokens - start) >= self._turns.due(
                running
            ):
                continue
            following = self._tables.next_block(request, start)
            if following is None or following != self._tables.next_block(running, at):
                return request, opening
        return None

    def _too_late(self, request: Request, opening: Opening) -> bool:
        """Whether a request that starts now would miss its deadline in any case."""
        if request.deadline is None:
            return False
        shortest_s = min_seconds(request, opening.computed, self.settings, self._cost)
        return self._now + shortest_s > request.deadline

    def _fits(self, opening: Opening) -> bool:
        """Whether there is a seat, and memory for all present tokens with a reserve for those that run."""
        if len(self._running) >= self.settings.seats:
            return False
        return opening.needed + self._reserve(len(self._running)) <= self.pool.num_available

    def _reserve(self, running: int) -> int:
        """Blocks kept for growth: one for each request that runs, at least 1 % of the pool; 0 when none runs."""
        return max(running, self.pool.num_blocks // 100) if running else 0

    def _displace(self, lower: Iterable[Request], opening: Opening, plan: Plan) -> bool:
        """Preempt just enough of `lower` for `opening` to fit; nobody, and False, if that cannot be."""
        victims: list[Request] = []
        for victim, freed in self._tables.freed_by(lower, keep=opening.kept):
            victims.append(victim)
            left = len(self._running) - len(victims)
            available = self.pool.num_available + freed
            if left < self.settings.seats and opening.needed + self._reserve(left) <= available:
                for request in victims:
                    self._preempt(request, plan)
                return True
        return False

    # -- between tenants -------------------------------------------------------------------------------

    def _take_turns(self, priority: int, plan: Plan) -> bool:
        """Start a request whose tenant has waited for too long, where others of its class have more than their share.

        Its tenant got nothing for `tenant_patience`. So that is how long one waits for each seat, however many
        requests another one sends and however long they run. One in an iteration: the request of highest rank, which
        never gives way here, advances between any two.
        """
        waiting = None if plan.taken_over else self.next_claim()
        if waiting is None or self._now < waiting[1]:
            return False
        request = waiting[0]
        opening = self._books.opening(request)
        if self._too_late(request, opening):
            self._books.expire(request)
            return True
        if not self._chunk_size(request, opening.computed, priority, plan):
            return False
        if self._over_share(request.tenant, opening.needed):
            return False  # it would be the next to give way
        if not self._displace(self._givers(request.tenant, priority), opening, plan):
            return False
        plan.taken_over = True
        plan.copies += self._books.start(request, priority, opening)
        self._plan_chunk(request, plan)
        return True

    def next_claim(self) -> tuple[Request, float] | None:
        """The waiting request that may take over the place of another tenant's soonest, and from when on.

        None while nobody holds two seats more than a tenant that waits, nor more memory than `tenant_kv_share`.
        Those passed over hold seats, so that no more of them are looked at than there are seats.
        """
        share_counts = self.settings.tenant_kv_share < 1.0
        memory = share_counts and any(self._over_share(request.tenant) for request in self._running)
        seats = self._running.seats(self._queue.best_class)
        for request, since in self._queue.unserved() if memory or seats.most > 1 else ():
            if seats.of(request.tenant) + 2 <= seats.most or (
                memory and not self._over_share(request.tenant)
            ):
                return request, since + self.settings.tenant_patience
        return None

    def _claims(self, request: Request) -> bool:
        """Whether a waiting request is the next to take over a place."""
        claim = self.next_claim()
        return claim is not None and claim[0] is request

    def _givers(self, tenant: str, priority: int) -> Iterator[Request]:
        """Those that may have to give way to a request of `tenant` in class `priority`, lowest rank first: of the
        tenant that holds most seats until both hold as many, and of tenants that hold more memory than they may."""
        seats = self._running.seats(priority)
        more: dict[str | None, int] = {seats.fullest: (seats.most - seats.of(tenant)) // 2}
        given: Counter[str] = Counter()  # blocks, at most
        for request in self._running.of_class(priority):
            giver = request.tenant
            if giver == tenant or request is self._running.highest:
                continue
            if more.get(giver, 0) > 0 or self._over_share(giver, -given[giver]):
                more[giver] = more.get(giver, 0) - 1
                given[giver] += len(request.block_table)
                yield request

    def _over_share(self, tenant: str, more: int = 0) -> bool:
        """Whether the running requests of `tenant`, with `more` blocks, fill more memory than it may while others
        wait."""
        share = self.settings.tenant_kv_share
        return share < 1.0 and self.pool.referenced_of(tenant) + more > share * self.pool.num_blocks

    def _within_share(self, request: Request) -> Request:
        """The next request of a tenant that is within its share of the memory; `request` itself if there is none."""
        turns = self._queue.by_service()
        return next((one for one in turns if not self._over_share(one.tenant)), request)

    # -- giving way ------------------------------------------------------------------------------------

    def _make_room(self, request: Request, end: int, plan: Plan) -> bool:
        """Make tokens up to `end` writable, preempting by rank; False when that took `request` itself."""
        while self._tables.blocks_to_write(request, end) > self.pool.num_available:
            plan.preempted = True
            victim = self._running.lowest
            self._preempt(victim, plan)
            if victim is request:
                return False
        plan.copies += self._tables.prepare_write(request, end)
        return True

    def _preempt(self, request: Request, plan: Plan) -> None:
        """Take `request` out of this iteration and off the machine; it is computed again later."""
        plan.drop(request)
        self._books.set_back(request)
