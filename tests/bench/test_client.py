"""One stream: what counts as a token's arrival, and what as a failure, however the bytes are cut."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.fake_server import Script, serving
from weighbridge.bench.client import LoadClient, StreamedAnswer, _StreamReader, complete, share_out
from weighbridge.errors import BadInput

STREAM = (
    b': a comment\r\ndata: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}],"usage":null}\r\n\r\n'
    b'data: {"choices":[{"index":0,"delta":{"content":"say \\"hi\\""},"finish_reason":null}]}\r\n\r\n'
    b'data: {"choices":[{"index":0,"delta":{"content":"\\u00fc"},"finish_reason":null}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}\n\ndata: [DONE]\n\n'
)


def read(pieces: list[bytes]) -> StreamedAnswer:
    answer = StreamedAnswer(0.0)
    reader = _StreamReader(answer)
    for number, piece in enumerate(pieces):
        reader.feed(piece, float(number))
    reader.close(float(len(pieces)))
    return answer


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_the_cuts_of_the_network_change_nothing(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    answer = read([STREAM[a:b] for a, b in itertools.pairwise(edges)])
    assert answer.error is None
    assert answer.counted
    assert (answer.prompt_tokens, answer.output_tokens) == (7, 2)
    assert len(answer.chunks) == 2
    assert answer.sizes == [len(rb"say \"hi\""), len(rb"\u00fc")]


def test_an_opening_and_a_closing_without_text_are_no_tokens() -> None:
    answer = read([line + b"\n" for line in STREAM.split(b"\n")])
    assert answer.chunks == [4.0, 6.0]  # the ends of the events with text; the opening ends in line 2


def test_tokens_that_spell_no_text_still_arrive() -> None:
    answer = read(
        [
            b'data: {"choices":[{"index":0,"text":"","finish_reason":"length"}]}\n\n',
            b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n',
        ]
    )
    assert answer.error is None
    assert answer.chunks == [0.0]
    assert answer.output_tokens == 1


def test_a_chunk_of_several_tokens_counts_for_each_of_them() -> None:
    answer = StreamedAnswer(0.0, 1, 6, [1.0, 2.0, 3.0], 3.0, sizes=[5, 5, 15])
    assert answer.gaps == [1.0, 1.0]
    # Five gaps between six tokens: one token and a surplus of 3 * 5/20 in the second chunk, the rest in the third.
    assert answer.token_gaps == pytest.approx([0.5, 0.5, 1 / 3, 1 / 3, 1 / 3])
    assert sum(answer.token_gaps) == pytest.approx(2.0)


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
    async with serving(script) as url, LoadClient(url) as client:
        body = json.dumps({"prompt": [1, 2], "max_tokens": 4}).encode()
        answer = await complete(client, "/v1/completions", body, timeout=0.2, ordered_tokens=4)
    assert answer.error is not None
    assert message in answer.error


async def test_nobody_there_is_an_error_of_the_request() -> None:
    async with LoadClient("http://127.0.0.1:9") as client:
        answer = await complete(client, "/v1/completions", b"{}", timeout=5)
    assert answer.error is not None
    assert "Connect" in answer.error


@pytest.mark.parametrize("usage", [True, False])
async def test_without_usage_chunks_are_counted(usage: bool) -> None:
    async with serving(Script(usage=usage, empty_finish=True)) as url, LoadClient(url) as client:
        body = json.dumps({"prompt": [1, 2], "max_tokens": 4}).encode()
        answer = await complete(client, "/v1/completions", body, timeout=5, ordered_tokens=4)
    assert answer.error is None
    assert answer.counted is usage
    assert (answer.output_tokens, len(answer.chunks)) == (4, 4)
    assert answer.started < answer.chunks[0] <= answer.chunks[-1] <= answer.finished


async def test_every_request_has_a_connection_of_its_own() -> None:
    script = Script()
    async with serving(script) as url, LoadClient(url) as client:
        body = json.dumps({"prompt": [1, 2], "max_tokens": 2}).encode()
        for _ in range(3):
            assert (await complete(client, "/v1/completions", body, timeout=5)).error is None
    assert len(set(script.ports)) == 3


async def test_a_stream_that_forgets_its_last_empty_line_is_read_to_the_end() -> None:
    answer = read([b'data: {"choices":[{"index":0,"text":"a","finish_reason":"stop"}]}\n\ndata: [DONE]'])
    assert answer.error is None
    assert answer.chunks == [0.0]


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://h:1", "http://", ""])
def test_what_is_no_url_is_said_before_anything_is_sent(url: str) -> None:
    with pytest.raises(BadInput, match="is no server"):
        LoadClient(url)
