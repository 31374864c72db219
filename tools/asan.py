"""Run tests on kernels that check every access: compiled with AddressSanitizer and UndefinedBehaviorSanitizer.

Builds into build/asan, with a virtual environment of its own in which the package has those kernels; nothing that is
installed changes. `make asan` runs the tests of kernels and model files; arguments go to pytest.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "asan"
NATIVE = "src/weighbridge/models/compute/kernels/native"
#: Where the package has its compiled modules.
MODULES = {"_native": "models/compute/kernels", "_words": "models/text"}
TESTS = ["tests/models"]
#: Seconds that a test may take: checked kernels and whatever else it loads are several times slower.
PATIENCE = 900


def main(arguments: list[str]) -> int:
    """Build, put the package together, and run pytest; returns its exit code."""
    tools = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    options = [
        "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
        "-DWEIGHBRIDGE_SANITIZE=ON",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]
    subprocess.run(["cmake", "-S", ROOT, "-B", BUILD, "-G", "Ninja", *options], env=tools, check=True)
    subprocess.run(["cmake", "--build", BUILD], env=tools, check=True)
    python = _environment(_package())
    done = subprocess.run(
        [python, "-m", "pytest", f"--timeout={PATIENCE}", *(arguments or TESTS)],
        env=_sanitized(),
        cwd=ROOT,
        check=False,
    )
    return done.returncode


def _package() -> Path:
    """Return a folder with the package and the modules that were just built."""
    site = BUILD / "site"
    shutil.rmtree(site, ignore_errors=True)
    sources = ROOT / "src" / "weighbridge"
    shutil.copytree(
        sources, site / "weighbridge", ignore=shutil.ignore_patterns("*.so", "*.cpp", "*.h", "__pycache__")
    )
    for name, folder in MODULES.items():
        for module in (BUILD / NATIVE).glob(f"{name}.*"):
            shutil.copy(module, site / "weighbridge" / folder)
    return site


def _environment(site: Path) -> Path:
    """Return the Python of an environment with `site` and what this one has, but not its own weighbridge.

    A path is enough: how this environment finds its weighbridge is in files that are read in its own folder alone.
    """
    target = BUILD / "venv"
    venv.create(target, with_pip=False, symlinks=True)
    python = target / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    found = [site, *(Path(entry) for entry in sys.path if entry.endswith("-packages"))]
    lines = "".join(f"{entry}\n" for entry in found)
    (target / "lib" / version / "site-packages" / "sanitized.pth").write_text(lines)
    return python


def _sanitized() -> dict[str, str]:
    """Return the environment of a process that may load sanitized modules.

    Python itself is not sanitized, so the runtime has to be there first, before libstdc++ throws. Leaks are not
    looked for: an interpreter keeps much until its end.
    """
    runtimes = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0:alloc_dealloc_mismatch=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
