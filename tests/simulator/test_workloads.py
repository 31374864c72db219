"""Traces, synthetic workloads, step costs and the command line: what goes in, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from weighbridge.cost import StepCost
from weighbridge.errors import BadInput
from weighbridge.simulator.step_costs import fit_timings, read_step_cost
from weighbridge.workload.lengths import Lengths
from weighbridge.workload.synthetic import Synthetic, from_rows
from weighbridge.workload.traces import TraceOptions, read_rows


@pytest.mark.parametrize(
    "spec",
    [
        "poisson:rate=8",
        "gamma:rate=8,cv=4",
        "constant:rate=8",
        "bursts:rate=8",
        "heavy_tail:rate=8",
        "shared_prefix:rate=8",
    ],
)
def test_arrivals_keep_their_rate_and_order(spec: str) -> None:
    requests = list(Synthetic.parse(f"{spec},requests=4000").generate(1))
    times = [one.at for one in requests]
    assert times == sorted(times)
    assert len(requests) / times[-1] == pytest.approx(8.0, rel=0.2)
    assert len({one.id for one in requests}) == 4000
    assert list(Synthetic.parse(f"{spec},requests=4000").generate(1)) == requests


def test_turns_begin_with_all_that_was_said() -> None:
    requests = {one.id: one for one in Synthetic.parse("sessions:requests=200,turns=5").generate(0)}
    following = [one for one in requests.values() if one.follows]
    assert len(following) > 100
    for one in following:
        before = requests[one.follows or ""]
        assert one.session == before.session
        assert one.prompt_tokens > before.prompt_tokens + before.output_tokens
        ids = one.token_ids()
        assert ids[: before.prompt_tokens] == before.token_ids()
        assert ids[before.prompt_tokens] == before.answer or before.output_tokens == 1


def test_mooncake_blocks_are_shared_as_named(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    rows = [
        {"timestamp": 0, "input_length": 1300, "output_length": 4, "hash_ids": [7, 8, 9]},
        {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [7, 8, 10]},
        {"timestamp": 3000, "input_length": 600, "output_length": 5, "hash_ids": [8, 7]},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    first, second, third = from_rows(read_rows(path, TraceOptions(smear=True)))
    assert (first.at, second.at, third.at) == (0.0, 1.5, 3.0)
    a, b, c = first.token_ids(), second.token_ids(), third.token_ids()
    assert len(a) == 1300
    assert a[:1024] == b[:1024]
    assert a[1024] != b[1024]
    assert a[0] != c[0]


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "TIMESTAMP,ContextTokens\n", "there is no GeneratedTokens"),
        ("a.csv", f"{AZURE}\n", "holds no requests"),
        (
            "a.csv",
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6,-4,3\n",
            "a.csv:2: ContextTokens is '-4'",
        ),
        ("a.csv", f"{AZURE}\nyesterday,4,3\n", "is not a date and time"),
        ("a.jsonl", "{\n", "a.jsonl:1 is not JSON"),
        ("a.jsonl", "", "holds no requests"),
        ("a.jsonl", '{"at": -1, "prompt_tokens": 3, "output_tokens": 3}', "at is -1"),
        ("a.jsonl", '{"at": 1, "prompt_tokens": 3}', "output_tokens is None"),
        ("a.jsonl", '{"timestamp": 1, "input_length": 3, "output_length": 2, "hash_ids": ["x"]}', "hash_ids"),
    ],
)
def test_traces_that_cannot_be_used_are_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(BadInput) as error:
        read_rows(path)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "text", ["", "-3", "0", "uniform:9:3", "lognormal:5", "what:1", "200:1", "exponential:inf"]
)
def test_lengths_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(BadInput):
        Lengths.parse(text)


@pytest.mark.parametrize(
    "text",
    ["what", "poisson:rate=0", "poisson:speed=3", "poisson:rate", "sessions:turns=0.5", "poisson:requests=x"],
)
def test_workloads_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(BadInput):
        Synthetic.parse(text)


def test_no_request_gives_its_length_away() -> None:
    """Schedulers and policies see `max_tokens`, which must not depend on the request's own output."""
    requests = list(islice(Synthetic.parse("poisson").generate(0), 100))
    assert len({one.max_tokens for one in requests}) == 1
    assert len({one.output_tokens for one in requests}) > 20


