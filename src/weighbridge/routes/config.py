"""Routes from weighbridge.yaml. Every complaint points at a line and says what to write.

routes:
  auto:
    edge:  {url: http://127.0.0.1:8081/v1, model: smollm2-135m-instruct, reports_load: true}
    cloud: {url: https://api.example.com/v1, model: big, key_env: CLOUD_KEY, price: {input: 2.5, output: 10}}
    residency: redact_then_cloud
    rules:
      - {name: health, labels: [patient], residency: never_leaves}
      - {name: personal, types: [PERSON, EMAIL], residency: redact_then_cloud}
    threshold: 0.7
    router: router.json
    score_wait_ms: 500
    cascade: {threshold: 0.6, window_tokens: 24, window_ms: 1500, race: false}
budgets: {usd_per_day: 20, tenants: {"*": 2}, routes: {auto: 15}}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from weighbridge.cost.price import Price
from weighbridge.cost.step import DEFAULT_STEP_COST, StepCost
from weighbridge.errors import BadInput
from weighbridge.fleet.config.reader import Section, read_yaml
from weighbridge.fleet.config.replica import read_step_cost
from weighbridge.fleet.config.spec import ModelSpec
from weighbridge.routes.attempt import Window
from weighbridge.routes.budget import Budgets
from weighbridge.routes.caps import CapSettings
from weighbridge.routes.policy import Policy, Residency, Rule
from weighbridge.routes.privacy.hits import TYPES
from weighbridge.routes.settings import (
    DEFAULT_WINDOW,
    MOST_SAMPLES,
    BanditSettings,
    CascadeSettings,
    HybridSettings,
    PrivacySettings,
    RouteSettings,
    ShadowSettings,
)
from weighbridge.routes.side import SideSettings

NO_MODELS: Mapping[str, ModelSpec] = {}


def load_hybrid(path: Path) -> HybridSettings:
    """The routes of a file, other sections aside. Raises BadInput with one line for each thing that is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise BadInput(f"cannot read the configuration {path}: {str(reason).lower()}") from error
    root, problems = read_yaml(text, str(path))
    settings = read_hybrid(root, path.parent)
    if not settings.routes:
        root.problem("routes", "needs at least one route with its edge and cloud")
    problems.raise_any()
    return settings


def read_hybrid(root: Section, base: Path, models: Mapping[str, ModelSpec] = NO_MODELS) -> HybridSettings:
    """The keys `routes`, `budgets`, `ledger`, `shadow_file` and `tickets` of a file's root.

    `models`: those of the same file by name and alias, which a side may name instead of a `url`.
    """
    budgets = root.section("budgets")
    settings = HybridSettings(
        routes=tuple(_route(name, section, base, models) for name, section in root.named("routes")),
        budgets=Budgets(
            total=budgets.number("usd_per_day", None),
            tenants=_amounts(budgets, "tenants"),
            routes=_amounts(budgets, "routes"),
        ),
        ledger=root.path("ledger", base, must_exist=False),
        shadow_file=root.path("shadow_file", base, must_exist=False),
        tickets=root.path("tickets", base, must_exist=False),
        api_keys=tuple((secret, tenant) for tenant, secret in _secrets(root)),
    )
    budgets.done()
    return settings


def _secrets(root: Section) -> list[tuple[str, str]]:
    """`keys: {tenant: {key_env: NAME}}`."""
    found = []
    for tenant, section in root.named("keys"):
        secret = section.secret("key")
        if secret is None:
            section.problem("key", "is missing; write key_env: VARIABLE")
        else:
            found.append((tenant, str(secret)))
        section.done()
    return found


def _amounts(section: Section, name: str) -> Mapping[str, float]:
    inside = section.section(name)
    written = section.plain(name)
    return {str(one): inside.number(str(one), 0.0) for one in written} if isinstance(written, dict) else {}


def _route(name: str, section: Section, base: Path, models: Mapping[str, ModelSpec]) -> RouteSettings:
    default = Residency(section.choice("residency", Residency.FREE, list(Residency)))
    rules = tuple(_rule(one, index) for index, one in enumerate(section.items("rules")))
    known = [rule.name for rule in rules]
    for duplicate in sorted({one for one in known if known.count(one) > 1}):
        section.problem("rules", f"the name {duplicate!r} is given twice; tickets could not tell them apart")
    route = RouteSettings(
        name=name,
        edge=_side(section, "edge", models),
        cloud=_side(section, "cloud", models),
        policy=Policy(rules, default),
        threshold=_share(section, "threshold", 0.7) if "threshold" in section else None,
        router=section.path("router", base, must_exist=True),
        score_wait=section.number("score_wait_ms", 500.0, above=0.0) / 1000,
        cascade=_cascade(section.section("cascade")),
        privacy=_privacy(section.section("privacy")),
        caps=_caps(section.section("caps")),
        shadow=_shadow(section.section("shadow")),
        bandit=_bandit(section.section("bandit")),
        cloud_attempts=section.count("cloud_attempts", 2),
        timeout=section.number("timeout", 120.0, above=0.0),
    )
    section.done()
    return route


def _rule(section: Section, index: int) -> Rule:
    types = section.texts("types")
    for unknown in sorted(set(types) - TYPES - {"*"}):
        section.problem("types", f"{unknown!r} is no type; use * or {', '.join(sorted(TYPES))}")
    rule = Rule(
        name=section.text("name", f"rule {index + 1}"),
        residency=Residency(section.choice("residency", Residency.NEVER, list(Residency))),
        tenants=section.texts("tenants"),
        routes=section.texts("routes"),
        labels=section.texts("labels"),
        types=types,
    )
    section.done()
    return rule


