"""`weighbridge state backup|check|migrate`: while servers and flows are using the files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from weighbridge.cli.config import DEFAULT_FILE
from weighbridge.cli.options import JsonOutput
from weighbridge.cli.state.kinds import Finding, StateFile, recognise
from weighbridge.cli.terminal import outside, print_json, visible, whole_table
from weighbridge.errors import BadInput, WeighbridgeError
from weighbridge.fleet.config.load import config_text
from weighbridge.fleet.config.reader import read_yaml
from weighbridge.models.catalogue.store import weighbridge_home
from weighbridge.server.responses.file import RESPONSES_FILE

Files = Annotated[
    list[Path] | None,
    typer.Argument(
        help="The files (default: those of the configuration, and journals and calibrations of the home)."
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(help=f"The configuration that names files (default: {DEFAULT_FILE}, if it is there)."),
]


def check(files: Files = None, config: Config = None, json_output: JsonOutput = False) -> None:
    """Read every file and say what it is, of which version, and whether it is well; exit 1 if one is not."""
    found = [_checked(path) for path in _chosen(files, config)]
    if json_output:
        print_json({"files": [_plain(one) for one in found]})
    else:
        table = whole_table("file", "kind", "version", "bytes", "state")
        for one in found:
            version = "-" if one.problem and not one.kind else f"{one.version} of {one.current}"
            table.add_row(*map(outside, (one.path, one.kind or "?", version, one.size, _state(one))))
        Console().print(table)
    bad = [one for one in found if one.problem]
    if bad:
        raise WeighbridgeError("\n".join(one.problem for one in bad))


def _checked(path: Path) -> Finding:
    try:
        return recognise(path).check()
    except WeighbridgeError as error:
        size = path.stat().st_size if path.is_file() else 0
        return Finding(path, "", 0, 0, size, str(error))


def _state(one: Finding) -> str:
    if one.problem:
        return "bad"
    state = "old: it is migrated when it is used" if one.is_old else "well"
    return f"{state}, {one.note}" if one.note else state


def _plain(one: Finding) -> dict[str, object]:
    return {
        "file": str(one.path),
        "kind": one.kind or None,
        "version": one.version,
        "current": one.current,
        "bytes": one.size,
        "ok": not one.problem,
        "old": one.is_old,
        "problem": one.problem or None,
        "note": one.note or None,
    }


def backup(
    to: Annotated[Path, typer.Option(help="A directory for the copies; it must not hold them yet.")],
    files: Files = None,
    config: Config = None,
    json_output: JsonOutput = False,
) -> None:
    """Copy every file as it is at one moment, and check the copies; servers and flows go on meanwhile."""
    known = [recognise(path) for path in _chosen(files, config)]
    targets = _targets(known, to)
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--to {to}: {(error.strerror or str(error)).lower()}") from error
    copied = []
    for one, target in zip(known, targets, strict=True):
        part = target.with_name(f".{target.name}.part")
        try:
            one.copy(part)
            part.rename(target)
        except OSError as error:
            raise WeighbridgeError(f"{target}: {(error.strerror or str(error)).lower()}") from error
        finally:
            part.unlink(missing_ok=True)
        copied.append(
            {"file": str(one.path), "kind": one.name, "copy": str(target), "bytes": target.stat().st_size}
        )
        if not json_output:
            print(visible(f"{one.name} {one.path} -> {target}, {copied[-1]['bytes']} bytes"))
    if json_output:
        print_json({"files": copied})


def _targets(known: list[StateFile], to: Path) -> list[Path]:
    """A name for each copy. Raises BadInput where one is taken."""
    targets: list[Path] = []
    for one in known:
        target = to / one.path.name
        if target in targets:
            target = to / f"{one.path.resolve().parent.name}-{one.path.name}"
        if target.exists() or target in targets:
            raise BadInput(f"{target} is there already; give another directory to --to")
        targets.append(target)
    return targets


def migrate(files: Files = None, config: Config = None, json_output: JsonOutput = False) -> None:
    """Bring every file to this version, a copy of what it was beside it; a server does the same when it begins."""
    known = [recognise(path) for path in _chosen(files, config)]
    done = []
    for one in known:
        done.append({"file": str(one.path), "kind": one.name, "done": one.migrate()})
        if not json_output:
            print(visible(f"{one.name} {one.path}: {done[-1]['done']}"))
    if json_output:
        print_json({"files": done})


# -- which files ---------------------------------------------------------------------------------------------


def _chosen(files: list[Path] | None, config: Path | None) -> list[Path]:
    """Raises BadInput where there is none."""
    if files:
        return files
    chosen = [path for path in dict.fromkeys([*_named(config), *_at_home()]) if path.is_file()]
    if not chosen:
        raise BadInput("there are no files yet; name some, or a configuration with --config")
    return chosen


def _named(config: Path | None) -> Iterator[Path]:
    """The files that a configuration names. Its keys are not read, so that they need not be set here."""
    if config is None and not DEFAULT_FILE.exists():
        return
    file = config or DEFAULT_FILE
    root, _ = read_yaml(config_text(file), str(file))
    for name in ("ledger", "tickets", "shadow_file", "responses_file", "batches_file"):
        path = root.path(name, file.parent, must_exist=False)
        if path is not None:
            yield path
            yield path.with_name(f"{path.name}.1")
    for _, route in root.named("routes"):
        router = route.path("router", file.parent, must_exist=False)
        if router is not None:
            yield router


def _at_home() -> Iterator[Path]:
    yield weighbridge_home() / "flows.sqlite"
    yield weighbridge_home() / RESPONSES_FILE
    yield from sorted((weighbridge_home() / "calibration").glob("*.json"))
