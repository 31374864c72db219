"""`weighbridge route`: train, evaluate, calibrate, serve and explain edge/cloud routes."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from weighbridge.cli.route_features import (
    Edge,
    EdgeKey,
    EdgeModel,
    EdgeUrl,
    Features,
    named,
    tables,
    tables_for,
    used,
)
from weighbridge.cli.terminal import print_json
from weighbridge.errors import BadInput

if TYPE_CHECKING:
    import numpy as np

    from weighbridge.routes.difficulty.labels import Label
    from weighbridge.routes.difficulty.trained import TrainedRouter
    from weighbridge.routes.difficulty.vectors import VectorTable


def serve(
    context: typer.Context,
    config: Annotated[Path, typer.Option(help="weighbridge.yaml with its section `routes`.")] = Path(
        "weighbridge.yaml"
    ),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8090,
) -> None:
    """Serve the routes of a configuration by themselves, over sides that run elsewhere."""
    from weighbridge.cli.options import written
    from weighbridge.cli.serve.fleet import serve_spec
    from weighbridge.fleet.config.spec import FleetSpec
    from weighbridge.routes.config import load_configuration

    read = load_configuration(config)
    if not read.routes.routes:
        raise BadInput(f"{config}: routes: needs at least one route with its edge and cloud", param="config")
    fleet, given = read.fleet, written(context)
    plain = FleetSpec(models=())
    unsaid = (fleet.host, fleet.port) == (plain.host, plain.port)  # the file has no address of its own
    if unsaid or "host" in given:
        fleet = replace(fleet, host=host)
    if unsaid or "port" in given:
        fleet = replace(fleet, port=port)
    serve_spec(fleet, read.routes, json_logs=False)


def train(
    labels: Annotated[
        Path, typer.Option(help="JSONL: prompt, edge_correct, cloud_correct; edge_response too.")
    ],
    out: Annotated[Path, typer.Option(help="Where the router goes.")] = Path("router.json"),
    features: Features = "text",
    edge_url: EdgeUrl = None,
    edge_model: EdgeModel = None,
    edge_key: EdgeKey = None,
    seed: Annotated[int, typer.Option(help="Of the random features.")] = 0,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Learn from your own labels which prompts need the cloud, and which local answers are right."""
    from weighbridge.routes.difficulty.labels import read_labels
    from weighbridge.routes.difficulty.train import train as learn

    known = read_labels(labels)
    prompts = [one.prompt for one in known]
    found = tables(named(features), prompts, Edge(edge_url, edge_model, edge_key))
    router = learn(known, seed, found)
    _save(router, out)
    judged = router.judge is not None
    if json_output:
        told = {"router": str(out), "n": router.trained_on, "judges_answers": judged, "features": used(found)}
        print_json({**told, "shares": router.shares()})
        return
    print(
        f"{out}: learned from {router.trained_on} labels; it {'judges' if judged else 'cannot judge'} answers"
    )
    for name, shares in router.shares().items():
        worth = "they tell it nothing, and will not be asked for" if not any(shares) else "they help"
        print(f"features {name}: {worth}")


def evaluate(
    labels: Annotated[Path, typer.Option(help="JSONL as for train; not the ones it was trained on.")],
    router: Annotated[Path | None, typer.Option(help="What `train` wrote; none: --folds.")] = None,
    folds: Annotated[int | None, typer.Option(min=2, help="Cross-validate on the labels instead.")] = None,
    mode: Annotated[
        str, typer.Option(help="auto, prompt, or cascade: whether local answers are read.")
    ] = "auto",
    features: Features = "text",
    edge_url: EdgeUrl = None,
    edge_model: EdgeModel = None,
    edge_key: EdgeKey = None,
    seed: Annotated[int, typer.Option(help="Of folds, bootstrap and the random baseline.")] = 0,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a router: APGR and CPT beside random, prompt length and an oracle, with 95 % intervals."""
    from weighbridge.routes.difficulty import evaluate as measure
    from weighbridge.routes.difficulty.labels import read_labels

    if mode not in measure.MODES:
        raise BadInput(f"--mode: {mode!r} is not one of {', '.join(measure.MODES)}")
    if (router is None) == (folds is None):
        raise BadInput("give either --router FILE or --folds N")
    if router is not None and features != "text":
        raise BadInput("--features: is for --folds; a router has the features it was trained with")
    known = read_labels(labels)
    edge = Edge(edge_url, edge_model, edge_key)
    if router is not None:
        score, found = _scores(router, known, mode, edge)
    else:
        found = tables(named(features), [one.prompt for one in known], edge)
        score = measure.cross_validated(known, folds or 5, mode, seed, found)
    result = {**asdict(measure.evaluate(known, score, seed)), "features": used(found)}
    if json_output:
        print_json(result)
    else:
        _print_report(result)


def _scores(router: Path, labels: list[Label], mode: str, edge: Edge) -> tuple[np.ndarray, list[VectorTable]]:
    """The scores, and the vectors they were made with."""
    from weighbridge.routes.difficulty import evaluate as measure
    from weighbridge.routes.difficulty.trained import load_router

    trained = load_router(router)
    reads = measure.reads_answers(trained, labels, mode)
    if mode == "cascade" and not reads:
        raise BadInput("--mode cascade: needs a router trained with edge_response, and labels that hold it")
    found = [] if reads else tables_for(trained, [one.prompt for one in labels], edge)
    return measure.scores(trained, labels, mode, found), found


def _print_report(result: dict[str, Any]) -> None:
    table = Table("", "value", "95 %")
    for name, value in result.items():
        if name in ("interval", "features"):
            continue
        ends = result["interval"].get(name)
        shown = "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
        table.add_row(name, shown, f"{ends[0]:.4f} to {ends[1]:.4f}" if ends else "")
    Console().print(table)
    print(f"features: {', '.join(result['features'])}")


def calibrate(
    router: Annotated[Path, typer.Option(help="What `train` wrote; the threshold is written into it.")],
    cloud_share: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of requests for the cloud.")],
    labels: Annotated[
        Path | None, typer.Option(help="JSONL with `prompt`: your traffic; none: the training labels.")
    ] = None,
    edge_url: EdgeUrl = None,
    edge_model: EdgeModel = None,
    edge_key: EdgeKey = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Set the pre-router's threshold so that a given share of the traffic goes to the cloud."""
    from weighbridge.routes.difficulty.calibrate import calibrated, read_prompts
    from weighbridge.routes.difficulty.trained import load_router

    trained = load_router(router)
    prompts = read_prompts(labels) if labels else None
    found = tables_for(trained, prompts, Edge(edge_url, edge_model, edge_key)) if prompts else []
    changed, achieved = calibrated(trained, cloud_share, prompts, found)
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
