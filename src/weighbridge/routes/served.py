"""weighbridge.yaml of a gateway with routes: one file, one process, one endpoint, one set of keys.

models:
  small: {replicas: [{process: smollm2-135m-instruct}]}
  big:   {replicas: [{url: https://api.example.com, key_env: CLOUD_KEY, price: {...}}]}
routes:
  auto:
    edge:  {model: small}
    cloud: {model: big}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from weighbridge.fleet.config.load import config_text, read_fleet
from weighbridge.fleet.config.reader import Section, read_yaml
from weighbridge.fleet.config.spec import FleetSpec, ModelSpec
from weighbridge.routes.config import read_hybrid
from weighbridge.routes.settings import HybridSettings

NO_ROUTES = HybridSettings(routes=())


@dataclass(frozen=True, slots=True)
class Served:
    """A fleet, and the routes over it; most fleets have none."""

    fleet: FleetSpec
    hybrid: HybridSettings = NO_ROUTES


def load_served(path: Path) -> Served:
    """Raises BadInput with one line for each thing that is wrong."""
    return parse_served(config_text(path), str(path), path.parent)


def parse_served(text: str, file: str, base: Path) -> Served:
    """`base` is where relative paths start. Raises BadInput like `load_served`."""
    root, problems = read_yaml(text, file)
    fleet = read_fleet(root, base)
    hybrid = NO_ROUTES
    if "routes" in root:
        models = {name: model for model in fleet.models for name in (model.name, *model.aliases)}
        hybrid = read_hybrid(root, base, models)
        _check(root, hybrid, models)
    root.done()
    problems.raise_any()
    return Served(fleet, hybrid)


def _check(root: Section, hybrid: HybridSettings, models: Mapping[str, ModelSpec]) -> None:
    """What can only be wrong where both are in one file."""
    if "keys" in root:
        root.problem("keys", "are for routes that are served alone; here the keys of `tenants` hold")
    routes = root.section("routes")
    for route in hybrid.routes:
        if route.name in models:
            leads = models[route.name].name
            routes.problem(route.name, f"a name of the model {leads!r} too; call one of them otherwise")
        same = not route.edge.url and not route.cloud.url and route.edge.model == route.cloud.model
        if same and route.edge.model in models:
            message = f"edge and cloud are both the model {route.edge.model!r}; name two different ones"
            routes.section(route.name).problem("cloud", message)
