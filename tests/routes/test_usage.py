"""Usage by tenant, model, day and month: it adds up to the ledger, to the nano-dollar, wherever it is looked at."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import shutil
import sqlite3
import sys
from collections import Counter
from contextlib import closing
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.fleet.backends import Backend, Front, fleet, serving
from weighbridge.cli.app import app
from weighbridge.cli.state import usage as command
from weighbridge.cost.usage import Usage
from weighbridge.errors import BadInput
from weighbridge.routes.budget import Budgets, Cashier, Ledger, Reservation
from weighbridge.routes.ledger import books
from weighbridge.routes.ledger import keeper as keepers
from weighbridge.routes.ledger import usage as rows_of
from weighbridge.routes.ledger.keeper import UsageKeeper
from weighbridge.routes.ledger.usage import OTHERS, UsageQuery, Used
from weighbridge.state.database import open_database

DAY = 86_400.0
START = 1_796_000_000.0  # 2026-11-30
VERSION_1 = Path(__file__).parents[1] / "state" / "ledgers"


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


def used(tenant: str, model: str, nano: int, prompt: int = 1, output: int = 1) -> Used:
    return Used(tenant, model, usage=Usage(prompt, output), nano_usd=nano)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ann", "ben"]),
        st.sampled_from(["auto", "other", ""]),
        st.sampled_from(["big", "small"]),
        st.integers(0, 3 * 10**9),
        st.sampled_from(["settle", "twice", "open", "free", "direct"]),
        st.sampled_from([0.0, 0.0, 0.0, 3600.0, DAY, -3600.0, 20 * DAY]),
    ),
    max_size=30,
)


@given(STEPS)
def test_usage_adds_up_to_the_ledger_to_the_nano_dollar(steps: Any) -> None:
    """Whatever is reserved, settled once or twice, left open, free or not of a route, wherever the clock jumps."""
    clock = Clock()
    ledger = Ledger(None, Budgets(zone="Europe/Berlin"), clock)
    keeper = UsageKeeper(ledger)
    spent: Counter[tuple[str, str]] = Counter()
    for tenant, route, model, nano, what, jump in steps:
        clock.now += jump
        if what in ("free", "direct"):
            keeper.add(used(tenant, model, nano))
            spent[tenant, model] += nano
            continue
        made = ledger.reserve(tenant, route, 3.0)
        assert isinstance(made, Reservation)
        if what != "open":
            spent[tenant, model] += nano
            for _ in range(1 + (what == "twice")):
                ledger.settle(made, nano / 1e9, used(tenant, model, 0))
    days, _ = keeper.rows(UsageQuery())
    months, _ = keeper.rows(UsageQuery(by_month=True))
    keeper.close()
    for rows in (days, months):
        found: Counter[tuple[str, str]] = Counter()
        for row in rows:
            found[row.tenant, row.model] += row.nano_usd
        assert +found == +spent
    settled = ledger._db.execute(
        "SELECT day, tenant, SUM(settled) FROM totals WHERE kind = 'tenant' GROUP BY 1, 2"
    )
    by_day: Counter[tuple[str, str]] = Counter()
    for row in days:
        by_day[row.period, row.tenant] += row.budgeted_nano_usd
    assert +by_day == +Counter({(day, tenant): nano for day, tenant, nano in settled})
    pages = [keeper.rows(UsageQuery(limit=1, offset=n))[0] for n in range(len(days) + 1)]
    assert [row for page in pages for row in page] == days
    ledger.close()


@given(st.integers(0, 10**15))
def test_dollars_of_a_ticket_are_the_nano_dollars_they_were_made_of(nano: int) -> None:
    assert round(nano / 1e9 * 1e9) == nano
    assert Decimal(command.dollars(nano)) * 10**9 == nano


# -- what is kept --------------------------------------------------------------------------------------------


def test_a_ledger_of_version_1_has_its_money_in_both(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    shutil.copy(VERSION_1 / "version-1.sqlite", path)
    ledger = Ledger(path, Budgets(), Clock())
    rows, first = ledger.usage(UsageQuery())
    assert [(row.period, row.tenant, row.model, row.nano_usd) for row in rows] == [
        ("2026-11-30", "ann", "", 750_000_000),
        ("2026-11-30", "ben", "", 62_500_000),
        ("2026-12-01", "ann", "", 125_000_000),
    ]
    assert first == "2026-11-30"
    left = Reservation((VERSION_1 / "version-1.reservation").read_text(), 750_000_000)
    ledger.settle(left, 0.5, used("ben", "big", 0, 7, 9))
    assert ledger.spent("ben", day="2026-12-01").settled == 0.5
    [row] = ledger.usage(UsageQuery(tenant="ben", first="2026-12-01"))[0]
    assert (row.model, row.prompt_tokens, row.output_tokens, row.nano_usd) == ("big", 7, 9, 500_000_000)
    ledger.close()


def test_days_and_rows_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_of, "KEPT_DAYS", 5)
    monkeypatch.setattr(rows_of, "MAX_DAY_ROWS", 4 * rows_of.SHARE_IN_MEMORY)
    clock = Clock()
    ledger = Ledger(None, Budgets(), clock)
    for day in range(12):
        ledger.note([(ledger.today().name, used(f"t{day}-{n}", "m", 1)) for n in range(10)])
        if day < 11:
            clock.now += DAY
    for _ in range(20):
        ledger.note([])
    rows, first = ledger.usage(UsageQuery())
    days = {row.period for row in rows}
    assert len(days) == 5
    assert first == min(days)
    for day in days:
        own = [row for row in rows if row.period == day]
        assert len(own) == 5
        assert sum(row.nano_usd for row in own) == 10
        assert [row.nano_usd for row in own if row.tenant == OTHERS] == [6]
    monkeypatch.setattr(rows_of, "MAX_USAGE_ROWS", 12 * rows_of.SHARE_IN_MEMORY)
    clock.now += DAY
    for _ in range(20):
        ledger.note([])
    assert len(ledger.usage(UsageQuery())[0]) <= 12


def test_a_disk_that_fails_loses_no_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keepers, "FLUSH_SECONDS", 3600.0)
    monkeypatch.setattr(keepers, "MAX_WAITING", 3)
    ledger = Ledger(None, Budgets(), Clock())
    keeper = UsageKeeper(ledger)
    works = ledger.note

    def full(used: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(ledger, "note", full)
    for number in range(6):
        keeper.add(used(f"t{number}", "m", 5))
        keeper.flush()
    assert keeper.failures == 6
    monkeypatch.setattr(ledger, "note", works)
    rows, _ = keeper.rows(UsageQuery())
    assert [(row.tenant, row.nano_usd, row.requests) for row in rows] == [
        (OTHERS, 15, 3),
        ("t0", 5, 1),
        ("t1", 5, 1),
        ("t2", 5, 1),
    ]
    keeper.close()


async def test_a_cashier_passes_on_what_is_free() -> None:
    heard: list[Used] = []
    cashier = Cashier(Ledger(None), heard.append)
    free, paid = used("ann", "small", 0), used("ann", "big", 0)
    await cashier.settle(Reservation("", 0), 0.0, free)
    made = await cashier.reserve("ann", "auto", 1.0)
    assert isinstance(made, Reservation)
    await cashier.settle(made, 0.5, paid)
    assert heard == [free]
    [row] = cashier.ledger.usage(UsageQuery())[0]
    assert (row.model, row.nano_usd, row.budgeted_nano_usd) == ("big", 500_000_000, 500_000_000)
    cashier.close()


# -- over HTTP and on the command line -----------------------------------------------------------------------

CONFIG = """
admin_key: operator
tenants: {{ann: {{key: anns}}, ben: {{key: bens}}, eyes: {{key: eyes}}}}
watchers: [eyes]
health: {{interval: 0.05, slow_start: 0}}
models:
  small:
    replicas: [{{name: near, url: '{url}', dialect: weighbridge}}]
  big:
    replicas: [{{name: far, url: '{url}', dialect: weighbridge,
                price: {{input_usd_per_million: 1.1, output_usd_per_million: 3.3}}}}]
{more}
"""
ROUTES = """
routes:
  auto: {{edge: {{model: small}}, cloud: {{model: big}}, cascade: {{enabled: false}}}}
