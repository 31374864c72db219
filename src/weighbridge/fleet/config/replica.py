"""One replica's entry in weighbridge.yaml, or in the body of a request to add one."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from weighbridge.cost.price import FREE, Price
from weighbridge.cost.step import AS_CONTEXT, StepCost
from weighbridge.engine.settings import EngineSettings
from weighbridge.errors import BadInput
from weighbridge.fleet.abilities.ability import Ability
from weighbridge.fleet.config.command import PLACES, can_be_told, places_of
from weighbridge.fleet.config.placing import PACK, STRATEGIES
from weighbridge.fleet.config.reader import Problems, Section
from weighbridge.fleet.config.spec import KINDS, CapacitySpec, LimitSpec, RaySpec, ReplicaSpec
from weighbridge.fleet.load.dialects import DIALECTS
from weighbridge.fleet.load.scaling import ScalingSettings
from weighbridge.fleet.replica import Timeouts
from weighbridge.knobs import arguments
from weighbridge.secret import Secret, split_account, without_account
from weighbridge.wire.client import Trust

_COST_FIELDS = ("overhead", "memory", "per_token", "per_context_token", "per_sequence")


@dataclass(frozen=True, slots=True)
class Defaults:
    """What an entry inherits from the file around it."""

    timeouts: Timeouts = field(default_factory=Timeouts)
    probe: bool = True
    base: Path = Path()  # where relative paths start


def read_replica(section: Section, name: str, defaults: Defaults, url: str | None = None) -> ReplicaSpec:
    """Read a replica's entry; `name` is used where it gives none. Problems are noted in the section's list.

    `url`: of an entry that gives none itself, because its servers are found.
    """
    kind = "url" if url is not None else _kind(section)
    if url is not None:
        target, account = url, None
    else:
        target, account = _url(section) if kind == "url" else (section.text(kind), None)
    command = _words(section, "command")
    is_ours = kind != "url" and not command
    dialect = section.choice("dialect", "weighbridge" if is_ours else "openai", tuple(DIALECTS))
    spec = ReplicaSpec(
        name=section.text("name", name),
        kind=kind,
        target=target,
        dialect=dialect,
        model=section.text("model") or None,
        key=section.secret("key"),
        account=account,
        headers=section.secrets("headers"),
        price=_price(section.section("price")),
        capacity=read_capacity(section.section("capacity")),
        limits=read_limits(section.section("limits")),
        timeouts=read_timeouts(section.section("timeouts"), defaults.timeouts),
        trust=_trust(section, defaults.base),
        probe=section.flag("probe", defaults.probe),
        probe_path=section.text("probe_path") or None,
        prefix=_prefix(section),
        api_version=_api_version(section, dialect),
        abilities=_abilities(section),
        traces=section.flag("traces", False) if "traces" in section else None,
        kv_events=_zeromq_address(section, "kv_events"),
        kv_replay=_zeromq_address(section, "kv_replay"),
        stream_usage=section.flag("stream_usage", True),
        count=section.count("count", 1),
        threads=section.count("threads", None),
        options=_options(section),
        command=command,
        env=section.secrets("env"),
        ray=_ray(section),
    )
    _check_command(section, spec)
    if kind == "url" and spec.count != 1:
        section.problem("count", "one URL is one replica; write an entry for each")
    if kind == "engine" and spec.count != 1:
        section.problem("count", "one engine runs in this process; use `process:` for several")
    section.done()
    return spec


def _options(section: Section) -> tuple[str, ...]:
    """Options of `weighbridge serve` for a replica that is started here: its words, or a mapping of the engine's."""
    if not section.is_mapping("options"):
        words = section.texts("options")
        if any(word.partition("=")[0] == "--api-key" for word in words):
            section.problem("options", "cannot have --api-key: what is started here is asked by us alone")
        return words
    return tuple(arguments(section.section("options").settings(EngineSettings)))


def _check_command(section: Section, spec: ReplicaSpec) -> None:
    """Complain about a command that nobody would run, or that could not be found again."""
    if spec.command and spec.kind not in ("process", "ray"):
        section.problem("command", "starts an engine for `process:` or `ray:`; say what that loads there")
    elif spec.command and "port" not in places_of([*spec.command, *(v.reveal() for v in spec.env.values())]):
        section.problem(
            "command", "needs {port} where the engine is told where to listen, for example --port {port}"
        )
    elif spec.command and (spec.options or spec.threads):
        given = "options" if spec.options else "threads"
        section.problem(given, "are those of `weighbridge serve`; write them into `command`")
    elif spec.env and not spec.command:
        section.problem("env", "belongs to a `command`")
    if spec.kind in ("process", "ray"):
        for setting, words in (
            (spec.kind, (spec.target,)),
            ("command", spec.command),
            ("options", spec.options),
        ):
            if not all(map(can_be_told, words)):
                section.problem(setting, "has a character that no program can be told")
    for name in spec.env:
        if not name or "=" in name or not name.isprintable():
            section.problem("env", f"{name!r} is no name of a variable")


