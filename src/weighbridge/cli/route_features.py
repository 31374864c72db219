"""`--features`: which vectors beside the text `route train`, `eval` and `calibrate` use, and where they come from."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weighbridge.errors import BadInput

if TYPE_CHECKING:
    from weighbridge.routes.difficulty.trained import TrainedRouter
    from weighbridge.routes.difficulty.vectors import Embedder, Source, VectorTable

KNOWN = ("text", "minilm", "edge")
#: Seconds that the edge may take for one of many prompts; it may have other work.
PATIENCE = 600.0

Features = Annotated[
    str,
    typer.Option(
        help="What a prompt is judged by: text, and with it minilm (extra `embedding`) or edge (the state of "
        "the edge's engine at --edge-url), such as text,minilm,edge."
    ),
]
EdgeUrl = Annotated[str | None, typer.Option(help="The edge's engine, such as http://127.0.0.1:8000.")]
EdgeModel = Annotated[str | None, typer.Option("--model", help="The edge's model; none: the one it serves.")]
EdgeKey = Annotated[str | None, typer.Option(envvar="WEIGHBRIDGE_API_KEY", help="The edge's API key.")]


@dataclass(frozen=True, slots=True)
class Edge:
    """Where the edge's engine is, for the features `edge`."""

    url: str | None = None
    model: str | None = None
    key: str | None = None


def named(features: str) -> tuple[str, ...]:
    """The vectors in `--features`; the text is always used. Raises BadInput."""
    names = tuple(dict.fromkeys(one.strip() for one in features.split(",") if one.strip()))
    for name in names:
        if name not in KNOWN:
            raise BadInput(f"--features: {name!r} is not one of {', '.join(KNOWN)}")
    return tuple(name for name in KNOWN[1:] if name in names)


def tables(names: Sequence[str], prompts: Sequence[str], edge: Edge) -> list[VectorTable]:
    """The vectors of all prompts. Raises BadInput where a source is missing or fails."""
    if "edge" in names and edge.url is None:
        raise BadInput(
            "the features edge need the edge's engine; give --edge-url, such as http://127.0.0.1:8000"
        )
    return asyncio.run(_tables(names, prompts, edge)) if names else []


def tables_for(router: TrainedRouter, prompts: Sequence[str], edge: Edge) -> list[VectorTable]:
    """Those that a router wants, from the models it was trained with."""
    from weighbridge.routes.difficulty.vectors import mismatch

    wanted: dict[str, Source] = {one.name: one for one in router.wanted}
    found = tables(tuple(wanted), prompts, edge)
    for table in found:
        if table.source != wanted[table.source.name]:
            raise BadInput(mismatch(wanted[table.source.name], table.source))
    return found


def used(found: Sequence[VectorTable]) -> list[str]:
    """What was judged by, for people and programs."""
    return ["text", *(table.source.name for table in found)]


async def _tables(names: Sequence[str], prompts: Sequence[str], edge: Edge) -> list[VectorTable]:
    from weighbridge.routes.difficulty.vectors import embed_all

    found = []
    for name in names:
        embedder, close = await _embedder(name, edge)
        try:
            found.append(await embed_all(embedder, prompts))
        finally:
            for one in close:
                await one.close()
    return found


async def _embedder(name: str, edge: Edge) -> tuple[Embedder, list[Any]]:
    """An embedder, and what to close after it."""
    if name == "minilm":
        from weighbridge.routes.difficulty.minilm import MiniLm

        embedder = MiniLm(threads=2)
        return embedder, [embedder]
    from weighbridge.routes.difficulty.edge_state import EdgeServer, EdgeState
    from weighbridge.routes.place import is_here

    url = (edge.url or "").rstrip("/")
    url = url if url.endswith("/v1") else f"{url}/v1"
    if not url.startswith(("http://", "https://")) or not is_here(url):
        raise BadInput(
            f"--edge-url: must be an engine on this machine, such as http://127.0.0.1:8000, not {edge.url}"
        )
    model = edge.model or await _only_model(url, edge.key)
    server = EdgeServer(url.removesuffix("/v1"), model, edge.key)
    return EdgeState(server, PATIENCE), [server]


async def _only_model(url: str, key: str | None) -> str:
    """The model that a server has, where there is one only."""
    import aiohttp

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30)) as session,
            session.get(f"{url}/models", headers=headers) as answer,
        ):
            names = [one["id"] for one in (await answer.json())["data"]]
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"--edge-url: {url} does not say which models it has ({error})") from error
    if len(names) != 1:
        raise BadInput(f"--model: say which of {', '.join(names)}")
    return str(names[0])
