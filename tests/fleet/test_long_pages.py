"""What a replica tells of itself is read in time that grows with it alone, and a long page while others go on."""

from __future__ import annotations

import asyncio
from time import thread_time

import pytest

from tests.fleet.backends import Backend, fleet, until
from weighbridge.fleet.load.dialects import Samples

RUNNING = b"vllm:num_requests_running 3\n"


@pytest.mark.parametrize("line", [b"a{\n", b'a{b="', b"a", b"a ", b"a{} ", b"\n", b"a\n", b"#"])
def test_a_page_of_metrics_is_read_in_time_that_grows_with_it_alone(line: bytes) -> None:
    """Lines that open labels and do not close them took the square of the page: 48 kB half a second, 4 MiB an hour."""
    page = line * ((1 << 20) // len(line))
    began = thread_time()
    samples = Samples(page + b"\n" + RUNNING)
    assert thread_time() - began < 2.0
    assert samples.count("vllm:num_requests_running") == 3


async def test_a_long_page_keeps_out_nobody() -> None:
    """The loop goes on while some megabytes of metrics are read."""
    page = b"".join(b'vllm:other{le="%d"} 1\n' % number for number in range(150_000)) + RUNNING
    assert len(page) > 3 << 20
    backend, longest = Backend("a", dialect="vllm", page=page), 0.0
    async with fleet(backend) as front:
        member = next(iter(front.gateway.pools["m"].members.values()))
        probing, before = asyncio.create_task(member.replica.probe()), thread_time()
        while not probing.done():
            await asyncio.sleep(0)
            longest, before = max(longest, thread_time() - before), thread_time()
        assert (await probing).running_requests == 3
        await until(lambda: member.state.healthy)
    assert longest < 0.25