def _words(section: Section, name: str) -> tuple[str, ...]:
    """A command: a list of words, or one line as a shell has it. `{port}` without quotes is a mapping to YAML."""
    value = section.plain(name)
    if value is None:
        return ()
    if isinstance(value, str):
        try:
            return tuple(shlex.split(value))
        except ValueError as error:
            section.problem(name, f"cannot be split into words: {error}")
            return ()
    found = [_word(one) for one in value] if isinstance(value, list) else [None]
    if not found or None in found:
        section.problem(name, "must be a list of words, such as [vllm, serve, '{model}', --port, '{port}']")
        return ()
    return tuple(word for word in found if word is not None)


def _word(value: Any) -> str | None:
    if isinstance(value, dict):
        place = next(iter(value), None)
        return f"{{{place}}}" if place in PLACES and value == {place: None} else None
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None


def replica_from_json(value: Any, name: str) -> ReplicaSpec:
    """The same entry, sent as JSON at run time. Raises BadInput with everything that is wrong.

    JSON is YAML, so there is one reader for both.
    """
    problems = Problems("the request")
    node = yaml.SafeDumper("").represent_data(value) if isinstance(value, dict) else None
    if node is None:
        raise BadInput('send one replica as a JSON object, for example {"url": "http://127.0.0.1:8001"}')
    spec = read_replica(_Unplaced(node, "", problems), name, Defaults())
    problems.raise_any()
    return spec


class _Unplaced(Section):
    """A section that came from no file, so that its problems have no line."""

    def line_of(self, name: str) -> yaml.Node | None:
        return None


def _kind(section: Section) -> str:
    given = [kind for kind in KINDS if kind in section]
    if len(given) == 1:
        return given[0]
    wanted = ", ".join(f"`{kind}:`" for kind in KINDS)
    what = "says both " + " and ".join(given) if given else "does not say what it is"
    section.problem(given[1] if len(given) > 1 else "url", f"{what}; give exactly one of {wanted}")
    return given[0] if given else "url"


def _url(section: Section) -> tuple[str, Secret | None]:
    """The server's URL, and the account that stood in it."""
    text = section.text("url").rstrip("/")
    try:
        url, account = split_account(text)
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        url, account, valid = text, None, False
    shown = without_account(text)
    if "url" in section and not valid:
        section.problem("url", f"{shown!r} is no URL; write for example http://127.0.0.1:8000")
    elif "@" in url:  # behind the host: most likely a password with a / in it
        section.problem(
            "url", f"{shown!r} has an @ behind its host; write / as %2F and @ as %40 in a password"
        )
    elif parts.query or parts.fragment:
        section.problem("url", "has a ? or # in it; a key goes into `key`, or into one of `headers`")
    return url.removesuffix("/v1"), account


def _trust(section: Section, base: Path) -> Trust:
    """What the server behind an https URL is believed by, and what we show it."""
    names = ("tls_ca", "tls_cert", "tls_key")
    ca, cert, key = (section.path(name, base, must_exist=True) for name in names)
    if key is not None and cert is None:
        section.problem("tls_key", "needs tls_cert, the certificate it belongs to")
    return Trust(ca, cert, key)


def _abilities(section: Section) -> dict[Ability, bool]:
    """What it is stated to have and to lack. A list stands for a place of a route, which reads it itself."""
    if "abilities" not in section or isinstance(section.plain("abilities"), list):
        return {}
    if not section.is_mapping("abilities"):
        section.problem("abilities", "must be a mapping, for example {tools: true, vision: false}")
        return {}
    stated = section.section("abilities")
    found = {one: stated.flag(one.value, False) for one in Ability if one.value in stated}
    stated.done()
    return found


def _api_version(section: Section, dialect: str) -> str | None:
    """Azure's older paths name the deployment and a version of the API."""
    given = section.plain("api_version")
    version = None if given is None else str(given)  # YAML takes 2024-10-21 for a date
    if version is not None and dialect != "azure":
        section.problem("api_version", "is Azure's; write `dialect: azure` beside it")
    elif version is not None and not re.fullmatch(r"[0-9A-Za-z.-]{1,40}", version):
        section.problem("api_version", f"{version!r} is no version; write for example 2024-10-21")
    elif version is not None and not section.text("model"):
        section.problem("model", "is missing; with `api_version` it is the name of the deployment")
    return version


def _zeromq_address(section: Section, name: str) -> str | None:
    """Where a server publishes KV events, or sends them again."""
    if name not in section:
        return None
    address = section.text(name)
    parts = urlsplit(address)
    try:
        host = parts.hostname
        valid = parts.scheme == "tcp" and bool(host) and host != "*" and bool(parts.port)
        valid = valid or (parts.scheme == "ipc" and parts.path.startswith("/"))
    except ValueError:
        valid = False
    if not valid:
        section.problem(
            name,
            f"{address!r} is no address to listen at; write for example tcp://10.0.0.5:5557 or ipc:///run/kv",
        )
    elif name == "kv_replay" and "kv_events" not in section:
        section.problem(name, "needs kv_events, the address where the events themselves come from")
    return address if valid else None


