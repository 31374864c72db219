"""The container file's steps, carried out: the image builds from a clean clone; what is in it serves, and ends well."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.container import FILE, ROOT, Build, Stage, lacking, steps
from tests.server.running import free_port
from tests.tiny import make_tiny

TEAM, OPERATOR = "the-key-of-a-whole-team", "the-key-of-the-operator"


def test_instructions_are_joined_and_comments_left_out() -> None:
    text = '# why\nFROM a AS b\nRUN one \\\n && two\n\nCMD ["x"]\n'
    assert [(one.line, one.keyword, one.words) for one in steps(text)] == [
        (2, "FROM", "a AS b"),
        (3, "RUN", "one && two"),
        (6, "CMD", '["x"]'),
    ]


@pytest.mark.proof
@pytest.mark.skipif(bool(lacking()), reason=lacking())
def test_the_image_is_built_step_by_step_and_serves_as_compose_starts_it(tmp_path: Path) -> None:
    build = Build(tmp_path)
    image = build.run(FILE.read_text(encoding="utf-8"))
    print(build.report(image))
    assert image.run(["id", "-un"]).strip() == "weighbridge"
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
    model = install(image, make_tiny("llama", tmp_path / "tiny"))
    model_port, gateway_port = free_port(), free_port()
    words = [model if one == "default" else one for one in compose["services"]["model"]["command"]]
    [name] = yaml.safe_load(compose["configs"]["fleet"]["content"])["models"]
    config = compose["configs"]["fleet"]["content"].replace("model:8080", f"127.0.0.1:{model_port}")
    place = image.root / "etc/weighbridge/weighbridge.yaml"
    place.parent.mkdir()
    place.write_text(config.replace("0.0.0.0:8080", f"127.0.0.1:{gateway_port}"), encoding="utf-8")
    image.environment |= {"WEIGHBRIDGE_TEAM_KEY": TEAM, "WEIGHBRIDGE_ADMIN_KEY": OPERATOR}
    with (
        started(image, [*words, "--served-model-name", name, "--port", str(model_port)], model_port),
        started(image, image.words, gateway_port),
    ):
        assert answered(gateway_port).startswith("cmpl-")
        assert image.run(healthy(compose, gateway_port)) == ""
    assert image.inside("usage.sqlite").stat().st_size > 0


def install(image: Stage, model: Path) -> str:
    """A model where the image's user can read it; its path there."""
    place = image.root / "srv" / model.name
    shutil.copytree(
        model, place, copy_function=shutil.copyfile
    )  # the safetensors are saved for their owner alone
    return f"/srv/{model.name}"


def healthy(compose: dict[str, Any], port: int) -> list[str]:
    """The health check of a service, at the port that it has here."""
    _, *words = compose["services"]["gateway"]["healthcheck"]["test"]
    return [one.replace("8080", str(port)) for one in words]


def answered(port: int) -> str:
    """What the default model says at a gateway, to the team."""
    body = {"model": "default", "prompt": "Good", "max_tokens": 4}
    headers = {"authorization": f"Bearer {TEAM}", "content-type": "application/json"}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), headers
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(json.load(answer)["id"])


@contextmanager
def started(image: Stage, words: list[str], port: int) -> Iterator[None]:
    """The image's command as the first process of its container; it ends well on the signal that stops it."""
    log = image.root / f"tmp/{port}.log"
    with log.open("wb") as said:
        command = image.command([*image.entrypoint, *words])
        process = subprocess.Popen(command, env=image.environment, stdout=said, stderr=said)
    try:
        wait_until_ready(process, port, log)
        yield
        os.kill(first_of(process.pid), getattr(signal, image.stops_by))
        assert process.wait(60) == 0, log.read_text(encoding="utf-8")
    finally:
        process.kill()  # and, as its parent is gone, what it started
        process.wait(10)


def first_of(unshare: int) -> int:
    """The first process of a container, by the process that made it."""
    [child] = Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()
    return int(child)


def wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 180
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=10):
                return
        except (OSError, urllib.error.URLError):
            over = time.monotonic() > deadline or process.poll() is not None
            assert not over, log.read_text(encoding="utf-8", errors="replace")
            time.sleep(0.1)
