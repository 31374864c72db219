"""Files of released versions are read by this one; files of later versions are refused in a sentence."""

from __future__ import annotations

import gzip
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.state.released import errands
from tests.state.released.numbers_of_experts import BITS, matrix
from weighbridge.engine.calibration import CALIBRATION, CalibrationStore
from weighbridge.errors import BadInput, WeighbridgeError
from weighbridge.flow.journal.journal import Journal
from weighbridge.flow.journal.schema import JOURNAL
from weighbridge.flow.report.record_json import record_from_json
from weighbridge.models.compute.kernels.native_kernels import NativeKernels
from weighbridge.models.compute.linear_packed import PackedLinear, pack_codes
from weighbridge.models.experts.file import PACKED, MappedExperts
from weighbridge.models.files.quantized import GroupQuantized
from weighbridge.routes.budget import Budgets, Ledger, Reservation
from weighbridge.routes.difficulty.trained import ROUTER, load_router
from weighbridge.routes.learn.shadow import SHADOW
from weighbridge.routes.ledger.books import LEDGER
from weighbridge.state.database import damage
from weighbridge.state.lines import read_lines
from weighbridge.state.schema import VERSION_KEY, NewerSchema, Schema
from weighbridge.ticket import TICKETS, Ticket

RELEASED = sorted(
    path for path in (Path(__file__).parent / "released").iterdir() if (path / "ledger.sqlite").exists()
)
DAY = 1_790_086_400.0  # the second day of the ledger


