"""`--features`: which vectors beside the text `route train`, `eval` and `calibrate` use, and where they come from."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weighbridge.cli.remote import Server
from weighbridge.errors import BadInput, WeighbridgeError
from weighbridge.knobs import knob
from weighbridge.routes.difficulty.embedders.edge_state import EdgeServer, EdgeState
from weighbridge.routes.difficulty.embedders.minilm import MiniLm
from weighbridge.routes.difficulty.embedders.vectors import Embedder, Source, VectorTable, embed_all, mismatch
from weighbridge.routes.difficulty.trained import TrainedRouter
from weighbridge.routes.place import is_here
from weighbridge.secret import Secret

KNOWN = ("text", "minilm", "edge")
#: Seconds that the edge may take for one of many prompts; it may have other work.
PATIENCE = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSettings:
    """Where the edge's engine is, for the features `edge`."""

    url: str | None = knob(None, "The edge's engine, such as http://127.0.0.1:8000.", flag="--edge-url")
    model: str | None = knob(None, "The edge's model; none: the one it serves.")
    key: Secret | None = knob(
        None,
        "The edge's API key.",
        flag="--edge-key",
        environment="WEIGHBRIDGE_API_KEY",
        parse=Secret,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSettings(EdgeSettings):
    """What a prompt is judged by."""

    features: str = knob(
        "text",
        "What a prompt is judged by: text, and with it minilm (extra `embedding`) or edge (the state of "
        "the edge's engine at --edge-url), such as text,minilm,edge.",
    )


def named(features: str) -> tuple[str, ...]:
    """The vectors in `--features`; the text is always used. Raises BadInput."""
    names = tuple(dict.fromkeys(one.strip() for one in features.split(",") if one.strip()))
    for name in names:
        if name not in KNOWN:
            raise BadInput(f"--features: {name!r} is not one of {', '.join(KNOWN)}")
    return tuple(name for name in KNOWN[1:] if name in names)


def tables(names: Sequence[str], prompts: Sequence[str], edge: EdgeSettings) -> list[VectorTable]:
    """The vectors of all prompts. Raises BadInput where a source is missing or fails."""
    if "edge" in names and edge.url is None:
        raise BadInput(
            "the features edge need the edge's engine; give --edge-url, such as http://127.0.0.1:8000"
        )
    return asyncio.run(_tables(names, prompts, edge)) if names else []


def tables_for(router: TrainedRouter, prompts: Sequence[str], edge: EdgeSettings) -> list[VectorTable]:
    """The vectors that a router wants, from the models it was trained with."""
    wanted: dict[str, Source] = {one.name: one for one in router.wanted}
    found = tables(tuple(wanted), prompts, edge)
    for table in found:
        if table.source != wanted[table.source.name]:
            raise BadInput(mismatch(wanted[table.source.name], table.source))
    return found


def used(found: Sequence[VectorTable]) -> list[str]:
    """What was judged by, for people and programs."""
    return ["text", *(table.source.name for table in found)]


async def _tables(names: Sequence[str], prompts: Sequence[str], edge: EdgeSettings) -> list[VectorTable]:
    found = []
    for name in names:
        embedder, close = await _embedder(name, edge)
        try:
            found.append(await embed_all(embedder, prompts))
        finally:
            for one in close:
                await one.close()
    return found


async def _embedder(name: str, edge: EdgeSettings) -> tuple[Embedder, list[Any]]:
    """An embedder, and what to close after it."""
    if name == "minilm":
        embedder = MiniLm(threads=2)
        return embedder, [embedder]
    url = (edge.url or "").rstrip("/")
    url = url if url.endswith("/v1") else f"{url}/v1"
    if not url.startswith(("http://", "https://")) or not is_here(url):
        raise BadInput(
            f"--edge-url: must be an engine on this machine, such as http://127.0.0.1:8000, not {edge.url}"
        )
    model = edge.model or await _only_model(url, edge.key)
    server = EdgeServer(url.removesuffix("/v1"), model, edge.key)
    return EdgeState(server, PATIENCE), [server]


async def _only_model(url: str, key: Secret | None) -> str:
    """The model that a server has, where there is one only."""
    try:
        listed = await Server(url, key, mistakes=()).answer("GET", "/models", patience=30.0)
        names = [str(one["id"]) for one in listed["data"]]
    except (WeighbridgeError, KeyError, TypeError) as error:
        raise BadInput(f"--edge-url: {url} does not say which models it has ({error})") from error
    if len(names) != 1:
        raise BadInput(f"--model: say which of {', '.join(names)}")
    return names[0]
