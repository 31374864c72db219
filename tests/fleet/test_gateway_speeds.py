"""A replica that tells its speed beside one that does not, on real sockets."""

from __future__ import annotations

import asyncio

from tests.fleet.backends import STEP_COST, Backend, fleet, until

#: A page of vLLM's metrics: what runs there, and not a word of how fast.
PAGE = b'vllm:num_requests_running{model_name="m"} 0.0\nvllm:num_requests_waiting{model_name="m"} 0.0\n'


async def test_one_that_tells_its_speed_is_not_starved_by_one_that_does_not() -> None:
    """Both take 60 ms for an answer and give one after the other; the first says so, at many times the default."""
    told = {name: 20 * value for name, value in STEP_COST.items()}
    backends = [
        Backend("told", tokens=3, first_delay=0.05, turns=asyncio.Lock(), load={"step_cost": told}),
        Backend("silent", tokens=3, first_delay=0.05, turns=asyncio.Lock(), page=PAGE),
    ]
    async with fleet(*backends):
        config = (
            "health: {interval: 0.05, slow_start: 0}\nmodels:\n  m:\n    replicas:\n"
            f"      - {{name: told, url: '{backends[0].url}', dialect: weighbridge}}\n"
            f"      - {{name: silent, url: '{backends[1].url}', dialect: vllm}}\n"
        )
        async with fleet(config=config) as front:
            members = front.gateway.pools["m"].members
            await until(lambda: members["told"].state.speed_known)
            assert not members["silent"].state.speed_known

            async def one(number: int) -> None:
                await asyncio.sleep(number / 30)
                await front.stream(user=f"u{number}")

            await asyncio.gather(*(one(number) for number in range(24)))
            counts = [len(backend.calls) for backend in backends]
            assert sum(counts) == 24
            assert min(counts) >= 8, counts
            decisions = [line for ticket in front.gateway.tickets.recent(24) for line in ticket.decisions]
            assert any("the speed of silent is not learned yet" in line for line in decisions)
            assert any("learned from" in line for line in decisions)
            assert members["silent"].state.speed_known
            shown = members["silent"].as_dict(front.gateway.clock())
            assert shown["speed"].startswith("learned from")
            assert shown["step_cost"] is not None
            async with front.client.get(front.url + "/metrics") as page:
                assert 'weighbridge_prediction_error{model="m",replica="silent"}' in await page.text()
