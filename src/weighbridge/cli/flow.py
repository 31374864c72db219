"""`weighbridge flow`: run speculative pipelines, look at them, replay workloads through them."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import json
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from weighbridge.cli.options import JsonOutput, options
from weighbridge.cli.terminal import outside, print_json, visible
from weighbridge.errors import BadInput, WeighbridgeError
from weighbridge.flow import Budget, Flow
from weighbridge.flow.journal.journal import Journal
from weighbridge.flow.replay.replay import ReplayMode, ReplaySettings
from weighbridge.flow.replay.replay import replay as run_replay
from weighbridge.flow.replay.workload import read_workload
from weighbridge.flow.report.explain import explain
from weighbridge.flow.report.record_json import record_from_json
from weighbridge.flow.report.timeline import text
from weighbridge.flow.report.timeline_page import page
from weighbridge.knobs import knob
from weighbridge.models.catalogue.store import weighbridge_home

JournalOption = Annotated[
    Path | None, typer.Option(help="SQLite file that remembers runs (default: flows.sqlite in the home).")
]


def _journal_path(given: Path | None) -> Path:
    return given if given is not None else weighbridge_home() / "flows.sqlite"


def run(
    target: Annotated[str, typer.Argument(help="MODULE:FLOW or FILE.py:FLOW.")],
    input: Annotated[
        str | None,
        typer.Option(
            help="JSON: an object gives keyword arguments, a list positional ones, else one argument."
        ),
    ] = None,
    journal: JournalOption = None,
    run_id: Annotated[
        str | None, typer.Option(help="Name of the run; an interrupted one is resumed.")
    ] = None,
    mode: Annotated[str | None, typer.Option(help="sequential, parallel or speculate.")] = None,
    json_output: JsonOutput = False,
) -> None:
    """Run a flow with a journal; print its result."""
    flow = _load(target)
    args, kwargs = _arguments(input)
    try:
        inspect.signature(flow.function).bind(*args, **kwargs)
    except TypeError as error:
        raise BadInput(f"{target}: {error}; give its arguments with --input") from error
    configured = flow.options(journal=_journal_path(journal), run_id=run_id, mode=mode)
    try:
        result = asyncio.run(configured(*args, **kwargs))
    except KeyboardInterrupt:
        if configured.last is not None:  # it had begun
            print(f"interrupted; --run-id {configured.last.run_id} goes on with it", file=sys.stderr)
        raise
    except WeighbridgeError:
        raise
    except Exception as error:
        noted = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        raise WeighbridgeError(f"{target} failed: {type(error).__name__}: {error}{noted}") from error
    record = configured.last
    assert record is not None
    if json_output:
        seconds, usd = round(record.seconds, 6), round(record.usd, 8)
        bets = record.outcomes()
        print_json(
            {"run": record.run_id, "result": _plain(result), "seconds": seconds, "usd": usd, "bets": bets}
        )
    else:
        print(visible(result if isinstance(result, str) else json.dumps(_plain(result), ensure_ascii=False)))
        print(f"run {record.run_id}: {record.seconds:.3f} s, ${record.usd:.4g}", file=sys.stderr)


def _load(target: str) -> Any:
    """The flow that MODULE:FLOW names. Raises BadInput saying what is missing."""
    name, colon, attribute = target.rpartition(":")
    if not colon or not name or not attribute:
        raise BadInput(f"{target!r}: name a flow as MODULE:FLOW or FILE.py:FLOW")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = _module(name)
    except (ImportError, OSError, SyntaxError) as error:
        raise BadInput(f"{name}: {error}") from error
    except Exception as error:  # its own code, which runs when it is loaded
        line = traceback.extract_tb(error.__traceback__)[-1]
        raise BadInput(
            f"{name} cannot be loaded: {type(error).__name__}: {error} ({line.filename}, line {line.lineno})"
        ) from error
    flow = getattr(module, attribute, None)
    if not isinstance(flow, Flow):
        known = ", ".join(key for key, value in vars(module).items() if isinstance(value, Flow)) or "none"
        raise BadInput(f"{name} has no flow {attribute!r}; its flows: {known}")
    return flow


def _module(name: str) -> Any:
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise OSError("no such file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _arguments(given: str | None) -> tuple[list[Any], dict[str, Any]]:
    if given is None:
        return [], {}
    try:
        value = json.loads(given)
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"--input is not JSON ({error}); a text needs quotes inside: --input '\"text\"'"
        ) from error
    if isinstance(value, dict):
        return [], value
    return (value, {}) if isinstance(value, list) else ([value], {})


def _plain(value: Any) -> Any:
    try:
        return msgspec.to_builtins(value)
    except TypeError:
        return repr(value)


def runs(
    journal: JournalOption = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, the latest first.")] = 20,
    json_output: JsonOutput = False,
) -> None:
    """List the runs of a journal."""
    book = Journal(_existing(journal))
    listed = book.runs(limit)
    book.close()
    if json_output:
        print_json(listed)
        return
    table = Table()
    table.add_column("run", no_wrap=True, min_width=max((len(one["run_id"]) for one in listed), default=3))
    for heading in ("flow", "status", "seconds", "arguments"):
        table.add_column(heading, overflow="fold")
    for one in listed:
        seconds = f"{one['ended'] - one['began']:.3f}" if one["ended"] else "-"
        cells = (one["run_id"], one["flow"], one["status"], seconds, one["arguments"][:60])
        table.add_row(*map(outside, cells))
    Console().print(table)


def _latest(book: Journal) -> str:
    listed = book.runs(1)
    if not listed:
        raise BadInput(f"journal {book.path} has no runs yet; `weighbridge flow run` makes one")
    return str(listed[0]["run_id"])


def _existing(journal: Path | None) -> Path:
    path = _journal_path(journal)
    if not path.is_file():
        raise BadInput(
            f"there is no journal {path}; `weighbridge flow run` writes one, --journal names another"
        )
    return path


def prune(
    journal: JournalOption = None,
    older_than: Annotated[float, typer.Option(min=0.0, help="Days since a run ended.")] = 30.0,
    failed: Annotated[
        bool, typer.Option("--failed", help="Also runs that failed and could be resumed.")
    ] = False,
    json_output: JsonOutput = False,
) -> None:
    """Forget runs that are done: their results, steps and records; runs that can go on are kept."""
    path = _existing(journal)
    book = Journal(path)
    try:
        runs, rows = book.prune(time.time() - older_than * 86_400.0, failed=failed)
    finally:
        book.close()
    if json_output:
        print_json({"journal": str(path), "runs": runs, "rows": rows, "bytes": path.stat().st_size})
    else:
        print(visible(f"{path}: {runs} runs dropped with {rows} rows; {path.stat().st_size} bytes are left"))


def timeline(
    run: Annotated[
        str | None,
        typer.Argument(help="The run's id, as `weighbridge flow runs` lists them; none: the latest."),
    ] = None,
    journal: JournalOption = None,
    html: Annotated[Path | None, typer.Option(help="Write a self-contained page instead.")] = None,
    width: Annotated[int, typer.Option(min=60, help="Columns of the text.")] = 100,
    skip: Annotated[int, typer.Option(min=0, help="Executions to pass over; 200 are shown.")] = 0,
    json_output: JsonOutput = False,
) -> None:
    """Show a run: what was committed, shadow or cancelled, the critical path, and every bet."""
    book = Journal(_existing(journal))
    try:
        data = book.record_of(run or _latest(book))
    finally:
        book.close()
    if json_output:
        print_json(json.loads(data))
        return
    record = record_from_json(data)
    if html is None:
        print(visible(text(record, width, skip)))
        print(visible(explain(record)))
        return
    try:
        html.write_text(page(record), encoding="utf-8")
    except OSError as error:
        raise BadInput(f"--html {html}: {error}") from error
    print(html)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """How a workload is replayed."""

    mode: str = knob("speculate", "sequential, parallel, speculate, oracle or liar.")
    real_time: bool = knob(False, "Sleep instead of jumping the clock.", flag="--real-time")
    value_per_second: float = knob(0.001, "What a second saved is worth, in dollars.", min=0.0)
    waste: float = knob(0.5, "Largest share of the money that may go to lost bets.", min=0.0, max=1.0)
    limit: int | None = knob(None, "Most calls at once (default: no limit).", min=1)
    seed: int = knob(0, "Which predictions come true where only a rate is given.")

    def __post_init__(self) -> None:
        if self.mode not in get_args(ReplayMode):
            raise BadInput(f"--mode {self.mode}: must be one of {', '.join(get_args(ReplayMode))}")

    def settings(self, mode: Any) -> ReplaySettings:
        """The settings of a replay in one mode."""
        budget = Budget(waste=self.waste)
        return ReplaySettings(mode, self.value_per_second, budget, self.limit, self.real_time, self.seed)


@options
def replay(
    workload: Annotated[Path, typer.Option(help="JSONL, one task a line.")],
    *,
    how: ReplayOptions,
    json_output: JsonOutput = False,
) -> None:
    """Replay a workload through the real runtime and gate, in virtual time unless told otherwise."""
    tasks, mode = read_workload(workload), how.mode
    sequential = run_replay(tasks, how.settings("sequential"))
    replayed = sequential if mode == "sequential" else run_replay(tasks, how.settings(mode))
    report = replayed.report(sequential)
    if json_output:
        print_json(report)
        return
    spans, bets = report["makespan_s"], report["bets"]
    print(
        f"{mode}: {report['tasks']} tasks, mean {spans['mean']:.3f} s, p50 {spans['p50']:.3f}, p95 {spans['p95']:.3f}"
    )
    print(
        f"{report['speedup_over_sequential']:.2f}x as fast as sequential, {report['wasted_share']:.1%} wasted"
    )
    print(
        f"bets: {bets['won']} won, {bets['lost']} lost, {bets['declined']} declined; {report['writes']} writes"
    )