def _prefix(section: Section) -> str | None:
    """What stands in a server's paths where others have /v1; empty is possible, so it is not read as a text."""
    value = section.plain("prefix")
    if value is None:
        return None
    if not isinstance(value, str) or (value and not value.startswith("/")) or value.endswith("/"):
        section.problem("prefix", "must begin with / and not end with it, such as /v2, or be empty: ''")
        return None
    return value


def _price(section: Section) -> Price:
    price = Price(
        input_usd_per_million=section.number("input_usd_per_million", 0.0),
        output_usd_per_million=section.number("output_usd_per_million", 0.0),
        cached_usd_per_million=section.number("cached_usd_per_million", None),
        usd_per_hour=section.number("usd_per_hour", 0.0),
        cache_write_usd_per_million=section.number("cache_write_usd_per_million", None),
    )
    section.done()
    return price if price != FREE else FREE


def read_capacity(section: Section) -> CapacitySpec:
    cost = section.section("step_cost") if "step_cost" in section else None
    spec = CapacitySpec(
        step_cost=read_step_cost(cost) if cost is not None else None,
        kv_tokens=section.count("kv_tokens", None),
        max_sequences=section.count("max_sequences", 256),
        max_batch_tokens=section.count("max_batch_tokens", 2048),
        max_model_len=section.count("max_model_len", None),
    )
    section.done()
    return spec


def read_step_cost(section: Section) -> StepCost:
    """Its five coefficients in seconds, as `weighbridge calibrate` prints them, and `per_prompt_pair` if it differs."""
    missing = [name for name in _COST_FIELDS if name not in section]
    if missing:
        section.problem(
            missing[0], "is missing; a step cost needs " + ", ".join(_COST_FIELDS) + ", in seconds"
        )
    values = {name: section.number(name, 0.0) for name in _COST_FIELDS}
    cost = StepCost(**values, per_prompt_pair=section.number("per_prompt_pair", AS_CONTEXT))
    section.done()
    return cost


def read_limits(section: Section) -> LimitSpec:
    spec = LimitSpec(
        requests_per_minute=section.count("requests_per_minute", None),
        tokens_per_minute=section.count("tokens_per_minute", None),
        concurrent_requests=section.count("concurrent_requests", None),
        usd_per_day=section.number("usd_per_day", None, above=0.0),
    )
    section.done()
    return spec


def read_timeouts(section: Section, default: Timeouts) -> Timeouts:
    timeouts = Timeouts(
        connect=section.number("connect", default.connect, above=0.0),
        first_byte=section.number("first_byte", default.first_byte, above=0.0),
        answer=section.number("answer", default.answer, above=0.0),
        idle=section.number("idle", default.idle, above=0.0),
        probe=section.number("probe", default.probe, above=0.0),
    )
    section.done()
    return timeouts


def _ray(section: Section) -> RaySpec:
    if "ray" not in section:
        return RaySpec()
    bundles = _bundles(section)
    if bundles:
        for name in ("cpus", "gpus", "resources"):
            if name in section:
                section.problem(
                    name, "stands beside bundles; write it into the first of them, as CPU and GPU"
                )
    return RaySpec(
        scaling=_scaling(section),
        cpus=section.number("cpus", 1.0),
        gpus=section.number("gpus", 0.0),
        resources=section.numbers("resources"),
        bundles=bundles,
        strategy=section.choice("strategy", PACK, STRATEGIES),
        runtime_env=_plain_mapping(section, "runtime_env"),
        address=section.text("address") or None,
        namespace=section.text("namespace", "weighbridge"),
        keep=section.flag("keep", True),
        waits_for_nodes=section.flag("waits_for_nodes", False),
    )


def _bundles(section: Section) -> tuple[dict[str, float], ...]:
    """Resources that are reserved together, such as [{GPU: 4, CPU: 8}, {GPU: 4}]."""
    found = []
    for entry in section.items("bundles"):
        found.append({name: float(entry.number(name, 0.0)) for name in entry})
        entry.done()
    return tuple(found)


def _plain_mapping(section: Section, name: str) -> dict[str, Any]:
    """A mapping that goes on as it is."""
    value = section.plain(name)
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        section.problem(name, "must be a mapping, for example {env_vars: {HF_HOME: /models}}")
        return {}
    return value


def _scaling(section: Section) -> ScalingSettings:
    default = ScalingSettings()
    smallest = section.count("min", default.least)
    rules = section.section("scaling")
    settings = ScalingSettings(
        least=smallest,
        most=section.count("max", smallest),
        high=rules.number("high", default.high, above=0.0),
        low=rules.number("low", default.low),
        up_after=rules.number("up_after", default.up_after),
        down_after=rules.number("down_after", default.down_after),
        settle=rules.number("settle", default.settle),
        ttft=rules.number("ttft", None, above=0.0),
        itl=rules.number("itl", None, above=0.0),
    )
    if settings.low >= settings.high:
        rules.problem("low", f"must be less than high ({settings.high:g}), or replicas come and go in turn")
    rules.done()
    if settings.most < settings.least:
        section.problem("max", f"must not be less than min ({settings.least})")
    return settings