def test_timings_become_the_step_cost_they_came_from(tmp_path: Path) -> None:
    cost = StepCost(0.002, 0.01, 1e-4, 2e-7, 3e-5)
    shapes = [(n, n, n * c) for n in (1, 4, 16, 64) for c in (100, 1000, 4000)]
    shapes += [(t, 1, t * t // 2) for t in (64, 100, 256, 512, 1024, 2048)]
    lines = ["tokens,sequences,context_tokens,seconds"]
    lines += [f"{t},{s},{c},{cost.seconds(t, s, c)}" for t, s, c in shapes]
    path = tmp_path / "timings.csv"
    path.write_text("\n".join(lines))
    found = fit_timings(path)
    assert found.per_token == pytest.approx(cost.per_token, rel=0.05)
    assert found.seconds(32, 32, 32_000) == pytest.approx(cost.seconds(32, 32, 32_000), rel=0.02)
    stored = tmp_path / "cost.json"
    stored.write_text(json.dumps({"step_cost": cost.as_dict()}))
    assert read_step_cost(stored) == cost
    stored.write_text('{"step_cost": {"overhead": -1}}')
    with pytest.raises(BadInput, match="overhead"):
        read_step_cost(stored)


SIMULATE = (sys.executable, "-m", "weighbridge", "simulate")
SMALL = "sessions:rate=3,requests=60,output=lognormal:40:0.5,think=1"


def simulate(*options: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*SIMULATE, *options], capture_output=True, timeout=110)


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    options = ("--workload", SMALL, "--replicas", "3", "--seed", "4", "--seeds", "2", "--json")
    first, second = simulate(*options, "--html", str(page)), simulate(*options)
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    result = json.loads(first.stdout)
    assert result["requests"] == 60
    assert result["prefix_hit_rate"] > 0.3
    assert result["intervals"]["ttft_ms"]["p50"]["low"] <= result["ttft_ms"]["p50"]
    assert "<svg" in page.read_text()
    assert "<script" not in page.read_text()


def test_prices_say_where_they_are_from() -> None:
    fast = ("--model", "llama-3.1-8b", "--device", "H100-80GB", "--max-model-len", "16384")
    listed = json.loads(simulate("--workload", SMALL, *fast, "--json").stdout)
    assert listed["price"]["usd_per_replica_hour"] > 0
    assert "list price of" in listed["price"]["source"]
    assert listed["price"]["source"] in listed["setup"]["price"]
    given = json.loads(simulate("--workload", SMALL, *fast, "--price", "2.5", "--json").stdout)
    assert given["price"] == {"usd_per_replica_hour": 2.5, "source": "as given with --price"}
    printed = simulate("--workload", SMALL, *fast).stdout.decode()
    assert "list price of" in printed


def test_comparison_and_sweep() -> None:
    compared = json.loads(
        simulate("--workload", SMALL, "--replicas", "2", "--compare", "policy=weigh,random", "--json").stdout
    )
    assert list(compared["compare"]) == ["weigh", "random"]
    fast = (
        "--model",
        "llama-3.1-8b",
        "--device",
        "H100-80GB",
        "--max-model-len",
        "16384",
        "--slo",
        "ttft=300ms",
    )
    swept = json.loads(
        simulate(
            "--workload",
            "poisson:requests=80,prompt=2000,output=50",
            *fast,
            "--sweep",
            "rate=1,400",
            "--json",
        ).stdout
    )["sweep"]
    assert swept["knee_rps"] == 1.0
    assert [point["rate"] for point in swept["points"]] == [1.0, 400.0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "give one of --trace FILE and --workload SPEC"),
        (("--trace", "nowhere.csv"), "nowhere.csv cannot be read"),
        (("--workload", SMALL, "--policy", "best"), "is not a policy"),
        (("--workload", SMALL, "--batching", "magic"), "use continuous or static"),
        (("--workload", SMALL, "--engine-profile", "tgi"), "use weighbridge or vllm"),
        (("--workload", SMALL, "--device", "H100-80GB"), "--model and --device go together"),
        (("--workload", SMALL, "--model", "llama-3.1-8b", "--device", "X9"), "X9"),
        (("--workload", SMALL, "--event", "5:fail:r7"), "'r7' is not there"),
        (("--workload", SMALL, "--slo", "ttft=-1s"), "ttft=500ms"),
        (("--workload", SMALL, "--compare", "colour=red"), "write NAME=VALUE"),
        (("--workload", SMALL, "--sweep", "rate=0"), "rate=auto"),
        (("--workload", SMALL, "--speeds", "1,-2"), "--speeds"),
        (("--workload", SMALL, "--limit", "5"), "write requests="),
        (("--workload", SMALL, "--tp", "2"), "--device"),
        (("--workload", SMALL, "--price", "inf"), "USD per replica-hour"),
        (("--workload", SMALL, "--html", "nowhere/page.html"), "a directory that exists"),
        (("--workload", SMALL, "--max-model-len", "10"), "no request fits"),
    ],
)
def test_bad_input_is_one_line(options: tuple[str, ...], said: str) -> None:
    result = simulate(*options)
    message = result.stderr.decode()
    assert (result.returncode, said in message, len(message.strip().splitlines())) == (2, True, 1), message
