"""The files of deploy/: configurations that hold, queries whose metrics exist, probes that are answered."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from tools.dashboard import FILE, dashboard, written

from tests.fleet.backends import Backend, all_served, fleet
from weighbridge.cli.serve.simulated import SimulatedEngine, SimulatedMachine, assemble_simulated
from weighbridge.models.catalogue.entries import find
from weighbridge.routes.config import parse_configuration
from weighbridge.server.engine.metrics import EngineMetrics
from weighbridge.server.picker.health import _ALIVE, _READY
from weighbridge.server.settings import ServerSettings

DEPLOY = Path(__file__).parents[2] / "deploy"
KEYS = ("ADMIN", "TEAM", "PROMETHEUS")


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def configurations() -> Iterator[tuple[str, str]]:
    yield "weighbridge.yaml", (DEPLOY / "weighbridge.yaml").read_text(encoding="utf-8")
    yield "compose.yaml", documents("compose.yaml")[0]["configs"]["fleet"]["content"]
    for name in ("kubernetes/gateway.yaml", "kubernetes/picker.yaml"):
        for one in documents(name):
            if one["kind"] == "ConfigMap":
                yield name, one["data"]["weighbridge.yaml"]


@pytest.mark.parametrize(("name", "text"), list(configurations()), ids=[name for name, _ in configurations()])
def test_every_configuration_holds(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in KEYS:
        monkeypatch.setenv(f"WEIGHBRIDGE_{key}_KEY", f"a-key-of-{key}-that-is-long-enough")
    assert parse_configuration(text, name, DEPLOY).fleet.models


def test_the_gateway_of_compose_asks_the_model_beside_it_for_what_that_calls_itself() -> None:
    [document] = documents("compose.yaml")
    _, served, *_ = document["services"]["model"]["command"]
    entry = find(served)
    assert entry is not None
    models = yaml.safe_load(document["configs"]["fleet"]["content"])["models"]
    assert {name: one["aliases"] for name, one in models.items()} == {entry.name: [served]}


def queries() -> dict[str, str]:
    """Every query of the rules and of the dashboard, by where it stands."""
    found = {
        rule["alert"]: rule["expr"]
        for group in documents("prometheus/rules.yaml")[0]["groups"]
        for rule in group["rules"]
    }
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            found[f"{panel['title']} {target['legendFormat']}"] = target["expr"]
    return found


async def exposed() -> dict[str, set[str]]:
    """The labels of every series that a gateway and a server of ours show, after a request."""
    backend = Backend()
    config = "shared_limits: {redis: 'redis://127.0.0.1:9'}\nhealth: {interval: 0.05}\n"
    config += "models: {m: {replicas: [{url: URL, price: {output_usd_per_million: 1}}]}}\n"
    async with all_served((backend,)), fleet(config=config.replace("URL", backend.url)) as front:
        async with front.post(model="m", stream=True) as answer:
            await answer.read()
        async with front.client.get(f"{front.url}/metrics") as answer:
            text = (await answer.read()).decode()
    series: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? ", text + served(), re.MULTILINE):
        series.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return series


def served() -> str:
    """What a server of ours shows, a simulated one."""
    running = assemble_simulated(SimulatedMachine(), SimulatedEngine(), ServerSettings())
    [metrics] = [one for one in running.engine.observers if isinstance(one, EngineMetrics)]
    return metrics.exposition().decode()


async def test_every_query_asks_for_what_there_is() -> None:
    series = await exposed()
    beside = {"le", "instance"}  # of the bucket, and Prometheus's own
    for place, query in queries().items():
        names = set(re.findall(r"weighbridge_\w+", query))
        assert names <= set(series), f"{place}: nobody shows {names - set(series)}"
        asked = {label.strip() for by in re.findall(r"by \(([^)]*)\)", query) for label in by.split(",")}
        for name in names:
            assert asked - beside <= series[name], f"{place}: {name} has no {asked - beside - series[name]}"


def test_the_dashboard_is_as_its_panels_say() -> None:
    assert FILE.read_text(encoding="utf-8") == written()
    panels = json.loads(written())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["description"] for panel in panels if panel["type"] != "row")


def test_every_alert_says_what_to_do() -> None:
    for group in documents("prometheus/rules.yaml")[0]["groups"]:
        for rule in group["rules"]:
            assert {"summary", "action"} <= set(rule["annotations"])
            assert rule["labels"]["severity"] in ("page", "ticket")


async def test_probes_are_answered() -> None:
    backend = Backend()
    [deployment] = [one for one in documents("kubernetes/gateway.yaml") if one["kind"] == "Deployment"]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    paths = {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("liveness", "readiness", "startup")}
    async with all_served((backend,)), fleet(backend) as front:
        for path in paths:
            async with front.client.get(front.url + path) as answer:
                assert answer.status == 200, path


def test_the_pool_asks_the_picker_where_it_listens_and_has_the_pickers_replicas() -> None:
    found = {one["kind"]: one for one in documents("kubernetes/picker.yaml")}
    [container] = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    told = dict(zip(container["args"][1::2], container["args"][2::2], strict=False))
    listens = {one["name"]: one["containerPort"] for one in container["ports"]}
    assert listens["grpc"] == int(told["--port"])
    asked = found["InferencePool"]["spec"]["endpointPickerRef"]
    served = {one["port"]: listens[one["targetPort"]] for one in found["Service"]["spec"]["ports"]}
    assert asked["name"] == found["Service"]["metadata"]["name"]
    assert served[asked["port"]["number"]] == listens["grpc"]
    for kind in ("liveness", "readiness", "startup"):
        probe = container[f"{kind}Probe"]["grpc"]
        assert (probe["port"], probe["service"] in _ALIVE | _READY) == (listens["grpc"], True)
    text = found["ConfigMap"]["data"]["weighbridge.yaml"]
    [model] = parse_configuration(text, "picker.yaml", DEPLOY).fleet.models
    ports = {one["number"] for one in found["InferencePool"]["spec"]["targetPorts"]}
    assert {urlsplit(one.target).port for one in model.replicas} == ports
    [rule] = found["HTTPRoute"]["spec"]["rules"]
    [backend] = rule["backendRefs"]
    pool = found["InferencePool"]
    group, _ = pool["apiVersion"].split("/")
    assert (backend["group"], backend["kind"], backend["name"]) == (
        group,
        pool["kind"],
        pool["metadata"]["name"],
    )


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is of Prometheus")
def test_prometheus_reads_the_rules() -> None:
    done = subprocess.run(
        ["promtool", "check", "rules", str(DEPLOY / "prometheus" / "rules.yaml")],
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
