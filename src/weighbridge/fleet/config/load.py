"""weighbridge.yaml into a `FleetSpec`. Every complaint points at a line and says what to write."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from weighbridge.errors import BadInput
from weighbridge.fleet.config.discovery import read_discovery
from weighbridge.fleet.config.keeping import KeepSettings
from weighbridge.fleet.config.on_demand import OnDemandSettings
from weighbridge.fleet.config.reader import UNSET, Section, read_yaml
from weighbridge.fleet.config.replica import Defaults, read_replica, read_timeouts
from weighbridge.fleet.config.spec import (
    STARTED_HERE,
    FleetSpec,
    HealthSpec,
    KeySpec,
    ModelSpec,
    PeersSpec,
    QueueSpec,
    SharedLimitsSpec,
    TenantSpec,
)
from weighbridge.fleet.limits.connection import SCHEMES
from weighbridge.fleet.limits.periods import zone_of
from weighbridge.fleet.limits.tenant import TenantLimits
from weighbridge.fleet.policies import DEFAULT_POLICY, POLICIES
from weighbridge.fleet.reliability.breaker import BreakerSettings
from weighbridge.fleet.reliability.hedge import HedgeSettings
from weighbridge.fleet.reliability.retry import RetrySettings
from weighbridge.fleet.replica import Timeouts
from weighbridge.knobs import parse_bytes
from weighbridge.secret import Secret
from weighbridge.wire.keys import digest_of

#: A gateway's name among others.
_GATEWAY = re.compile(r"[A-Za-z0-9_-]{1,60}")


def load_config(path: Path) -> FleetSpec:
    """Raises BadInput with one line for each thing that is wrong."""
    return parse_config(config_text(path), str(path), path.parent)


def config_text(path: Path) -> str:
    """Raises BadInput where there is nothing to read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise BadInput(f"cannot read the configuration {path}: {str(reason).lower()}") from error


def parse_config(text: str, file: str, base: Path) -> FleetSpec:
    """Read a configuration; `base` is where relative paths start. Raises BadInput like `load_config`."""
    root, problems = read_yaml(text, file)
    spec = read_fleet(root, base)
    root.done()
    problems.raise_any()
    return spec


def read_fleet(root: Section, base: Path, *, needs_models: bool = True) -> FleetSpec:
    """The fleet's part of a file; what is wrong is noted in its problems.

    `needs_models`: off for a file with routes, whose places may be replicas of their own.
    """
    host, port = _listen(root)
    timeouts = read_timeouts(root.section("timeouts"), Timeouts())
    hedge = _hedge(root.section("hedge"), HedgeSettings())
    policy = root.choice("policy", DEFAULT_POLICY, tuple(POLICIES))
    resume = root.flag("resume", False)
    models = tuple(
        _model(name, section, base, Defaults(timeouts, base=base), hedge, policy, resume)
        for name, section in root.named("models")
    )
    if not models and needs_models:
        root.problem("models", "needs at least one model with its replicas")
    _check_names(root, models)
    _check_on_demand(root)
    tenants = tuple(_tenant(name, section) for name, section in root.named("tenants"))
    _check_keys(root, tenants)
    shared_limits, peers = _shared(root)
    return FleetSpec(
        models=models,
        host=host,
        port=port,
        handover=root.path("handover", base, must_exist=False),
        admin_key=_key_or_hash(root, "admin_key"),
        tenants=tenants,
        default_limits=_tenant_limits(root.section("limits")),
        shared_limits=shared_limits,
        peers=peers,
        queue=_queue(root.section("queue")),
        health=_health(root.section("health")),
        retry=_retry(root.section("retry")),
        breaker=_breaker(root.section("breaker")),
        tickets=root.path("tickets", base, must_exist=False),
        changes_file=root.path("changes_file", base, must_exist=False),
        max_body=_bytes(root, "max_body", 8 << 20),
        drain_timeout=root.number("drain_timeout", 30.0),
        on_demand=root.section("on_demand").settings(OnDemandSettings) if "on_demand" in root else None,
        **root.fields(KeepSettings, base),
    )


def _shared(root: Section) -> tuple[SharedLimitsSpec | None, PeersSpec | None]:
    """What several gateways share: limits alone (`shared_limits`), or all of it (`shared`)."""
    if "shared" not in root:
        return _shared_limits(root), None
    if "shared_limits" in root:
        root.problem("shared_limits", "is given beside shared, which holds limits too; keep the latter")
    section = root.section("shared")
    redis, prefix, timeout = _redis_of(section)
    limits = section.flag("limits", True)
    name = section.text("name") or None
    if name is not None and _GATEWAY.fullmatch(name) is None:
        section.problem("name", f"{name!r} is no name of a gateway; write letters, digits, - and _, up to 60")
    peers = PeersSpec(
        redis,
        prefix,
        timeout,
        name,
        members=section.flag("members", True),
        tenants=section.flag("tenants", True),
        learned=section.flag("learned", True),
        streams=_bytes(section, "streams", 0),
    )
    if not ("admin_key" in root or "admin_key_env" in root):
        root.problem("admin_key", "is missing; what gateways tell each other is sealed with it (`shared`)")
    section.done()
    return SharedLimitsSpec(redis, prefix, timeout) if limits else None, peers


