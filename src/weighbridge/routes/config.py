"""weighbridge.yaml of a gateway with routes. Every complaint points at a line and says what to write.

models:
  small: {replicas: [{process: smollm2-135m-instruct}]}
routes:
  auto:
    edge:  {model: small}
    cloud: {url: https://api.example.com/v1, model: big, key_env: CLOUD_KEY,
            price: {input_usd_per_million: 2.5, output_usd_per_million: 10}}
    residency: redact_then_cloud
    rules:
      - {name: health, labels: [patient], residency: never_leaves}
      - {name: personal, types: [PERSON, EMAIL], residency: redact_then_cloud}
    threshold: 0.7
    router: router.json
    score_wait_ms: 500
    cascade: {threshold: 0.6, window_tokens: 24, window_ms: 1500, race: false}
budgets: {usd_per_day: 20, tenants: {"*": 2}, routes: {auto: 15}}

`edge` and `cloud` are two places. Any number of them, in the order of trust, is `places: [{name: site, level: edge,
model: big-one}, ...]`. A place is a model of the file, or a replica of its own: then its entry is that of a replica.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from weighbridge.cost.step import DEFAULT_STEP_COST
from weighbridge.errors import BadInput
from weighbridge.fleet.config.edits import rewritten
from weighbridge.fleet.config.load import config_text, read_fleet
from weighbridge.fleet.config.reader import Problems, Section, read_yaml
from weighbridge.fleet.config.replica import Defaults, read_replica, read_timeouts
from weighbridge.fleet.config.spec import KINDS, FleetSpec, ModelSpec
from weighbridge.fleet.limits.periods import zone_of
from weighbridge.fleet.reliability.retry import RetrySettings
from weighbridge.fleet.replica import Timeouts
from weighbridge.routes.caps import CapSettings
from weighbridge.routes.ledger.allowance import Allowance, Allowances, Budgets, Per
from weighbridge.routes.ledger.books import KEPT_HOURS
from weighbridge.routes.policy import Level, Residency, ResidencyPolicy, Rule
from weighbridge.routes.privacy.hits import TYPES
from weighbridge.routes.settings import (
    DEFAULT_WINDOW,
    MAX_SAMPLES,
    BanditSettings,
    CascadeSettings,
    PlaceSettings,
    PrivacySettings,
    RouteSettings,
    RoutesSettings,
    ShadowSettings,
    Window,
)

#: How patient a route is with a replica of its own: the next place is there too.
PATIENCE = Timeouts(connect=5.0, first_byte=60.0, idle=30.0)
#: A route asks again itself (`cloud_attempts`), so that each time is reserved and paid for.
ONE_TRY = RetrySettings(attempts=1, longest_wait=2.0)


@dataclass(frozen=True, slots=True)
class Configuration:
    """A fleet, and the routes over it; most fleets have none. The fleet has the anonymous models of routes too."""

    fleet: FleetSpec
    routes: RoutesSettings = field(default_factory=RoutesSettings)


def load_configuration(path: Path) -> Configuration:
    """Read a file. Raises BadInput with one line for each thing that is wrong."""
    return parse_configuration(config_text(path), str(path), path.parent)


def parse_configuration(text: str, file: str, base: Path) -> Configuration:
    """`base` is where relative paths start. Raises BadInput like `load_configuration`."""
    configuration, problems = _read(text, file, base)
    problems.raise_any()
    return configuration


def modernised(text: str, file: str, base: Path) -> str:
    """Return the text with every old setting written as it is now. Raises BadInput like `load_configuration`.

    What it means is compared before and after, and the same, or it is refused.
    """
    before, problems = _read(text, file, base)
    if problems.found or not problems.edits:
        problems.raise_any()
        return text
    try:
        new = rewritten(text, problems.edits)
        after, left = _read(new, file, base)
    except BadInput as error:
        raise BadInput(f"{file}: it cannot be rewritten: {error}") from error
    if left.found or left.edits or after != before:
        raise BadInput(
            f"{file}: it cannot be rewritten so that it means the same; change it by hand, as the log says"
        )
    return new


def _read(text: str, file: str, base: Path) -> tuple[Configuration, Problems]:
    root, problems = read_yaml(text, file)
    has_routes = "routes" in root
    if has_routes and "models" not in root:
        _old_keys(root)
    fleet = read_fleet(root, base, needs_models=not has_routes)
    routes = RoutesSettings()
    if not has_routes:
        routes = RoutesSettings(ledger=root.path("ledger", base, must_exist=False))
    else:
        reader = _Routes(root, base, fleet)
        routes = reader.read()
        fleet = replace(fleet, models=reader.models())
    root.done()
    return Configuration(fleet, routes), problems


def _old_keys(root: Section) -> None:
    """`keys: {tenant: {key_env: NAME}}` of routes that were served alone."""
    if root.has("keys"):
        root.move("keys", "tenants")


class _Routes:
    """Reads the keys `routes`, `budgets`, `ledger` and `shadow_file` of a file's root."""

    def __init__(self, root: Section, base: Path, fleet: FleetSpec) -> None:
        self._root = root
        self._base = base
        self._models = {name: model for model in fleet.models for name in (model.name, *model.aliases)}
        self._fleet = fleet
        self._anonymous: list[ModelSpec] = []
        self._beyond: set[str] = set()  # models that are beyond the boundary for some route
        timeouts = root.section("timeouts")
        self._defaults = Defaults(read_timeouts(timeouts, PATIENCE), probe=False, base=base)

    def read(self) -> RoutesSettings:
        root = self._root
        if root.has("keys") and "keys" in root:
            root.problem("keys", "are for routes that are served alone; here the keys of `tenants` hold")
        routes = tuple(self._route(name, section) for name, section in root.named("routes"))
        if not routes:
            root.problem("routes", "needs at least one route with its edge and cloud")
        budgets = root.section("budgets")
        settings = RoutesSettings(
            routes=routes,
            budgets=Budgets(
                total=_allowances(budgets),
                tenants=_amounts(budgets, "tenants"),
                routes=_amounts(budgets, "routes"),
                zone=_zone(budgets),
            ),
            ledger=root.path("ledger", self._base, must_exist=False),
            shadow_file=root.path("shadow_file", self._base, must_exist=False),
        )
        budgets.done()
        return settings

    def models(self) -> tuple[ModelSpec, ...]:
        """The models of the file, each marked by where it is, and the anonymous ones of places."""
        named = [
            replace(model, placement=Level.CLOUD.value) if model.name in self._beyond else model
            for model in self._fleet.models
        ]
        return (*named, *self._anonymous)

    def _route(self, name: str, section: Section) -> RouteSettings:
        if name in self._models:
            leads = self._models[name].name
            self._root.section("routes").problem(
                name, f"a name of the model {leads!r} too; call one of them otherwise"
            )
        default = Residency(section.choice("residency", Residency.FREE, list(Residency)))
        rules = tuple(_rule(entry, index) for index, entry in enumerate(section.items("rules")))
        known = [rule.name for rule in rules]
        for duplicate in sorted({rule for rule in known if known.count(rule) > 1}):
            section.problem(
                "rules", f"the name {duplicate!r} is given twice; tickets could not tell them apart"
            )
        route = RouteSettings(
            name=name,
            places=self._places(name, section),
            policy=ResidencyPolicy(rules, default),
            threshold=_share(section, "threshold", 0.7) if "threshold" in section else None,
            router=section.path("router", self._base, must_exist=True),
            score_wait=section.number("score_wait_ms", 500.0, above=0.0) / 1000,
            cascade=_cascade(section.section("cascade")),
            privacy=_privacy(section.section("privacy")),
            caps=_caps(section.section("caps")),
            shadow=_shadow(section.section("shadow")),
            bandit=_bandit(section.section("bandit")),
            cloud_attempts=section.count("cloud_attempts", 2),
            timeout=section.number("timeout", 120.0, above=0.0),
            may_store=section.flag("may_store", False),
        )
        section.done()
        return route

    # -- places ----------------------------------------------------------------------------------------

    def _places(self, route: str, section: Section) -> tuple[PlaceSettings, ...]:
        if "places" not in section:
            for level in Level:
                if level not in section:
                    section.problem(
                        level,
                        "is missing; write `model: NAME` of a model of this file, or a `url:` with its `model:`",
                    )
            places = [
                self._place(route, level, level, section.section(level))
                for level in Level
                if level in section
            ]
        else:
            for level in Level:
                if level in section:
                    section.problem(level, "is given beside `places`; make it one of them")
            places = self._listed(route, section)
        taken: dict[str, str] = {}
        for place in places:
            if place.model in taken and place.model != "unset":
                message = (
                    f"{taken[place.model]} and {place.name} are both the model {place.model!r}; "
                    "name two different ones"
                )
                section.problem(place.name if place.name in section else "places", message)
            taken[place.model] = place.name
        return tuple(places)

    def _listed(self, route: str, section: Section) -> list[PlaceSettings]:
        """`places: [...]`: each has a name and a level, and none is trusted more than those before it."""
        places: list[PlaceSettings] = []
        for entry in section.items("places"):
            name = entry.text("name")
            if not name:
                entry.problem("name", "is missing; tickets name a place by it")
            elif name in {place.name for place in places}:
                entry.problem("name", f"two places are called {name!r}; names must differ")
            level = Level(entry.choice("level", Level.CLOUD, list(Level)))
            if "level" not in entry:
                entry.problem(
                    "level", "is missing; write edge for what may see everything, cloud for all else"
                )
            elif level is Level.EDGE and places and places[-1].level is Level.CLOUD:
                entry.problem("level", "an edge cannot follow a cloud; list places in the order of trust")
            places.append(self._place(route, name or "unset", level, entry))
        if not places:
            section.problem(
                "places", "needs at least one entry, such as `- {name: here, level: edge, model: NAME}`"
            )
        return places

    def _place(self, route: str, name: str, level: Level, section: Section) -> PlaceSettings:
        abilities = section.texts("abilities")
        known = frozenset(abilities) if abilities else None
        if any(kind in section for kind in KINDS):
            return self._own_replica(route, name, level, section, known)
        called = section.text("model")
        if not called:
            section.problem(
                "model", "is missing; name a model of this file, or give a `url:` with its `model:`"
            )
        model = self._models.get(called)
        if model is None and called:
            names = ", ".join(self._models)
            section.problem(
                "model", f"{called!r} is no model of this file; there is {names or 'none'}; or give a `url:`"
            )
        if model is not None and level is Level.CLOUD:
            self._beyond.add(model.name)
        place = PlaceSettings(
            name,
            level,
            model.name if model is not None else called or "unset",
            abilities=known,
            context_tokens=section.count("context", None),
            max_tokens=section.count("max_tokens", model.default_max_tokens if model is not None else 1024),
        )
        section.done()
        return place

    def _own_replica(
        self, route: str, name: str, level: Level, section: Section, abilities: frozenset[str] | None
    ) -> PlaceSettings:
        """A place that is no model of the file gets one of its own, which only the route knows."""
        _modernise(section)
        max_tokens = section.count("max_tokens", 1024)
        if "url" in section and not section.text("model"):
            section.problem("model", "is missing; write what that server calls it")
        own = f"{route}.{name}"
        replicas = {replica.name for model in self._fleet.models for replica in model.replicas}
        if own in self._models or own in replicas:
            self._root.problem(
                "models", f"{own!r} is the name of a place of the route {route!r}; choose another"
            )
        probe = section.text("dialect", "openai") != "openai" or "url" not in section
        spec = read_replica(section, own, replace(self._defaults, probe=probe))
        self._anonymous.append(
            ModelSpec(
                own,
                (spec,),
                default_max_tokens=max_tokens,
                thinking_tokens=section.count("thinking_tokens", None, least=0),
                only_routes=True,
                placement=level.value,
                retry=ONE_TRY,
            )
        )
        return PlaceSettings(
            name,
            level,
            own,
            calls_it=spec.model or spec.target,
            url=spec.target if spec.kind == "url" else "",
            abilities=abilities,
            max_tokens=max_tokens,
        )