@pytest.fixture(params=RELEASED, ids=lambda path: path.name)
def released(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of what a version wrote."""
    copied: Path = tmp_path / "released"
    shutil.copytree(request.param, copied)
    return copied


def test_a_ledger_keeps_its_money_and_its_open_reservations(released: Path) -> None:
    path = released / "ledger.sqlite"
    ledger = Ledger(path, Budgets(total=2.0, tenants={"ann": 1.0}), lambda: DAY)
    assert (ledger.spent().settled, ledger.spent().reserved) == (0.75, 0.25)
    assert ledger.spent(day="2026-09-21").settled == 0.8125
    assert ledger.spent("ann", day="2026-09-21").settled == 0.75
    assert ledger.spent("ann", "auto", "2026-09-21").settled == 0.25
    assert ledger.spent(route="auto", day="2026-09-21").settled == 0.3125
    assert "tenant ann's budget is exhausted" in str(ledger.reserve("ann", "auto", 0.5))
    ledger.settle(Reservation((released / "reservation.txt").read_text(), 250_000_000), 0.125)
    assert (ledger.spent().settled, ledger.spent().reserved) == (0.875, 0.0)
    assert damage(ledger._db) == ""
    ledger.close()
    again = Ledger(path, Budgets(), lambda: DAY)
    assert again.spent().settled == 0.875
    again.close()


def test_version_0_1_0_cannot_spend_beside_this_one(released: Path) -> None:
    """Its own statements, on a ledger that this version has migrated: it fails, so it refuses the cloud."""
    Ledger(released / "ledger.sqlite").close()
    with closing(sqlite3.connect(released / "ledger.sqlite", isolation_level=None)) as old:
        old.executescript(
            "CREATE TABLE IF NOT EXISTS spending (id TEXT PRIMARY KEY, day TEXT NOT NULL, tenant TEXT NOT NULL, "
            "route TEXT NOT NULL, reserved INTEGER NOT NULL, settled INTEGER, at REAL NOT NULL);"
            "CREATE TABLE IF NOT EXISTS taken (day TEXT NOT NULL, tenant TEXT NOT NULL, route TEXT NOT NULL, "
            "amount INTEGER NOT NULL, PRIMARY KEY (day, tenant, route));"
        )
        taken = old.execute("SELECT COALESCE(SUM(amount), 0) FROM taken WHERE day = '2026-09-22'").fetchone()
        assert taken == (1_000_000_000,)
        with pytest.raises(sqlite3.OperationalError):
            old.execute("INSERT INTO spending VALUES ('x', '2026-09-22', 'ann', 'auto', 5, NULL, 0.0)")
        with pytest.raises(sqlite3.OperationalError):
            old.execute("INSERT INTO taken VALUES ('2026-09-22', 'ann', 'auto', 5)")


def test_an_interrupted_run_goes_on_and_buys_nothing_twice(
    released: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errands, "interrupts", False)
    errands.bought.clear()
    path = released / "journal.sqlite"
    resumed = errands.errands.options(journal=path, run_id="interrupted")
    assert resumed.run(True) == "bought for 0.05, delivered"
    assert errands.errands.options(journal=path, run_id="done").run(False) == "bought for 0.05, delivered"
    assert errands.bought == []
    journal = Journal(path)
    assert {run["run_id"]: run["status"] for run in journal.runs()} == {"done": "done", "interrupted": "done"}
    assert record_from_json(journal.record_of("done")).spans
    assert damage(journal.connection) == ""
    journal.close()


def test_tickets_have_legs(released: Path) -> None:
    one, two = read_lines(released / "tickets.jsonl", TICKETS)
    now = Ticket("t", "ann", "small", "hash", 1, 2).as_dict()
    for ticket in (one, two):
        assert now.keys() - ticket.keys() <= {"replica_ticket", "prefix", "prompt_rules", "trace", "adapter"}
        [leg] = ticket["legs"]
        assert leg.keys() == now["legs"][0].keys()
    assert (one["legs"][0]["model"], one["legs"][0]["replica"], one["legs"][0]["outcome"]) == (
        "small",
        "near",
        "stop",
    )
    assert (two["legs"][0]["usd"], two["legs"][0]["placement"]) == (0.25, "cloud")
    assert (one["candidates"], two["candidates"]) == (2, 0)


def test_shadow_evaluations_calibrations_and_routers_are_read(released: Path) -> None:
    [row] = read_lines(released / "shadow.jsonl", SHADOW)
    assert (row["ticket"], row["edge_quality"], row["edge_usd"]) == ("t1", 1.0, 0.125)
    cost = CalibrationStore(released).load("calibration")
    assert cost is not None
    assert (cost.overhead, cost.memory) == (0.001, 0.002)
    unpacked = released / "router.json"
    unpacked.write_bytes(gzip.decompress((released / "router.json.gz").read_bytes()))
    router = load_router(unpacked)
    assert router.score("Explain theorem 9 in depth.") > router.score("What is 9 + 63?")
    router.save(unpacked)
    assert load_router(unpacked).trained_on == 40


def test_packed_experts_are_loaded_and_not_packed_anew(released: Path) -> None:
    experts = MappedExperts(released / "experts", 1, torch.float32, NativeKernels())
    x = torch.eye(32)
    for expert in range(len(BITS)):
        loaded = experts.load(0, expert)
        for part, linear in enumerate((loaded.gate_up, loaded.down)):
            weights = GroupQuantized(*matrix(expert, part))
            assert isinstance(linear, PackedLinear)
            assert torch.equal(linear.parts[0].codes, pack_codes(weights))
            exact = torch.from_numpy(weights.dequantized()).T
            assert torch.allclose(linear(x), exact, rtol=0.02, atol=0.02)


# -- the other way round -------------------------------------------------------------------------------------


def _open_ledger(path: Path) -> None:
    Ledger(path).close()


def _open_journal(path: Path) -> None:
    Journal(path).close()


@pytest.mark.parametrize(
    ("name", "opened", "schema"), [("ledger", _open_ledger, LEDGER), ("journal", _open_journal, JOURNAL)]
)
def test_a_newer_database_is_refused_in_a_sentence_and_left_alone(
    tmp_path: Path, name: str, opened: Callable[[Path], None], schema: Schema[sqlite3.Connection]
) -> None:
    path = tmp_path / "file.sqlite"
    opened(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version={schema.version + 1}")
    before = path.read_bytes()
    newer = (
        rf"is a {name} of version {schema.version + 1}, written by a newer Weighbridge; this one reads up to"
    )
    with pytest.raises(NewerSchema, match=newer):
        opened(path)
    assert path.read_bytes() == before


def test_a_ledger_that_a_newer_version_takes_over_while_this_one_serves_is_not_written(
    tmp_path: Path,
) -> None:
    ledger = Ledger(tmp_path / "l.sqlite")
    with closing(sqlite3.connect(tmp_path / "l.sqlite")) as newer:
        newer.execute(f"PRAGMA user_version={LEDGER.version + 1}")
    with pytest.raises(NewerSchema):
        ledger.reserve("ann", "auto", 0.5)
    ledger.close()


def test_newer_packed_experts_are_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "layer-00000.safetensors"
    for version, error in ((PACKED.version + 1, "written by a newer Weighbridge"), ("soon", "are damaged")):
        save_file({"x": torch.zeros(1)}, path, metadata={"linears": "{}", VERSION_KEY: str(version)})
        before = path.read_bytes()
        with pytest.raises(WeighbridgeError, match=error):
            MappedExperts(tmp_path, 1, torch.float32, NativeKernels())
        assert path.read_bytes() == before


@pytest.mark.parametrize("schema", [TICKETS, SHADOW])
def test_newer_lines_are_refused_with_their_number(tmp_path: Path, schema: Schema[object]) -> None:
    path = tmp_path / "lines"
    path.write_text(json.dumps({"id": "a"}) + "\n" + json.dumps({"schema": 9, "id": "b"}) + "\n")
    with pytest.raises(NewerSchema, match=r"lines:2 is a .* of version 9, written by a newer Weighbridge"):
        list(read_lines(path, schema))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("version", "error"), [(3, "newer Weighbridge"), (1, "train it again"), ("x", "its version")]
)
def test_routers_of_other_versions_say_what_to_do(tmp_path: Path, version: object, error: str) -> None:
    assert ROUTER.version == 2
    path = tmp_path / "router.json"
    path.write_text(json.dumps({"kind": "weighbridge-router", "format": version}))
    with pytest.raises(BadInput, match=error):
        load_router(path)


def test_a_newer_calibration_is_left_out_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "key.json").write_text(json.dumps({"schema": CALIBRATION.version + 1, "step_cost": {}}))
    assert CalibrationStore(tmp_path).load("key") is None
    assert "written by a newer Weighbridge" in caplog.text
