"""Plans, recommendations and packings as plain text in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from weighbridge.planner.memory.memory import MemoryPlan
from weighbridge.planner.report.report import figures, price_of
from weighbridge.planner.search.fit import Change
from weighbridge.planner.search.packing import Placed
from weighbridge.planner.search.search import Recommendation
from weighbridge.planner.search.speed import SPREAD, Speed


def print_plan(
    plan: MemoryPlan, speeds: Sequence[Speed], changes: Sequence[Change], command: str, console: Console
) -> None:
    """Print the verdict, figures with their bounds, speed, and why."""
    d, device = plan.deployment, plan.device
    where = f"{d.gpus} x {device.name}" if device else "no device given"
    console.print(f"[bold]{escape(plan.model.name)}[/] with {plan.rules.engine} on {where}", highlight=False)
    if device is not None:
        print_verdict(plan, changes, console)
    table = Table("per GPU", "", "between", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for row in figures(plan):
        table.add_row(*map(escape, row))
    console.print(table)
    if speeds:
        print_speeds(speeds, console)
    console.print("[bold]why[/]")
    lines = [*plan.explain, *(speeds[-1].explain if speeds else ())]
    for line in lines:
        console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)
    if plan.fits or device is None:
        console.print(
            f"[bold]start it[/]{_names_it(plan)}\n  {escape(command)}", highlight=False, soft_wrap=True
        )


def _names_it(plan: MemoryPlan) -> str:
    """Engines do not know the catalogue's names."""
    return f" (for {plan.model.name} put its path or hub id)" if plan.model.source == "catalogue" else ""


def print_verdict(plan: MemoryPlan, changes: Sequence[Change], console: Console) -> None:
    if plan.fits:
        console.print("[green]fits[/]")
        return
    console.print(f"[red]does not fit[/]: {escape(plan.problem)}", highlight=False, soft_wrap=True)
    for number, change in enumerate(changes):
        lead = "smallest change" if number == 0 else "            or"
        console.print(
            f"  {lead}: {escape(change.words)}  ({escape(change.flags)})", highlight=False, soft_wrap=True
        )


def print_speeds(speeds: Sequence[Speed], console: Console) -> None:
    first = speeds[0]
    table = Table("at once", "TTFT", "TPOT", "tokens/s", "USD per million output", box=None, pad_edge=False)
    for column in table.columns:
        column.justify = "right"
    for s in speeds:
        table.add_row(
            str(s.batch),
            f"{s.ttft * 1e3:,.0f} ms",
            f"{s.tpot * 1e3:,.1f} ms",
            f"{s.tokens_per_second:,.0f}",
            f"{s.usd_per_million_output:,.2f}",
        )
    how = "estimate, within" if first.spread == SPREAD else "by calibrate on this machine, within"
    console.print(
        f"[bold]speed[/], requests of {first.prompt:,} + {first.output:,} tokens ({how} {first.spread[1]:g}x)"
    )
    console.print(table)


def print_choices(choices: Sequence[Recommendation], command: str, config: str, console: Console) -> None:
    """Print recommendations, cheapest first, and how to start the first."""
    table = Table(
        "",
        "devices",
        "weights",
        "cache",
        "USD/h",
        "TTFT",
        "TPOT",
        "requests at once",
        box=None,
        pad_edge=False,
    )
    for number, choice in enumerate(choices, 1):
        c, d, o = choice.candidate, choice.candidate.plan.deployment, choice.forecast
        layout = f"{c.replicas} x (tp {d.tp})" if d.tp > 1 else str(c.replicas)
        table.add_row(
            str(number),
            f"{layout} {c.device.name}",
            c.plan.stored.format,
            d.kv_dtype,
            f"{c.usd_per_hour:,.2f}",
            f"{o.ttft * 1e3:,.0f} ms",
            f"{o.tpot * 1e3:,.1f} ms",
            f"{o.batch:,.1f}",
        )
    table.columns[1].no_wrap = True
    for column in table.columns[4:]:
        column.justify = "right"
    console.print(table)
    for name, (price, source) in {
        choice.candidate.device.name: price_of(choice) for choice in choices
    }.items():
        line = f"  {name}: {price:,.2f} USD per device-hour, {source}"
        console.print(escape(line), highlight=False, soft_wrap=True)
    named = _names_it(choices[0].candidate.plan)
    console.print(f"why the first: {escape(choices[0].forecast.why)}", highlight=False, soft_wrap=True)
    console.print(f"[bold]start each replica[/]{named}\n  {escape(command)}", highlight=False, soft_wrap=True)
    console.print(f"[bold]weighbridge.yaml[/]\n{escape(config)}", highlight=False, soft_wrap=True)


def print_packing(placed: Sequence[Placed], commands: Sequence[str], console: Console) -> None:
    """Print which model is on which devices, and what it gets."""
    table = Table(
        "model", "devices", "share", "weights GiB", "cache tokens", "full requests", box=None, pad_edge=False
    )
    for item in placed:
        kv = item.plan.kv
        table.add_row(
            escape(item.plan.model.name),
            ", ".join(map(str, item.devices)),
            f"{item.share:.3f}",
            f"{item.plan.weights.value:.2f}",
            f"{kv.tokens:,}" if kv else "",
            f"{kv.max_concurrency:.1f}" if kv else "",
        )
    console.print(table)
    for item, command in zip(placed, commands, strict=True):
        visible = ",".join(map(str, item.devices))
        console.print(f"  CUDA_VISIBLE_DEVICES={visible} {escape(command)}", highlight=False, soft_wrap=True)