#: Settings of a side as they were before sides were replicas.
_OLD_SIDE = {
    "context": "capacity.max_model_len",
    "step_cost": "capacity.step_cost",
    "connect_timeout": "timeouts.connect",
    "first_chunk_timeout": "timeouts.first_byte",
    "idle_timeout": "timeouts.idle",
}
_OLD_PRICE = {
    "input": "input_usd_per_million",
    "output": "output_usd_per_million",
    "cached": "cached_usd_per_million",
}


def _modernise(section: Section) -> None:
    """Read the settings of a side as they used to be written, each with a warning that says how it is now."""
    price = section.section("price")
    for old, new in _OLD_PRICE.items():
        if price.has(old):
            price.move(old, new)
    if section.has("step_cost") and section.plain("step_cost") == "default":
        section.move("step_cost", "capacity.step_cost", DEFAULT_STEP_COST.as_dict())
    for old, new in _OLD_SIDE.items():
        if section.has(old):
            section.move(old, new)
    if section.has("reports_load"):
        if section.flag("reports_load", False) and "dialect" not in section:
            section.move("reports_load", "dialect", "weighbridge")
        else:
            section.drop("reports_load", "is read for one more release; leave it out")
    path = _path_of(section.text("url")) if "url" in section else ""
    if path and not path.endswith("/v1") and "prefix" not in section:
        why = "is read as the whole base for one more release; write `prefix: ''` beside it"
        section.assume("prefix", "", "url", why)


