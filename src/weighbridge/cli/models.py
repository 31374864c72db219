"""`weighbridge models`: what is known, what is here, and bringing it here."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from weighbridge.cli.options import JsonOutput, model_names
from weighbridge.cli.terminal import DownloadBar, outside, print_json, whole_table
from weighbridge.errors import BadInput
from weighbridge.models.catalogue import entries as catalogue
from weighbridge.models.catalogue.store import installed, resolve


def list_models(json_output: JsonOutput = False) -> None:
    """The catalogue, and which of its models are in the cache."""
    here = {one.entry.name: one.path for one in installed()}
    if json_output:
        print_json(
            [
                {
                    "name": entry.name,
                    "aliases": list(entry.aliases),
                    "licence": entry.licence,
                    "description": entry.description,
                    "bytes": entry.size,
                    "terms": entry.terms,
                    "path": str(here[entry.name]) if entry.name in here else None,
                }
                for entry in catalogue.CATALOGUE
            ]
        )
        return
    table = whole_table("name", "MB", "licence", "pulled", "description")
    for entry in catalogue.CATALOGUE:
        size = f"{entry.size / 1e6:,.0f}"
        pulled = "yes" if entry.name in here else "no"
        table.add_row(entry.name, size, entry.licence, pulled, entry.description)
    Console().print(table)


def pull_model(
    name: Annotated[
        str, typer.Argument(help="A name from `weighbridge models list`.", autocompletion=model_names)
    ] = "default",
) -> None:
    """Bring a model into the cache, checked against its pinned hash."""
    if catalogue.find(name) is None and "/" not in name:
        known = ", ".join(entry.name for entry in catalogue.CATALOGUE)
        raise BadInput(
            f"no model {name!r} in the catalogue{catalogue.guess(name)}; there is {known}", param="name"
        )
    print(resolve(name, progress=DownloadBar(f"Pulling {name}")))


def show_model(
    model: Annotated[str, typer.Argument(help="A name or a path.", autocompletion=model_names)] = "default",
    json_output: JsonOutput = False,
) -> None:
    """A model's shape: layers, heads, context, and what a token costs in KV memory."""
    from weighbridge.models.any_model import open_model  # loads torch

    path = resolve(model, progress=DownloadBar(f"Pulling {model}"))
    config = open_model(path).config
    if json_output:
        kv = {"path": str(path), "kv_bytes_per_token_bf16": config.kv_elements_per_token * 2}
        print_json({**asdict(config), **kv})
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "path": path,
        "architecture": config.architecture,
        "layers": config.num_layers,
        "hidden size": config.hidden_size,
        "heads": f"{config.num_heads} for queries, {config.num_kv_heads} for keys and values, {config.head_dim} wide",
        "vocabulary": config.vocab_size,
        "context": config.max_position_embeddings,
        "KV bytes per token": f"{config.kv_elements_per_token * 2} in bfloat16",
    }
    for name, value in rows.items():
        table.add_row(name, outside(value))
    Console().print(table)