def _side(route: Section, name: str, models: Mapping[str, ModelSpec]) -> SideSettings:
    if models and name not in route:
        route.problem(
            name, "is missing; write `model: NAME` of a model of this file, or a `url:` with its `model:`"
        )
        return SideSettings("", "unset")
    section, is_edge = route.section(name), name == "edge"
    if models and "url" not in section:
        return _fleet_side(section, models)
    url = section.text("url")
    if not url.startswith(("http://", "https://")):
        section.problem(
            "url",
            "must be the base of an OpenAI-compatible API, such as http://127.0.0.1:8080/v1; a side that is a "
            "model of the same file is served by `weighbridge serve --config`",
        )
    price, abilities = section.section("price"), section.texts("abilities")
    secret = section.secret("key")
    side = SideSettings(
        url=url,
        model=section.text("model") or _missing(section, "model"),
        price=Price(
            price.number("input", 0.0),
            price.number("output", 0.0),
            price.number("cached", None),
            price.number("usd_per_hour", 0.0),
        ),
        context_tokens=section.count("context", None),
        abilities=frozenset(abilities) if abilities else None,
        api_key=secret,
        headers=section.table("headers"),
        step_cost=_step_cost(section) if is_edge else None,
        reports_load=section.flag("reports_load", False),
        connect_timeout=section.number("connect_timeout", 5.0, above=0.0),
        first_chunk_timeout=section.number("first_chunk_timeout", 60.0, above=0.0),
        idle_timeout=section.number("idle_timeout", 30.0, above=0.0),
        max_tokens=section.count("max_tokens", 1024),
    )
    price.done()
    section.done()
    return side


def _fleet_side(section: Section, models: Mapping[str, ModelSpec]) -> SideSettings:
    """A model of the same file: what it costs and how fast it is, its replicas say."""
    name = section.text("model") or _missing(section, "model")
    model = models.get(name)
    if model is None and name != "unset":
        known = ", ".join(models)
        section.problem("model", f"{name!r} is no model of this file; there is {known}; or give a `url:`")
    abilities = section.texts("abilities")
    side = SideSettings(
        url="",
        model=model.name if model is not None else name,
        context_tokens=section.count("context", None),
        abilities=frozenset(abilities) if abilities else None,
        max_tokens=section.count("max_tokens", model.default_max_tokens if model is not None else 1024),
    )
    section.done()
    return side


def _missing(section: Section, name: str) -> str:
    section.problem(name, "is missing")
    return "unset"


def _step_cost(section: Section) -> StepCost | None:
    """`step_cost: default`, or its coefficients."""
    if section.plain("step_cost") in (None, "default"):
        return DEFAULT_STEP_COST if section.plain("step_cost") else None
    return read_step_cost(section.section("step_cost"))


def _share(section: Section, name: str, default: float) -> float:
    value = float(section.number(name, default))
    if value > 1.0:
        section.problem(name, f"must be between 0 and 1, not {value:g}")
        return default
    return value


def _cascade(section: Section) -> CascadeSettings:
    tokens, milliseconds = section.count("window_tokens", None), section.number("window_ms", None, above=0.0)
    window = DEFAULT_WINDOW
    if tokens is not None or milliseconds is not None:
        window = Window(tokens, None if milliseconds is None else milliseconds / 1000)
    cascade = CascadeSettings(
        enabled=section.flag("enabled", True),
        threshold=_share(section, "threshold", 0.5),
        window=window,
        race=section.flag("race", False),
        top_logprobs=section.count("top_logprobs", 5, least=0),
        samples=_samples(section),
        sample_temperature=section.number("sample_temperature", 0.8, above=0.0),
    )
    section.done()
    return cascade


def _samples(section: Section) -> int:
    samples = int(section.count("samples", 1))
    if samples > MOST_SAMPLES:
        section.problem(
            "samples", f"must be at most {MOST_SAMPLES}, not {samples}; each is one more local answer"
        )
        return 1
    return samples


def _privacy(section: Section) -> PrivacySettings:
    types = section.texts("types")
    for unknown in sorted(set(types) - TYPES):
        section.problem("types", f"{unknown!r} is no type; use {', '.join(sorted(TYPES))}")
    privacy = PrivacySettings(
        ner=section.flag("ner", False),
        deny=section.texts("deny"),
        types=frozenset(types) or None,
        timeout=section.number("timeout", 2.0, above=0.0),
    )
    section.done()
    return privacy


def _caps(section: Section) -> CapSettings:
    caps = CapSettings(
        cloud_per_minute=section.number("cloud_per_minute", None),
        cloud_share=_share(section, "cloud_share", 1.0) if "cloud_share" in section else None,
        window=section.number("window", 600.0, above=0.0),
        share_after=section.count("share_after", 20),
    )
    section.done()
    return caps


def _shadow(section: Section) -> ShadowSettings:
    shadow = ShadowSettings(
        share=_share(section, "share", 0.0),
        judge=section.choice("judge", "agreement", ("agreement", "cloud")),
        max_concurrent=section.count("max_concurrent", 2),
        keep_texts=section.flag("keep_texts", False),
    )
    section.done()
    return shadow


def _bandit(section: Section) -> BanditSettings:
    default = BanditSettings()
    arms = section.plain("arms") or default.arms
    if not isinstance(arms, list | tuple) or not all(
        type(arm) in (int, float) and 0 <= arm <= 1 for arm in arms
    ):
        section.problem("arms", "must be a list of thresholds between 0 and 1")
        arms = default.arms
    bandit = BanditSettings(
        enabled=section.flag("enabled", False),
        arms=tuple(arms),
        usd_per_quality=section.number("usd_per_quality", default.usd_per_quality, above=0.0),
    )
    section.done()
    return bandit
