"""Traces and workloads that are none: one sentence with file and line, never a traceback or a run without end."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from weighbridge.errors import BadInput
from weighbridge.workload.servegen import read_clients, rows
from weighbridge.workload.synthetic import Synthetic
from weighbridge.workload.traces import read_rows

_AZURE = b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6,4,3\n"
_PLAIN = b'{"at": 1, "prompt_tokens": 3, "output_tokens": 3}\n'


@pytest.mark.parametrize(
    ("name", "more", "says"),
    [
        ("a.csv", b"2023-11-16 18:15:47.6,1e999,3\n", ":3: ContextTokens"),
        ("a.csv", b"2023-11-16 18:15:47.6,4\n", ":3: GeneratedTokens is None"),
        ("a.csv", b"2023-11-16 18:15:47.6,999999999999,3\n", ":3: ContextTokens"),
        ("a.csv", b"2023-11-16 18:15:47.6,\xff\xfe,3\n", "no text in UTF-8"),
        ("a.csv", b'2023-11-16 18:15:47.6,"4' + b"4" * 140_000 + b'",3\n', "is not CSV"),
        ("a.jsonl", b'{"at": 1, "prompt_tokens": 1e999, "output_tokens": 3}', ":2: prompt_tokens is inf"),
        ("a.jsonl", b'{"at": 1, "prompt_tokens": 2.5, "output_tokens": 3}', ":2: prompt_tokens is 2.5"),
        ("a.jsonl", b'{"at": 1, "prompt_tokens": true, "output_tokens": 3}', ":2: prompt_tokens is True"),
        ("a.jsonl", b'{"at": NaN, "prompt_tokens": 1, "output_tokens": 3}', ":2: at is nan"),
        ("a.jsonl", b'{"at": 1, "prompt_tokens": 1, "output_tokens": 3, "tenant": []}', ":2: tenant is []"),
        ("a.jsonl", b'{"at": 1, "prompt_tokens": 1, "output_tokens": 3, "priority": 1e9}', ":2: priority"),
        ("a.jsonl", b'{"at": 1, "prompt_tokens": 1, "output_tokens": 3, "deadline": -1}', ":2: deadline"),
        ("a.jsonl", b'{"timestamp": 1e999, "input_length": 1, "output_length": 3}', ":2: timestamp is inf"),
        ("a.jsonl", b"[" * 200_000, ":2 is not JSON"),
        ("a.jsonl", b"\xff\xfe", "no text in UTF-8"),
        ("a.jsonl", b"7", ":2: expected an object"),
    ],
)
def test_lines_that_are_no_requests_are_named(tmp_path: Path, name: str, more: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes((_AZURE if name.endswith("csv") else _PLAIN) + more)
    with pytest.raises(BadInput) as refused:
        read_rows(path)
    assert str(refused.value).startswith(str(path))
    assert says in str(refused.value)


_LENGTHS = '{"0": {"input_tokens": "{5: 1.0}", "output_tokens": "{3: 1.0}"}}'


@pytest.mark.parametrize(
    ("window", "lengths", "says"),
    [
        ("0,inf,1,Gamma,1,1", _LENGTHS, "trace.csv:2: "),
        ("0,1,1,Gamma,0,1", _LENGTHS, "trace.csv:2: "),
        ("0,1,1,Weibull,1,-1", _LENGTHS, "trace.csv:2: "),
        ("0,1,1,Gamma,nan,1", _LENGTHS, "trace.csv:2: "),
        ("-5,1,1,,0,0", _LENGTHS, "trace.csv:2: "),
        ("0,1,1,Gamma,1", _LENGTHS, "trace.csv:2: "),
        ("0,1,1,,0,0", "[]", "dataset.json: expected"),
        ("0,1,1,,0,0", '{"nan": {"input_tokens": "", "output_tokens": ""}}', "dataset.json: expected"),
        (
            "0,1,1,,0,0",
            '{"0": {"input_tokens": "{1.2.3: 1}", "output_tokens": ""}}',
            "dataset.json: expected",
        ),
    ],
)
def test_servegen_clients_that_cannot_be_are_named(
    tmp_path: Path, window: str, lengths: str, says: str
) -> None:
    (tmp_path / "chunk-1-trace.csv").write_text(f"600,0.1,1,,0,0\n{window}\n")
    (tmp_path / "chunk-1-dataset.json").write_text(lengths)
    with pytest.raises(BadInput) as refused:
        read_clients(tmp_path)
    assert says in str(refused.value)


def test_servegen_clients_that_can_be_are_read(tmp_path: Path) -> None:
    (tmp_path / "chunk-1-trace.csv").write_text("0,0.5,1,Gamma,1,2\n600,0,0,,0,0\n")
    (tmp_path / "chunk-1-dataset.json").write_text(_LENGTHS)
    found = rows(read_clients(tmp_path), random.Random(0))
    assert 200 < len(found) < 400
    assert {(row.prompt_tokens, row.output_tokens, row.tenant) for row in found} == {(5, 3, "chunk-1")}


@pytest.mark.parametrize(
    "text", ["poisson:rate=inf", "poisson:rate=nan", "sessions:think=inf", "gamma:cv=inf"]
)
def test_workloads_without_end_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="workload"):
        Synthetic.parse(text)