def _shared_limits(root: Section) -> SharedLimitsSpec | None:
    if "shared_limits" not in root:
        return None
    section = root.section("shared_limits")
    spec = SharedLimitsSpec(*_redis_of(section))
    section.done()
    return spec


def _redis_of(section: Section) -> tuple[Secret, str, float]:
    """The address of a Redis, what its keys begin with, and the seconds that it may take."""
    redis = section.secret("redis")
    if redis is None:
        section.problem("redis", "is missing; write redis://HOST:PORT/0, or redis_env: VARIABLE with it")
    elif redis != UNSET and not redis.reveal().startswith(SCHEMES):
        section.problem("redis", "is no URL of a Redis; write redis://HOST:PORT/0")
    return redis or UNSET, section.text("prefix", "weighbridge"), section.number("timeout", 0.25, above=0.0)


def _listen(root: Section) -> tuple[str, int]:
    text = root.text("listen", "127.0.0.1:8080")
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or len(port) > 5 or int(port) > 65535:
        root.problem("listen", f"{text!r} is no address; write HOST:PORT, for example 127.0.0.1:8080")
        return "127.0.0.1", 8080
    return host.strip("[]"), int(port)


def _bytes(root: Section, name: str, default: Any) -> Any:
    given = root.texts(name)
    if not given:
        return default
    try:
        return parse_bytes(given[0])
    except BadInput as error:
        root.problem(name, str(error))
        return default


def _model(
    name: str,
    section: Section,
    base: Path,
    defaults: Defaults,
    hedge: HedgeSettings,
    policy: str,
    resume: bool,
) -> ModelSpec:
    replicas = [
        read_replica(entry, f"{name}-{index}", defaults)
        for index, entry in enumerate(section.items("replicas"))
    ]
    discover = [
        read_discovery(entry, name if index == 0 else f"{name}-{index}", defaults)
        for index, entry in enumerate(section.items("discover"))
    ]
    if not replicas and not discover:
        section.problem("replicas", "needs at least one entry, for example `- url: http://127.0.0.1:8000`")
    spec = ModelSpec(
        name=name,
        replicas=tuple(replicas),
        aliases=section.texts("aliases"),
        tokenizer=section.path("tokenizer", base, must_exist=True),
        policy=section.choice("policy", policy, tuple(POLICIES)),
        resume=section.flag("resume", resume),
        keep_streams=section.flag("keep_streams", False),
        hedge=_hedge(section.section("hedge"), hedge),
        default_max_tokens=section.count("default_max_tokens", 1024),
        thinking_tokens=section.count("thinking_tokens", None, least=0),
        only_routes=section.flag("only_routes", False),
        keep=section.flag("keep", False),
        keep_alive=section.number("keep_alive", None),
        memory=_bytes(section, "memory", None),
        discover=tuple(discover),
    )
    if spec.tokenizer is None and any(one.kv_events and one.kind == "url" for one in replicas):
        section.problem(
            "tokenizer",
            "is missing; kv_events name blocks by their tokens, so prompts must be counted exactly",
        )
    is_known = spec.tokenizer is not None or any(one.brings_tokenizer for one in replicas)
    if spec.resume and not is_known and any(one.kind in STARTED_HERE for one in replicas):
        section.problem(
            "tokenizer",
            "is missing; `resume` goes on with streams by their tokens: name the model's directory",
        )
    section.done()
    return spec


def _check_on_demand(root: Section) -> None:
    """Complain of settings that mean something only where models are loaded on demand."""
    if "on_demand" in root:
        return
    for _, section in root.named("models"):
        for name in ("keep", "keep_alive", "memory"):
            if section.has(name):
                section.problem(name, "is for models that are loaded on demand; write `on_demand: {}` too")


def _check_names(root: Section, models: tuple[ModelSpec, ...]) -> None:
    """Complain unless each name leads to one model, and each replica's name to one replica."""
    models_of: dict[str, str] = {}
    replicas: set[str] = set()
    for model in models:
        for name in (model.name, *model.aliases):
            if name in models_of:
                root.problem(
                    "models", f"the name {name!r} leads to {models_of[name]!r} and to {model.name!r}"
                )
            models_of[name] = model.name
        for replica in model.replicas:
            if replica.name in replicas:
                root.problem("models", f"two replicas are called {replica.name!r}; names must differ")
            replicas.add(replica.name)