def _path_of(url: str) -> str:
    """The path of a URL without a slash at its end; empty for what is none, which is refused where URLs are read."""
    try:
        return urlsplit(url).path.rstrip("/")
    except ValueError:
        return ""


# -- the rest of a route ---------------------------------------------------------------------------------


def _amounts(section: Section, which: str) -> Mapping[str, Allowances]:
    """Budgets by name: a number is US dollars per day, a mapping says within which time."""
    inside = section.section(which)
    written = section.plain(which)
    found: dict[str, Allowances] = {}
    for name, value in written.items() if isinstance(written, dict) else ():
        if isinstance(value, dict):
            own = inside.section(str(name))
            found[str(name)] = _allowances(own) or ()
            own.done()
        else:
            found[str(name)] = inside.number(str(name), 0.0)
    return found


def _allowances(section: Section) -> Sequence[Allowance] | None:
    """What may be spent by day, month and window; None where nothing is said."""
    per_day, per_month = section.number("usd_per_day", None), section.number("usd_per_month", None)
    given = ((per_day, Per.DAY), (per_month, Per.MONTH))
    found = [Allowance(usd, per) for usd, per in given if usd is not None]
    window, hours = section.number("usd_per_window", None), section.count("window_hours", None)
    if hours is not None and hours > KEPT_HOURS:
        section.problem("window_hours", f"must be at most {KEPT_HOURS}, which are 31 days")
    elif (window is None) != (hours is None):
        section.problem(
            "usd_per_window" if hours is None else "window_hours",
            "usd_per_window and window_hours belong together: so many US dollars within so many hours",
        )
    elif window is not None:
        found.append(Allowance(window, Per.WINDOW, hours))
    return tuple(found) or None


def _zone(section: Section) -> str:
    name = section.text("zone", "UTC")
    try:
        zone_of(name)
    except BadInput as error:
        section.problem("zone", str(error))
        return "UTC"
    return name


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
    if samples > MAX_SAMPLES:
        section.problem(
            "samples", f"must be at most {MAX_SAMPLES}, not {samples}; each is one more local answer"
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
