"""Options of commands, computed from settings dataclasses (see `weighbridge.knobs`).

    @options
    def serve(model: Annotated[str, typer.Argument()], *, engine: EngineSettings) -> None: ...

A parameter whose type is a dataclass stands for all its knobs: each becomes an option of the command, and the
function is called with the settings that the options make.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from weighbridge.knobs import Knob, knobs, settings_from
from weighbridge.secret import Secret


def model_names(incomplete: str) -> list[str]:
    """What a shell offers for a model: names of the catalogue that begin so."""
    from weighbridge.models.catalogue.entries import CATALOGUE  # what completes nothing does not load it

    return [entry.name for entry in CATALOGUE if entry.name.startswith(incomplete)]


Model = Annotated[
    str | None,
    typer.Argument(help="Model name or path; none: the default model.", autocompletion=model_names),
]
JsonOutput = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Url = Annotated[str, typer.Option(envvar="WEIGHBRIDGE_URL", help="The server to ask.")]
ApiKey = Annotated[
    Secret | None,
    typer.Option(envvar="WEIGHBRIDGE_API_KEY", help="Its API key.", parser=Secret, metavar="TEXT"),
]
DEFAULT_URL = "http://127.0.0.1:8080"


@dataclass(frozen=True, slots=True)
class Without:
    """In `Annotated[Settings, Without({"name"})]`: fields that are no options of this command."""

    names: frozenset[str] | set[str]


@dataclass(frozen=True, slots=True)
class Only:
    """In `Annotated[Settings, Only({"name"})]`: the fields that are options of this command."""

    names: frozenset[str] | set[str]


@dataclass(frozen=True, slots=True)
class Panel:
    """In `Annotated[Settings, Panel("Title")]`: the heading of these options in `--help`."""

    title: str


def options(function: Callable[..., None]) -> Callable[..., None]:
    """Return the command whose options are the knobs of `function`'s settings, beside its other parameters."""
    parameters: list[inspect.Parameter] = []
    settings: dict[str, tuple[type, list[str]]] = {}
    for name, hint in _hints(function).items():
        kind, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if isinstance(kind, type) and is_dataclass(kind):
            chosen = _knobs(kind, extras)
            settings[name] = kind, [one.key for one, _ in chosen]
            parameters += [_option(one, title) for one, title in chosen]
        else:
            default = inspect.signature(function).parameters[name].default
            parameters.append(_parameter(name, hint, default))

    def command(**values: Any) -> None:
        for name, (kind, keys) in settings.items():
            values[name] = settings_from(kind, {key: values.pop(key) for key in keys})
        function(**values)

    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def written(context: typer.Context) -> set[str]:
    """Keys of the options that somebody wrote, on the command line or in the environment."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {
        name
        for name, source in sources.items()
        if source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")
    }


def _hints(function: Callable[..., None]) -> dict[str, Any]:
    hints = get_type_hints(function, include_extras=True)
    return {name: hints[name] for name in inspect.signature(function).parameters}


def _knobs(settings: type, extras: list[Any]) -> list[tuple[Knob, str | None]]:
    """The knobs that are options, with their headings."""
    chosen = knobs(settings)
    title: str | None = None
    for extra in extras:
        match extra:
            case Only(names):
                chosen = tuple(one for one in chosen if one.name in names)
            case Without(names):
                chosen = tuple(one for one in chosen if one.name not in names)
            case Panel(words):
                title = words
    return [(one, title) for one in chosen]


def _option(one: Knob, panel: str | None) -> inspect.Parameter:
    default = None if one.repeats else one.write(one.default)
    kind: Any = list[one.kind] if one.repeats else one.kind  # type: ignore[name-defined]
    option = typer.Option(
        *one.flags,
        help=one.help,
        min=one.min,
        max=one.max,
        envvar=one.environment,
        rich_help_panel=panel,
        autocompletion=_offered(one.choices) if one.choices else None,
    )
    return _parameter(one.key, Annotated[kind | None if default is None else kind, option], default)


def _offered(choices: tuple[str, ...]) -> Callable[[str], list[str]]:
    def offered(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return offered


def _parameter(name: str, hint: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
