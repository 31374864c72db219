"""Wheel and sdist on the other Pythons that the package is for: what needs no torch does its work there without it."""

from __future__ import annotations

import json
import re
import subprocess
import sysconfig
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.install.listening import listening
from tests.install.pythons import VERSIONS, WithoutTorch, install, lacking, python_of, wheel_of
from tests.install.wheel import ROOT, build_sdist
from tests.server.running import serving
from tests.tiny import make_tiny

pytestmark = pytest.mark.proof


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sdist(tmp_path_factory.mktemp("sdist"))


@pytest.fixture(
    scope="module", params=[f"{kind} on {version}" for version in VERSIONS for kind in ("wheel", "sdist")]
)
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> WithoutTorch:
    """The package as that Python's pip builds and installs it."""
    kind, _, version = request.param.partition(" on ")
    python = python_of(version)
    if python is None:
        pytest.skip(lacking(version))
    folder = tmp_path_factory.mktemp(kind)
    built = request.getfixturevalue("sdist") if kind == "sdist" else wheel_of(python, folder)
    return install(built, python, folder / "environment")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server over a model, on the Python that runs the tests."""
    with serving(make_tiny("llama", tmp_path_factory.mktemp("model") / "tiny")) as (url, _):
        yield url


def checked(done: subprocess.CompletedProcess[str]) -> str:
    """What a command printed that went well, and of whose code Python had nothing to complain."""
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.findall(r".*site-packages/weighbridge/.*Warning.*", done.stderr)
    return done.stdout


def test_torch_is_not_there_and_what_is_compiled_is(installed: WithoutTorch) -> None:
    find = "from importlib.util import find_spec as f; print(f('torch'), f('transformers'))"
    assert installed.said(find) == "None None"
    place = Path(installed.said("import weighbridge; print(weighbridge.__path__[0])"))
    assert place.is_relative_to(installed.folder)
    ending = installed.said("import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))")
    assert ending != sysconfig.get_config_var("EXT_SUFFIX")
    assert sorted(one.name for one in place.rglob("*.so")) == [f"_native{ending}", f"_words{ending}"]
    words = "from weighbridge.models.text.word_tokens import words_are_compiled as w; print(w())"
    assert installed.said(words) == "True"


def test_all_of_it_compiles_without_a_warning(installed: WithoutTorch) -> None:
    place = installed.said("import weighbridge; print(weighbridge.__path__[0])")
    command = [str(installed.python), "-W", "error", "-m", "compileall", "-q", "-f", place]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--version"], "weighbridge "),
        (["plan", "qwen3-8b", "--device", "H100-80GB"], "fits"),
        (["simulate", "--workload", "poisson:rate=5,requests=20", "--replicas", "2"], "TTFT"),
        (["config", "check", str(ROOT / "deploy" / "weighbridge.yaml")], "ok, "),
        (["init", "-", "--no-look"], "models:"),
        (["models", "list"], "smollm2-135m-instruct"),
        (["doctor", "--port", "0"], "torch, transformers missing"),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_a_command_does_its_work(words: list[str], shown: str, installed: WithoutTorch) -> None:
    keys = {"WEIGHBRIDGE_TEAM_KEY": "a-team's-key", "WEIGHBRIDGE_ADMIN_KEY": "the-operator's-key"}
    assert shown in checked(installed.run(*words, COLUMNS="200", **keys))


def test_a_gateway_over_a_url_answers_as_the_model_does(
    installed: WithoutTorch, model: str, tmp_path: Path
) -> None:
    file = tmp_path / "weighbridge.yaml"
    file.write_text(f"models: {{tiny: {{replicas: [{{url: '{model}'}}]}}}}\n")
    words = installed.command("serve", "--config", str(file), "--port", "0")
    server = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path
    )
    try:
        gateway = listening(server)
        direct, through = said(model), said(gateway)
        assert through == direct
        measured = ["bench", "serve", "--url", gateway, "--requests", "6", "--warm-up", "1"]
        figures = json.loads(checked(installed.run(*measured, "--output-tokens", "4", "--json")))
        assert figures["requests"] == 6
    finally:
        server.terminate()
        rest = server.communicate(timeout=60)[0]
    assert server.returncode == 0, rest
    assert not re.findall(r".*site-packages/weighbridge/.*Warning.*", rest)


def said(url: str) -> str:
    """What the model behind a URL says likeliest."""
    asked = {"model": "tiny", "prompt": "Good morning", "max_tokens": 8, "temperature": 0}
    with urllib.request.urlopen(f"{url}/v1/completions", json.dumps(asked).encode(), timeout=60) as answer:
        return str(json.load(answer)["choices"][0]["text"])
