"""One stream: what counts as a token's arrival, and what as a failure, however the bytes are cut."""

from __future__ import annotations

import itertools
import json

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.fake_server import Script, serving
from weighbridge.bench.client import StreamedAnswer, _StreamReader, complete, share_out

STREAM = (
    b': a comment\r\ndata: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}],"usage":null}\r\n\r\n'
    b'data: {"choices":[{"index":0,"delta":{"content":"say \\"hi\\""},"finish_reason":null}]}\r\n\r\n'
    b'data: {"choices":[{"index":0,"delta":{"content":"\\u00fc"},"finish_reason":null}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}\n\ndata: [DONE]\n\n'
)


def read(pieces: list[bytes]) -> StreamedAnswer:
    outcome = StreamedAnswer(0.0)
    reader = _StreamReader(outcome)
    for number, piece in enumerate(pieces):
        reader.feed(piece, float(number))
    reader.close()
    return outcome


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_the_cuts_of_the_network_change_nothing(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    outcome = read([STREAM[a:b] for a, b in itertools.pairwise(edges)])
    assert outcome.error is None
    assert outcome.counted
    assert (outcome.prompt_tokens, outcome.output_tokens) == (7, 2)
    assert len(outcome.chunks) == 2
    assert outcome.sizes == [len(rb"say \"hi\""), len(rb"\u00fc")]


def test_an_opening_and_a_closing_without_text_are_no_tokens() -> None:
    outcome = read([line + b"\n" for line in STREAM.split(b"\n")])
    assert outcome.chunks == [3.0, 5.0]  # the lines with text; the opening is line 1, the closing line 7


def test_tokens_that_spell_no_text_still_arrive() -> None:
    outcome = read(
        [
            b'data: {"choices":[{"index":0,"text":"","finish_reason":"length"}]}\n\n',
            b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n',
        ]
    )
    assert outcome.error is None
    assert outcome.chunks == [0.0]
    assert outcome.output_tokens == 1


def test_a_chunk_of_several_tokens_counts_for_each_of_them() -> None:
    outcome = StreamedAnswer(0.0, 1, 6, [1.0, 2.0, 3.0], 3.0, sizes=[5, 5, 15])
    assert outcome.gaps == [1.0, 1.0]
    # Five gaps between six tokens: one token and a surplus of 3 * 5/20 in the second chunk, the rest in the third.
    assert outcome.token_gaps == pytest.approx([0.5, 0.5, 1 / 3, 1 / 3, 1 / 3])
    assert sum(outcome.token_gaps) == pytest.approx(2.0)


@given(st.integers(1, 500), st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_sharing_out_loses_no_token(surplus: int, sizes: list[int]) -> None:
    counts = share_out(surplus, sizes)
    assert sum(counts) == surplus + len(sizes)
    assert min(counts) >= 1


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (Script(fail_after=2), "out of memory"),
        (Script(fail_after=0), "out of memory"),
        (Script(done=False, finish=False), "ended without"),
        (Script(chunks=[], usage=False), "no tokens"),
        (Script(hang=True), "no end within 0.2 s"),
        (Script(takes_ids=False), "HTTP 422"),
    ],
)
async def test_failures_are_told_and_never_raised(script: Script, message: str) -> None:
    if script.chunks == []:
        script.chunks = [0]  # one event with an empty text
        script.finish = False
    async with serving(script) as url, aiohttp.ClientSession() as session:
        body = json.dumps({"prompt": [1, 2], "max_tokens": 4}).encode()
        outcome = await complete(session, f"{url}v1/completions", body, timeout=0.2, asked=4)
    assert outcome.error is not None
    assert message in outcome.error


async def test_nobody_there_is_an_error_of_the_request() -> None:
    async with aiohttp.ClientSession() as session:
        outcome = await complete(session, "http://127.0.0.1:9/v1/completions", b"{}", timeout=5)
    assert outcome.error is not None
    assert "Connect" in outcome.error


@pytest.mark.parametrize("usage", [True, False])
async def test_without_usage_chunks_are_counted(usage: bool) -> None:
    async with serving(Script(usage=usage, empty_finish=True)) as url, aiohttp.ClientSession() as session:
        body = json.dumps({"prompt": [1, 2], "max_tokens": 4}).encode()
        outcome = await complete(session, f"{url}v1/completions", body, timeout=5, asked=4)
    assert outcome.error is None
    assert outcome.counted is usage
    assert (outcome.output_tokens, len(outcome.chunks)) == (4, 4)
    assert outcome.started < outcome.chunks[0] <= outcome.chunks[-1] <= outcome.finished
