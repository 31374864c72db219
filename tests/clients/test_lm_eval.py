"""lm-eval over our completions: the figures of its own transformers backend on the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.running import free_port, running, wait_until_ready
from tests.tiny import make_tiny

pytestmark = [pytest.mark.proof, pytest.mark.timeout(1800)]

REQUIREMENTS = ("lm-eval[api]==0.4.13", "transformers==5.24.0", "accelerate==1.15.0", "torch==2.13.0")
TASKS = Path(__file__).parent / "tasks"
#: An environment that is there already; else one is made.
READY = os.environ.get("WEIGHBRIDGE_LM_EVAL_PYTHON")

ARITHMETIC = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: label
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
CLOZE = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{context}}}}"
doc_to_target: "{{{{target}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}, {{metric: perplexity}}]
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if READY:
        return Path(READY)
    folder = tmp_path_factory.mktemp("lm-eval")
    venv.create(folder, with_pip=True)
    found = folder / "bin" / "python"
    install = [str(found), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS]
    subprocess.run(install, check=True, timeout=1200)
    return found


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    for name, form in (("arithmetic", ARITHMETIC), ("cloze", CLOZE)):
        (folder / f"{name}.yaml").write_text(form.format(name=f"wb_{name}", file=TASKS / f"{name}.jsonl"))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def url(model: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "weighbridge", "serve", str(model), "--port", str(port)]
    command += ["--dtype", "float32", "--served-model-name", "tiny", "--generation-config", "none"]
    found = f"http://127.0.0.1:{port}"
    with running(command, 15) as process:
        wait_until_ready(found, process, 300)  # a proof may run beside much else
        yield found


def samples(python: Path, tasks: Path, out: Path, kind: str, arguments: str) -> dict[str, list[Any]]:
    """For each task what lm-eval's backend `kind` finds of each item: scores, and whether they were the likeliest."""
    command = [str(python), "-m", "lm_eval", "run", "--model", kind, "--model_args", arguments]
    command += ["--tasks", "wb_arithmetic,wb_cloze", "--include_path", str(tasks), "--output_path", str(out)]
    command += ["--log_samples", "--batch_size", "4", "--seed", "1", "--device", "cpu"]
    nothing = {
        "HOME": str(out),
        "PATH": os.defpath,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "NO_PROXY": "*",
    }
    done = subprocess.run(command, env=nothing, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    sys.stdout.write(done.stdout)
    found = {}
    for name in ("wb_arithmetic", "wb_cloze"):
        [file] = out.rglob(f"samples_{name}_*.jsonl")
        rows = sorted(
            (json.loads(line) for line in file.read_text().splitlines()), key=lambda row: row["doc_id"]
        )
        found[name] = [row["resps"] for row in rows]
    return found


def test_its_figures_are_those_of_its_transformers_backend(
    python: Path, tasks: Path, model: Path, url: str, tmp_path: Path
) -> None:
    theirs = samples(python, tasks, tmp_path / "hf", "hf", f"pretrained={model},dtype=float32")
    api = f"model=tiny,base_url={url}/v1/completions,tokenizer_backend=huggingface,tokenizer={model},max_length=1024"
    ours = samples(python, tasks, tmp_path / "api", "local-completions", f"{api},num_concurrent=4")
    for name, rows in theirs.items():
        assert len(rows) == len(ours[name]) == 200
        for hf, own in zip(rows, ours[name], strict=True):
            for [expected], [got] in zip(hf, own, strict=True):
                assert float(got[0]) == pytest.approx(float(expected[0]), abs=5e-3)
                assert str(got[1]) == str(expected[1])