def _hedge(section: Section, default: HedgeSettings) -> HedgeSettings:
    settings = HedgeSettings(
        enabled=section.flag("enabled", default.enabled),
        quantile=section.number("quantile", default.quantile, above=0.0),
        extra_work=section.number("extra_work", default.extra_work, above=0.0),
        minimum_delay=section.number("minimum_delay", default.minimum_delay),
        minimum_samples=section.count("minimum_samples", default.minimum_samples),
    )
    if settings.quantile >= 1.0:
        section.problem("quantile", "must be less than 1, for example 0.95")
    section.done()
    return settings


def _queue(section: Section) -> QueueSpec:
    default = QueueSpec()
    spec = QueueSpec(
        max_requests=section.count("max_requests", default.max_requests),
        max_tokens=section.count("max_tokens", default.max_tokens),
        max_wait=section.number("max_wait", default.max_wait, above=0.0),
        tenant_patience=section.number("tenant_patience", default.tenant_patience),
    )
    section.done()
    return spec


def _health(section: Section) -> HealthSpec:
    default = HealthSpec()
    spec = HealthSpec(
        interval=section.number("interval", default.interval, above=0.0),
        failures=section.count("failures", default.failures),
        slow_start=section.number("slow_start", default.slow_start),
    )
    section.done()
    return spec


def _retry(section: Section) -> RetrySettings:
    default = RetrySettings()
    settings = RetrySettings(
        attempts=section.count("attempts", default.attempts),
        budget=section.number("budget", default.budget),
        burst=section.number("burst", default.burst),
        longest_wait=section.number("longest_wait", default.longest_wait),
    )
    section.done()
    return settings


def _breaker(section: Section) -> BreakerSettings:
    default = BreakerSettings()
    settings = BreakerSettings(
        failures=section.count("failures", default.failures),
        failure_rate=section.number("failure_rate", default.failure_rate, above=0.0),
        minimum=section.count("minimum", default.minimum),
        window=section.number("window", default.window, above=0.0),
        cool_off=section.number("cool_off", default.cool_off, above=0.0),
        longest_cool_off=section.number("longest_cool_off", default.longest_cool_off, above=0.0),
    )
    section.done()
    return settings


def _tenant(name: str, section: Section) -> TenantSpec:
    keys = [_key(entry) for entry in section.items("keys")]
    single = _key_or_hash(section, "key")
    if single is not None:
        keys.append(KeySpec(single))
    if not keys:
        section.problem("keys", "a tenant needs a key; write `key_env: VARIABLE` or a list of `keys`")
    spec = TenantSpec(
        name=name,
        keys=tuple(keys),
        limits=_tenant_limits(section.section("limits")),
        priority=section.count("priority", None, least=-1000),
    )
    section.done()
    return spec


def _tenant_limits(section: Section) -> TenantLimits:
    limits = TenantLimits(
        requests_per_minute=section.count("requests_per_minute", None),
        tokens_per_minute=section.count("tokens_per_minute", None),
        concurrent_tokens=section.count("concurrent_tokens", None),
        usd_per_day=section.number("usd_per_day", None, above=0.0),
        zone=_days_of(section),
    )
    section.done()
    return limits


def _days_of(section: Section) -> str | None:
    """The time zone by whose days money counts; None: in the 24 hours that have just passed."""
    window = section.choice("window", "day" if "zone" in section else "rolling", ["rolling", "day"])
    zone = section.text("zone", "UTC")
    if window == "rolling":
        if "zone" in section:
            section.problem("zone", "24 hours that roll are the same in every zone; write `window: day`")
        return None
    try:
        zone_of(zone)
    except BadInput as error:
        section.problem("zone", str(error))
        return "UTC"
    if "usd_per_day" not in section:
        section.problem("window", "is that of usd_per_day, which is missing here")
    return zone


def _key(section: Section) -> KeySpec:
    secret = _key_or_hash(section, "key")
    if secret is None:
        section.problem("key", "is missing; write `key_env: VARIABLE`")
    spec = KeySpec(secret or UNSET, _expiry(section))
    section.done()
    return spec


def _key_or_hash(section: Section, name: str) -> Secret | None:
    """A key that callers send, or the hash that stands for it."""
    secret = section.secret(name)
    try:
        return secret if secret is None or digest_of(secret) else None
    except BadInput as error:
        section.problem(name if name in section else f"{name}_env", str(error))
        return UNSET


def _expiry(section: Section) -> float | None:
    """A day (the key is good until its end, UTC) or a moment."""
    value = section.plain("expires")
    if value is None:
        return None
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC).timestamp() + 86400.0
    section.problem("expires", f"{value!r} is no date; write for example 2027-01-31")
    return None


def _check_keys(root: Section, tenants: tuple[TenantSpec, ...]) -> None:
    owners: dict[bytes, str] = {}
    for tenant in tenants:
        for key in tenant.keys:
            if key.secret is UNSET:  # it has been complained of
                continue
            owner = owners.setdefault(digest_of(key.secret), tenant.name)
            if owner != tenant.name:
                root.problem("tenants", f"{owner!r} and {tenant.name!r} have the same key; keys must differ")
