"""The real server with its default model as edge, a stub with latency, price and failures as cloud."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.routes.routes import PRICE, Routed, answer, ask, routed
from tests.routes.stub import BROKEN, BUSY, CUT, OK, Stub, serving
from tests.server.running import free_port, wait_until_ready
from weighbridge.cost.usage import Usage
from weighbridge.errors import Refused
from weighbridge.routes.settings import CascadeSettings
from weighbridge.ticket import Ticket

QUESTIONS = (
    "What is the capital of {}?",
    "Write one line about {}.",
    "How many letters has {}?",
    "Spell {}.",
)
WORDS = ("France", "Peru", "copper", "rain", "seven", "a river", "Oslo", "bread", "glass", "tea")


@pytest.fixture
def edge(default_model_path: Path) -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "weighbridge", "serve", "--port", str(port)])
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process, 120)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.mark.proof
@pytest.mark.timeout(600)
async def test_two_hundred_at_once_agree_with_the_cloud_to_the_cent(edge: str) -> None:
    rng = random.Random(3)
    fates = [rng.choices((OK, BUSY, BROKEN, CUT), (80, 7, 7, 6))[0] for _ in range(2000)]
    cloud = Stub(fates, answer=lambda body: "word " * 60, first=0.3, pause=0.005)
    async with (
        serving(cloud) as urls,
        routed(
            [edge, urls[0]], cascade=CascadeSettings(threshold=0.45), model="smollm2-135m-instruct"
        ) as over,
    ):
        tickets = await asyncio.gather(*(one(over, rng.random() < 0.5, rng, number) for number in range(200)))
        spent = over.ledger.spent()
        assert over.in_flight() == 0
    placed = Counter(ticket.placement for ticket in tickets)
    billed = sum(PRICE.usd(Usage(one.prompt_tokens, one.output_tokens)) for one in cloud.log)
    claimed = sum(ticket.cost_usd for ticket in tickets)
    whole = sum(PRICE.usd(Usage(one.prompt_tokens, one.output_tokens)) for one in cloud.log if one.complete)
    certain = sum(ticket.cost_usd for ticket in tickets if not ticket.cost_estimated)
    print(
        f"\n{dict(placed)}; cloud calls {len(cloud.log)}: {dict(Counter(one.fate for one in cloud.log))}; "
        f"degraded {sum(t.degraded for t in tickets)}; errors {sum(t.error is not None for t in tickets)}; "
        f"billed {billed:.6f}, tickets {claimed:.6f}, ledger {spent.settled:.6f} USD"
    )
    broken = [ticket for ticket in tickets if ticket.error is not None]
    assert all("bytes are out" in ticket.decisions[-1] for ticket in broken)
    assert len(broken) <= sum(one.fate == CUT for one in cloud.log)
    assert placed["edge"] > 10
    assert placed["cloud"] > 10
    assert spent.reserved == 0.0
    assert claimed == pytest.approx(spent.settled, abs=1e-6)
    assert abs(claimed - billed) < 0.005  # to the cent; what was cut is counted, not reported
    assert certain <= whole + 1e-6
    assert claimed == pytest.approx(sum(leg.usd for ticket in tickets for leg in ticket.legs), abs=1e-6)


async def one(over: Routed, stream: bool, rng: random.Random, number: int) -> Ticket:
    text = rng.choice(QUESTIONS).format(rng.choice(WORDS))
    placement = "prefer_cloud" if number % 5 == 0 else "auto"
    request = ask(text, stream=stream, max_tokens=40, temperature=0, tenant=f"t{number}", placement=placement)
    try:
        return (await answer(over, request)).ticket
    except Refused:
        [ticket] = [t for t in over.tickets.recent(1000) if t.tenant == f"t{number}"]
        return ticket