budgets: {{zone: Europe/Berlin}}
ledger: {ledger}
"""
#: Of `Backend`: 11 prompt tokens and 5 of output.
NANO = 11 * 1100 + 5 * 3300


def key(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


async def ask(front: Front, secret: str, model: str, placement: str = "auto") -> None:
    told = {} if placement == "auto" else {"weighbridge": {"placement": placement}}
    async with front.post(model=model, headers=key(secret), **told) as answer:
        assert answer.status == 200, await answer.text()
        await answer.read()


async def usage(front: Front, secret: str, query: str = "") -> Any:
    return await front.get(f"/v1/usage{query}", key(secret))


def lines(rows: Any) -> list[tuple[Any, ...]]:
    names = ("tenant", "model", "requests", "prompt_tokens", "output_tokens", "nano_usd", "budgeted_nano_usd")
    return [tuple(row[name] for name in names) for row in rows]


async def test_a_gateway_with_routes_bills_each_model_and_who_asked(tmp_path: Path) -> None:
    path = tmp_path / "money.sqlite"
    async with serving(Backend()) as url:
        more = ROUTES.format(ledger=path)
        async with fleet(config=CONFIG.format(url=url, more=more)) as front:
            await ask(front, "anns", "small")
            for _ in range(3):
                await ask(front, "anns", "big")
            for placement in ("only_cloud", "only_cloud", "only_edge"):
                await ask(front, "bens", "auto", placement)
            await front.idle()
            ann = [("ann", "big", 3, 33, 15, 3 * NANO, 0), ("ann", "small", 1, 11, 5, 0, 0)]
            ben = [("ben", "big", 2, 22, 10, 2 * NANO, 2 * NANO), ("ben", "small", 1, 11, 5, 0, 0)]
            everything = await usage(front, "operator")
            assert lines(everything["data"]) == ann + ben
            assert (everything["zone"], everything["kept_days"], everything["has_more"]) == (
                "Europe/Berlin",
                400,
                False,
            )
            assert everything["data"][0]["cost_usd"] == 3 * NANO / 1e9
            assert lines((await usage(front, "eyes"))["data"]) == ann + ben
            assert lines((await usage(front, "anns"))["data"]) == ann
            assert lines((await usage(front, "bens", "?tenant=ben&model=big"))["data"]) == ben[:1]
            day = everything["data"][0]["day"]
            for query in (
                f"?day={day}",
                f"?month={day[:7]}",
                f"?from={day}",
                f"?to={day}",
                f"?from={day}&to={day}",
            ):
                assert lines((await usage(front, "operator", query))["data"]) == ann + ben
            for query in (
                "?day=2001-01-01",
                "?month=2001-01",
                "?to=2001-01-01",
                "?from=2999-01-01",
                "?tenant=x",
            ):
                assert (await usage(front, "operator", query))["data"] == []
            by_month = await usage(front, "operator", f"?by=month&month={day[:7]}")
            assert {row["month"] for row in by_month["data"]} == {day[:7]}
            assert lines(by_month["data"]) == ann + ben
            page = await usage(front, "operator", "?limit=1&offset=2")
            assert (lines(page["data"]), page["has_more"]) == (ben[:1], True)
            served = await exported("--url", front.url, "--api-key", "operator")
            own = await exported("--url", front.url, "--api-key", "anns")
    written = await exported("--ledger", str(path))
    assert served == written
    assert [row["tenant"] for row in own] == ["ann", "ann"]
    assert sum(Decimal(row["cost_usd"]) for row in written) == Decimal(5 * NANO) / 10**9
    ledger = Ledger(path, Budgets(zone="Europe/Berlin"))
    assert sum(int(row["budgeted_nano_usd"]) for row in written) == round(ledger.spent().settled * 1e9)
    ledger.close()
    config = tmp_path / "weighbridge.yaml"
    config.write_text(CONFIG.format(url="http://127.0.0.1:9", more=more))
    assert await exported("--config", str(config)) == written
    by_month = await exported("--config", str(config), "--by", "month", "--tenant", "ben", "--model", "big")
    assert [(row["month"], row["nano_usd"]) for row in by_month] == [(day[:7], str(2 * NANO))]
    result = CliRunner().invoke(app, ["usage", "export", "--ledger", str(path)])
    assert lines(json.loads(result.stdout)["data"]) == ann + ben


async def exported(*arguments: str) -> list[dict[str, str]]:
    """What the command prints, from a process of its own: it has an event loop of its own."""
    run = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "weighbridge",
        "usage",
        "export",
        "--csv",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await run.communicate()
    assert run.returncode == 0
    return list(csv.DictReader(io.StringIO(out.decode())))


async def test_a_gateway_without_a_ledger_keeps_usage_in_memory() -> None:
    async with serving(Backend()) as url, fleet(config=CONFIG.format(url=url, more="")) as front:
        await ask(front, "anns", "big")
        await front.idle()
        told = await usage(front, "anns")
        assert lines(told["data"]) == [("ann", "big", 1, 11, 5, NANO, 0)]
        assert told["zone"] == "UTC"


async def test_a_ledger_without_routes_keeps_usage_too(tmp_path: Path) -> None:
    path = tmp_path / "money.sqlite"
    async with (
        serving(Backend()) as url,
        fleet(config=CONFIG.format(url=url, more=f"ledger: {path}")) as front,
    ):
        await ask(front, "anns", "big")
    assert [(row["tenant"], row["nano_usd"]) for row in await exported("--ledger", str(path))] == [
        ("ann", str(NANO))
    ]


@pytest.mark.parametrize(
    ("secret", "query", "status", "said"),
    [
        ("anns", "?tenant=ben", 403, "operator's key"),
        ("wrong", "", 401, "API key"),
        ("operator", "?by=week", 400, "by: 'week'"),
        ("operator", "?day=2026-13-01", 400, "day: '2026-13-01'"),
        ("operator", "?month=2026-11-30", 400, "month:"),
        ("operator", "?day=2026-11-30&from=2026-11-01", 400, "give `day`"),
        ("operator", "?limit=0", 400, "limit: must be"),
        ("operator", "?offset=-1", 400, "offset: must be"),
        ("operator", "?tenants=ann", 400, "tenants: is not known"),
    ],
)
async def test_what_is_wrong_with_a_question_is_said(secret: str, query: str, status: int, said: str) -> None:
    async with (
        fleet(config=CONFIG.format(url="http://127.0.0.1:9", more=""), wait=False) as front,
        front.client.get(f"{front.url}/v1/usage{query}", headers=key(secret)) as answer,
    ):
        assert answer.status == status
        assert said in (await answer.json())["error"]["message"]


def test_the_command_says_where_there_is_none(tmp_path: Path) -> None:
    bare = tmp_path / "weighbridge.yaml"
    bare.write_text("models: {}\n")
    other = tmp_path / "other.sqlite"
    sqlite3.connect(other).execute("CREATE TABLE x (y)").connection.close()
    old = tmp_path / "old.sqlite"
    shutil.copy(VERSION_1 / "version-1.sqlite", old)
    for arguments, said in (
        (["--ledger", str(tmp_path / "none.sqlite")], "there is no ledger"),
        (["--config", str(bare)], "names no `ledger:`"),
        (["--ledger", str(other)], "no ledger"),
        (["--ledger", str(old)], "weighbridge state migrate"),
        (["--url", "http://127.0.0.1:9", "--ledger", str(old)], "not both"),
    ):
        result = CliRunner().invoke(app, ["usage", "export", "--csv", *arguments])
        assert isinstance(result.exception, BadInput), arguments
        assert said in str(result.exception)


def test_a_name_is_no_formula() -> None:
    assert [command._cell(name) for name in ("=1+1", "@x", "-x", "ann", "a=b")] == [
        "'=1+1",
        "'@x",
        "'-x",
        "ann",
        "a=b",
    ]


def test_what_may_be_of_another_tenants_text_is_hidden_from_tenants_and_in_rows_of_the_version_before(
    tmp_path: Path,
) -> None:
    path, before = tmp_path / "ledger.sqlite", replace(books.LEDGER, migrations=books.LEDGER.migrations[:2])
    with closing(open_database(path, before, wait_s=1.0, durable=False)) as old:
        old.execute("INSERT INTO usage VALUES ('2026-11-01', 'ann', 'm', '', 1, 100, 70, 0, 5, 9, 0)")
    with closing(Ledger(path)) as ledger:
        ledger.note(
            [
                ("2026-11-02", Used("ann", "m", usage=Usage(100, 5, 60), hidden_tokens=hidden))
                for hidden in (0, 60)
            ]
        )
        for hides, cached in ((False, [70, 120]), (True, [0, 60])):
            rows, _ = ledger.usage(UsageQuery(tenant="ann", hides=hides))
            assert [row.cached_tokens for row in rows] == cached
    assert books.LEDGER.version == 3
