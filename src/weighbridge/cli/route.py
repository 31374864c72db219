"""`weighbridge route`: train, evaluate, calibrate, serve and explain edge/cloud routes."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from weighbridge.cli.terminal import print_json
from weighbridge.cli.ticket import fetch
from weighbridge.errors import BadInput

if TYPE_CHECKING:
    from weighbridge.hybrid.difficulty.model import TrainedRouter

app = typer.Typer(help="Edge or cloud: train, measure and serve routes.", no_args_is_help=True)


@app.callback()
def route() -> None:
    """Edge or cloud: train, measure and serve routes."""


@app.command("serve")
def serve(
    config: Annotated[Path, typer.Option(help="weighbridge.yaml with its section `routes`.")] = Path(
        "weighbridge.yaml"
    ),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8090,
) -> None:
    """Serve the routes of a configuration by themselves, over sides that run elsewhere."""
    import uvicorn

    from weighbridge.cli.terminal import errors
    from weighbridge.hybrid.build import build_front
    from weighbridge.hybrid.config import load_hybrid
    from weighbridge.hybrid.front import create_app
    from weighbridge.server.lifecycle import bind, set_up_logging

    set_up_logging(False)
    front = build_front(load_hybrid(config))
    listener = bind(host, port)
    names = ", ".join(front.routers)
    errors.print(f"routes {names} on http://{host}:{listener.getsockname()[1]}/v1")
    settings = uvicorn.Config(create_app(front), log_level="warning", access_log=False)
    uvicorn.Server(settings).run(sockets=[listener])


@app.command("train")
def train(
    labels: Annotated[
        Path, typer.Option(help="JSONL: prompt, edge_correct, cloud_correct; edge_response too.")
    ],
    out: Annotated[Path, typer.Option(help="Where the router goes.")] = Path("router.json"),
    seed: Annotated[int, typer.Option(help="Of the random features.")] = 0,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Learn from your own labels which prompts need the cloud, and which local answers are right."""
    from weighbridge.hybrid.difficulty.labels import read_labels
    from weighbridge.hybrid.difficulty.train import train as learn

    router = learn(read_labels(labels), seed)
    _save(router, out)
    judged = router.judge is not None
    if json_output:
        print_json({"router": str(out), "n": router.trained_on, "judges_answers": judged})
        return
    print(
        f"{out}: learned from {router.trained_on} labels; {'it' if judged else 'it cannot'} judge{'s' * judged} answers"
    )


@app.command("eval")
def evaluate(
    labels: Annotated[Path, typer.Option(help="JSONL as for train; not the ones it was trained on.")],
    router: Annotated[Path | None, typer.Option(help="What `train` wrote; none: --folds.")] = None,
    folds: Annotated[int | None, typer.Option(min=2, help="Cross-validate on the labels instead.")] = None,
    mode: Annotated[
        str, typer.Option(help="auto, prompt, or cascade: whether local answers are read.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Of folds, bootstrap and the random baseline.")] = 0,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a router: APGR and CPT beside random, prompt length and an oracle, with 95 % intervals."""
    from weighbridge.hybrid.difficulty import evaluate as measure
    from weighbridge.hybrid.difficulty.labels import read_labels
    from weighbridge.hybrid.difficulty.model import load_router

    if mode not in measure.MODES:
        raise BadInput(f"--mode: {mode!r} is not one of {', '.join(measure.MODES)}")
    if (router is None) == (folds is None):
        raise BadInput("give either --router FILE or --folds N")
    known = read_labels(labels)
    if router is not None:
        trained = load_router(router)
        if mode == "cascade" and not measure.reads_answers(trained, known, mode):
            raise BadInput(
                "--mode cascade: needs a router trained with edge_response, and labels that hold it"
            )
        score = measure.scores(trained, known, mode)
    else:
        score = measure.cross_validated(known, folds or 5, mode, seed)
    result = asdict(measure.evaluate(known, score, seed))
    if json_output:
        print_json(result)
        return
    table = Table("", "value", "95 %")
    for name, value in result.items():
        if name == "interval":
            continue
        ends = result["interval"].get(name)
        shown = "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
        table.add_row(name, shown, f"{ends[0]:.4f} to {ends[1]:.4f}" if ends else "")
    Console().print(table)


@app.command("calibrate")
def calibrate(
    router: Annotated[Path, typer.Option(help="What `train` wrote; the threshold is written into it.")],
    cloud_share: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of requests for the cloud.")],
    labels: Annotated[
        Path | None, typer.Option(help="JSONL with `prompt`: your traffic; none: the training labels.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Set the pre-router's threshold so that a given share of the traffic goes to the cloud."""
    from weighbridge.hybrid.difficulty.calibrate import calibrated, read_prompts
    from weighbridge.hybrid.difficulty.model import load_router

    trained = load_router(router)
    changed, achieved = calibrated(trained, cloud_share, read_prompts(labels) if labels else None)
    _save(changed, router)
    if json_output:
        print_json({"router": str(router), "threshold": changed.threshold, "cloud_share": achieved})
    else:
        print(f"{router}: threshold {changed.threshold:.4f} sends {achieved:.1%} to the cloud")


def _save(router: TrainedRouter, path: Path) -> None:
    try:
        router.save(path)
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}") from error


