"""`weighbridge moe stats` and `moe curve`: what a running mixture of experts does, and what a batch costs it."""

from __future__ import annotations

import html
import itertools
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from weighbridge.cli.terminal import DownloadBar, counting, print_json
from weighbridge.errors import BadInput, WeighbridgeError

JsonOutput = Annotated[bool, typer.Option("--json", help="Print JSON.")]

#: Seconds to wait for a server's report.
TIMEOUT = 30.0


def stats(
    url: Annotated[str, typer.Option(help="The server.")] = "http://127.0.0.1:8080",
    api_key: Annotated[str | None, typer.Option(envvar="WEIGHBRIDGE_API_KEY", help="Its key.")] = None,
    page: Annotated[Path | None, typer.Option("--html", help="Write a heat map to this file.")] = None,
    json_output: JsonOutput = False,
) -> None:
    """Show which experts a server's tokens use: a heat map, balance, hot and cold experts, coverage."""
    report = fetch(url, api_key)
    if page is not None:
        page.write_text(heat_map(report), encoding="utf-8")
    if json_output:
        print_json(report)
        return
    _print_report(report)
    if page is not None:
        Console().print(f"heat map in {page}")


def fetch(url: str, api_key: str | None) -> dict[str, Any]:
    """What `/v1/experts` answers. Raises BadInput for a dense model, WeighbridgeError when nothing answers."""
    address = url.rstrip("/") + "/v1/experts"
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    try:
        request = urllib.request.Request(address, headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            report: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        raise BadInput(f"{address}: {_message(error)}", param="url") from None
    except (OSError, ValueError) as error:
        raise WeighbridgeError(f"{address} does not answer: {error}") from None
    return report


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {error.code}"


def _print_report(report: dict[str, Any]) -> None:
    console = Console()
    table = Table(
        "layer",
        Column("tokens, expert by expert", no_wrap=True),
        "balance",
        "top 20 %",
        "entropy",
        "hot",
        "cold",
    )
    for layer in report["layers"]:
        table.add_row(
            str(layer["layer"]),
            _strip(layer["tokens"]),
            f"{layer['balancedness']:.2f}",
            f"{layer['top20_share']:.0%}",
            f"{layer['entropy_bits']:.2f}",
            " ".join(map(str, layer["hot"][:6])),
            " ".join(map(str, layer["cold"][:6])),
        )
    console.print(table)
    console.print(f"{report['steps']:,} steps, {report['touched_per_step']:.1f} experts touched by each")
    for row in report["coverage"]:
        console.print(
            f"  batch {row['batch']:>4}: {row['measured']:6.2f} experts per layer, {row['predicted']:.2f} predicted"
        )
    cache = report.get("cache")
    if cache:
        console.print(
            f"cache: {cache['hit_rate']:.1%} hits (a plain LRU: {cache['lru_hit_rate']:.1%}), "
            f"{cache['prefetched']:,} of {cache['misses']:,} misses were loaded ahead"
        )


def _strip(tokens: list[int]) -> Text:
    """One character per expert, or per group of them where a line would be too long."""
    step = -(-len(tokens) // 64)
    groups = [sum(tokens[start : start + step]) for start in range(0, len(tokens), step)]
    largest = max(groups) or 1
    return Text("".join(" ▁▂▃▄▅▆▇█"[round(8 * value / largest)] for value in groups))


def heat_map(report: dict[str, Any]) -> str:
    """A page of its own: a row per layer, a cell per expert, darker where more tokens went."""
    rows = []
    for layer in report["layers"]:
        largest = max(layer["tokens"]) or 1
        cells = "".join(
            f'<td style="background:rgba(37,99,235,{value / largest:.3f})" '
            f'title="layer {layer["layer"]}, expert {expert}: {value:,} tokens"></td>'
            for expert, value in enumerate(layer["tokens"])
        )
        rows.append(f"<tr><th>{layer['layer']}</th>{cells}<td class=n>{layer['balancedness']:.2f}</td></tr>")
    title = html.escape(f"{report['experts']} experts, {report['top_k']} used, {report['steps']:,} steps")
    return (
        "<!doctype html><meta charset=utf-8><title>Experts</title><style>body{font:14px sans-serif;margin:2em}"
        "td{min-width:10px;height:16px}th,.n{font-weight:normal;padding:0 8px}table{border-spacing:1px}</style>"
        f"<h1>{title}</h1><p>Darker: more tokens, within a layer. Right: balancedness.</p>"
        f"<table>{''.join(rows)}</table>\n"
    )


def curve(
    model: Annotated[str, typer.Argument(help="A mixture of experts: directory or name.")],
    batches: Annotated[str, typer.Option(help="Batch sizes, with commas.")] = "1,2,4,8,16,32,64",
    context: Annotated[int, typer.Option(min=1, help="Tokens of each sequence.")] = 100,
    quantize: Annotated[str, typer.Option(help="auto, none, int8 or int4.")] = "auto",
    json_output: JsonOutput = False,
) -> None:
    """Measure step time and experts touched against batch size, and show where the cliff is."""
    from weighbridge.engine.build import build_replica
    from weighbridge.engine.calibration import Shape, measure
    from weighbridge.engine.settings import EngineSettings
    from weighbridge.models.store import resolve

    sizes = _sizes(batches)
    path = resolve(model, progress=DownloadBar("Pulling the model"))
    with counting("Packing layers", quiet=json_output) as report:
        replica = build_replica(path, model, EngineSettings(), quantize=quantize, report=report)
    telemetry = replica.runner.experts
    if telemetry is None:
        raise BadInput(f"{model} is a dense model: its step time has no experts in it", param="model")
    if max(sizes) * (context + 64) > replica.num_blocks * replica.settings.block_size:
        raise BadInput("the KV cache is too small for this batch and context: use smaller ones")
    shapes = [Shape(size, 1, context) for size in sizes]
    with counting("Measuring", quiet=json_output) as report:
        samples = measure(replica.runner, shapes, replica.settings.block_size, report=report)
    layers = len(telemetry.layers)
    rows = [
        {
            "batch": sample.tokens,
            "ms": sample.seconds * 1e3,
            "ms_per_token": sample.seconds * 1e3 / sample.tokens,
            "experts_per_layer": (sample.experts or 0.0) / layers,
        }
        for sample in samples
    ]
    worst = cliff(rows)
    if json_output:
        print_json({"curve": rows, "cliff": worst})
        return
    _print_curve(rows, worst)


def cliff(rows: list[dict[str, float]]) -> int | None:
    """The batch size before which the step time grows most, as a ratio."""
    ratios = [
        (after["ms"] / before["ms"], int(after["batch"]))
        for before, after in itertools.pairwise(rows)
        if after["batch"] > before["batch"]
    ]
    return max(ratios)[1] if ratios else None


def _sizes(text: str) -> list[int]:
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError:
        sizes = []
    if not sizes or sizes[0] < 1:
        raise BadInput(f"--batches {text!r}: write sizes of at least 1 with commas, as in 1,4,16")
    return sizes


def _print_curve(rows: list[dict[str, float]], worst: int | None) -> None:
    table = Table("batch", "step ms", "ms per token", "experts per layer", "")
    longest = max(row["ms"] for row in rows)
    for row in rows:
        table.add_row(
            f"{row['batch']:.0f}",
            f"{row['ms']:.1f}",
            f"{row['ms_per_token']:.2f}",
            f"{row['experts_per_layer']:.2f}",
            "█" * max(1, round(40 * row["ms"] / longest)),
        )
    console = Console()
    console.print(table)
    if worst is not None:
        console.print(f"the step grows most on the way to batch {worst}: that is the cliff")
