"""Write a file of every kind with the code of a released version, here: 0.1.0.

    git worktree add /tmp/released COMMIT
    PYTHONPATH=/tmp/released/src python tests/state/released/make.py tests/state/released/0.1.0

`COMMIT` is the last one of the release (0.1.0: 54b81be). The files are checked in; nothing runs this again.
"""

from __future__ import annotations

import gzip
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

NOW = 1_790_000_000.0  # 2026-09-21, UTC


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_ledger(out)
    write_tickets(out)
    write_shadow(out)
    write_journal(out)
    write_calibration(out)
    write_router(out)
    write_packed_experts(out)


def write_ledger(out: Path) -> None:
    """Two days of two tenants, and a reservation that is open."""
    from weighbridge.hybrid.budget import Budgets, Ledger

    clock = [NOW]
    ledger: Any = Ledger(out / "ledger.sqlite", Budgets(), lambda: clock[0])
    for tenant, route, usd, cost in [
        ("ann", "auto", 0.5, 0.25),
        ("bob", "auto", 0.125, 0.0625),
        ("ann", "other", 0.5, 0.5),
    ]:
        ledger.settle(ledger.reserve(tenant, route, usd), cost)
    clock[0] += 86_400
    ledger.settle(ledger.reserve("ann", "auto", 1.0), 0.75)
    (out / "reservation.txt").write_text(ledger.reserve("bob", "auto", 0.25).id)
    ledger._db.execute("PRAGMA journal_mode=DELETE")
    ledger.close()


def write_tickets(out: Path) -> None:
    from weighbridge.ticket.record import Ticket
    from weighbridge.ticket.store import TicketStore

    store: Any = TicketStore(path=out / "tickets.jsonl")
    times = {"arrived": NOW, "scheduled": NOW + 0.5, "first_token": NOW + 1, "finished": NOW + 2}
    scores = {"near": 1.5, "far": 2.5}
    one: Any = Ticket(
        "t1", "ann", "small", "hash", 10, 20, **times, replica="near", output_tokens=7, scores=scores
    )
    placed = {"replica": "cloud:big", "placement": "cloud", "cost_usd": 0.25}
    two: Any = Ticket("t2", "bob", "auto", "hash", 10, 20, **times, **placed)
    for ticket in (one, two):
        ticket.finish_reason = "stop"
        store.finish(ticket)
    store.close()


def write_shadow(out: Path) -> None:
    from weighbridge.hybrid.request import RoutedRequest, parse_request
    from weighbridge.hybrid.settings import ShadowSettings
    from weighbridge.hybrid.shadow import Shadow

    from weighbridge.ticket.record import Ticket

    shadow: Any = Shadow(ShadowSettings(), lambda: 1.0, out / "shadow.jsonl")
    ticket: Any = Ticket("t1", "ann", "auto", "hash", 10, 20, score=0.25, threshold=0.5, cost_usd=0.125)
    body = {"model": "auto", "messages": [{"role": "user", "content": "What is 2 + 2?"}]}
    request: RoutedRequest = parse_request(body, {}, "ann")
    with suppress(AttributeError):
        shadow._write(request, ticket, "4", "four", 1.0)
    shadow._file.close()


def write_journal(out: Path) -> None:
    from errands import Interrupted, errands  # type: ignore[import-not-found]

    path = out / "journal.sqlite"
    errands.options(journal=path, run_id="done").run(False)
    with suppress(Interrupted):
        errands.options(journal=path, run_id="interrupted").run(True)
    import sqlite3

    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()


def write_calibration(out: Path) -> None:
    from weighbridge.cost import StepCost
    from weighbridge.engine.calibration import CalibrationStore

    store: Any = CalibrationStore(out)
    store.save("calibration", StepCost(0.001, 0.002, 0.0003, 0.0, 0.0), [])


def write_router(out: Path) -> None:
    from weighbridge.hybrid.difficulty.labels import Label
    from weighbridge.hybrid.difficulty.train import train

    prompts = [f"What is {n} + {n * 7}?" if n % 2 else f"Explain theorem {n} in depth." for n in range(40)]
    router: Any = train([Label(prompt=text, edge=float(n % 2), cloud=1.0) for n, text in enumerate(prompts)])
    router.save(out / "router.json")
    with (
        (out / "router.json.gz").open("wb") as file,
        gzip.GzipFile("", "wb", mtime=0, fileobj=file) as packed,
    ):
        packed.write((out / "router.json").read_bytes())
    (out / "router.json").unlink()


def write_packed_experts(out: Path) -> None:
    """Two experts of one layer, made of `numbers_of_experts`; 0.1.0 asks for kernels that its file does not need."""
    from types import SimpleNamespace

    import torch
    from numbers_of_experts import BITS, matrix  # type: ignore[import-not-found]
    from weighbridge.models.decoder import Mlp
    from weighbridge.models.expert_file import write_layer
    from weighbridge.models.quantized import GroupQuantized

    from weighbridge.models import linear_packed

    unused: Any = None
    linear_packed._native = SimpleNamespace(PackedMatrix=lambda *given: None)
    linears = {
        (expert, part): linear_packed.quantized_linear(
            GroupQuantized(*matrix(expert, part)), None, torch.float32
        )
        for expert in range(len(BITS))
        for part in range(2)
    }
    (out / "experts").mkdir(exist_ok=True)
    experts = [Mlp(linears[one, 0], linears[one, 1], unused) for one in range(len(BITS))]
    write_layer(out / "experts" / "layer-00000.safetensors", experts)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