@app.command("explain")
def explain(
    ticket: Annotated[str, typer.Argument(help="The id from x-weighbridge-ticket.")],
    url: Annotated[str, typer.Option(help="The server to ask.")] = "http://127.0.0.1:8080",
    tickets: Annotated[Path | None, typer.Option(help="A tickets file instead of a server.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="WEIGHBRIDGE_API_KEY", help="Its API key.")] = None,
) -> None:
    """Say in words where a request went, why, what left the machine, and what it cost."""
    from weighbridge.hybrid.report import read_tickets

    if tickets is not None:
        found = [one for one in read_tickets(tickets) if one.get("id") == ticket]
        if not found:
            raise BadInput(f"{tickets} holds no ticket {ticket!r}")
        print(_in_words(found[-1]))
        return
    print(_in_words(asyncio.run(fetch(f"{url.rstrip('/')}/v1/tickets/{ticket}", api_key))))


def _in_words(record: dict[str, Any]) -> str:
    """A route's ticket, or that of a request for a model of the fleet, which knows no edge and no cloud."""
    from weighbridge.cli.fleet import explained
    from weighbridge.hybrid.report import explain as words

    return "\n".join(explained(record)) if record.get("scores") else words(record)


@app.command("report")
def report(
    tickets: Annotated[Path, typer.Option(help="The tickets file of the routes.")],
    shadow: Annotated[Path | None, typer.Option(help="The file of shadow evaluations, for quality.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page as well.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Share local, money saved, quality from shadow evaluation, and latency."""
    from weighbridge.hybrid.report import as_html, read_tickets, summarise

    summary = summarise(read_tickets(tickets), read_tickets(shadow) if shadow else [])
    if html is not None:
        html.write_text(as_html(summary), encoding="utf-8")
    if json_output:
        print_json(summary)
        return
    table = Table(title="Edge and cloud")
    for column in (
        "route",
        "requests",
        "local",
        "degraded",
        "USD",
        "saved USD",
        "p50 ms edge",
        "p50 ms cloud",
    ):
        table.add_column(column)
    for row in summary["routes"]:
        table.add_row(
            row["route"], str(row["requests"]), f"{row['share_local']:.1%}", str(row["degraded"]),
            f"{row['cost_usd']:.6f}", f"{row['saved_usd']:.6f}", _ms(row["edge_p50_ms"]), _ms(row["cloud_p50_ms"]),
        )  # fmt: skip
    Console().print(table)
    quality = summary["quality"]
    if quality["judged"]:
        print(f"shadow: {quality['judged']} judged, the local answer stood in {quality['edge_stands']:.1%}")


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
