"""`weighbridge route train`, `eval` and `calibrate`: which requests need the cloud."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from weighbridge.cli.options import JsonOutput, options
from weighbridge.cli.route.features import EdgeSettings, FeatureSettings, named, tables, tables_for, used
from weighbridge.cli.terminal import print_json
from weighbridge.errors import BadInput
from weighbridge.knobs import knob
from weighbridge.routes.difficulty import evaluate as measure
from weighbridge.routes.difficulty.calibrate import calibrated, read_prompts
from weighbridge.routes.difficulty.embedders.vectors import VectorTable
from weighbridge.routes.difficulty.labels import Label, read_labels
from weighbridge.routes.difficulty.train import train as learn
from weighbridge.routes.difficulty.trained import TrainedRouter, load_router


@options
def train(
    labels: Annotated[
        Path, typer.Option(help="JSONL: prompt, edge_correct, cloud_correct; edge_response too.")
    ],
    out: Annotated[Path, typer.Option(help="Where the router goes.")] = Path("router.json"),
    *,
    edge: FeatureSettings,
    seed: Annotated[int, typer.Option(help="Of the random features.")] = 0,
    json_output: JsonOutput = False,
) -> None:
    """Learn from your own labels which prompts need the cloud, and which local answers are right."""
    known = read_labels(labels)
    prompts = [one.prompt for one in known]
    found = tables(named(edge.features), prompts, edge)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSettings:
    """What is measured: a router, or what would be learned from a part of the labels."""

    router: Path | None = knob(None, "What `train` wrote; none: --folds.")
    folds: int | None = knob(None, "Cross-validate on the labels instead.", min=2)
    mode: str = knob("auto", "auto, prompt, or cascade: whether local answers are read.")
    seed: int = knob(0, "Of folds, bootstrap and the random baseline.")


@options
def evaluate(
    labels: Annotated[Path, typer.Option(help="JSONL as for train; not the ones it was trained on.")],
    *,
    what: EvaluateSettings,
    edge: FeatureSettings,
    json_output: JsonOutput = False,
) -> None:
    """Measure a router: APGR and CPT beside random, prompt length and an oracle, with 95 % intervals."""
    if what.mode not in measure.MODES:
        raise BadInput(f"--mode: {what.mode!r} is not one of {', '.join(measure.MODES)}")
    if (what.router is None) == (what.folds is None):
        raise BadInput("give either --router FILE or --folds N")
    if what.router is not None and edge.features != "text":
        raise BadInput("--features: is for --folds; a router has the features it was trained with")
    known = read_labels(labels)
    if what.router is not None:
        score, vectors = _scores(what.router, known, what.mode, edge)
    else:
        vectors = tables(named(edge.features), [one.prompt for one in known], edge)
        score = measure.cross_validated(known, what.folds or 5, what.mode, what.seed, vectors)
    result = {**asdict(measure.evaluate(known, score, what.seed)), "features": used(vectors)}
    if json_output:
        print_json(result)
    else:
        _print_report(result)


def _scores(
    router: Path, labels: list[Label], mode: str, edge: EdgeSettings
) -> tuple[np.ndarray, list[VectorTable]]:
    """The scores, and the vectors they were made with."""
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


@options
def calibrate(
    router: Annotated[Path, typer.Option(help="What `train` wrote; the threshold is written into it.")],
    cloud_share: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of requests for the cloud.")],
    labels: Annotated[
        Path | None, typer.Option(help="JSONL with `prompt`: your traffic; none: the training labels.")
    ] = None,
    *,
    edge: EdgeSettings,
    json_output: JsonOutput = False,
) -> None:
    """Set the pre-router's threshold so that a given share of the traffic goes to the cloud."""
    trained = load_router(router)
    prompts = read_prompts(labels) if labels else None
    found = tables_for(trained, prompts, edge) if prompts else []
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
