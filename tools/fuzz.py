"""Fuzz the parsers of what comes from outside, guided by coverage: `python tools/fuzz.py [--seconds 60] [TARGET ...]`.

The targets are those of `tests/fuzz`. Each runs in a process of its own for as long as it is told, with the corpus of
earlier runs in `build/fuzz/corpus`. An input with which a target raises what it should not, takes too long or too much
memory is kept in `build/fuzz/findings`, and the program ends with 1; `--replay FILE TARGET` runs it once more, without
the fuzzer. Branches of our Python code guide the search, those of libraries and of native code below it do not.
`--planted` takes a check out of the parser first, which the target must then miss: see `tests/fuzz/planted.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import logging
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.fuzz import planted, seeds, targets  # noqa: E402
from tests.fuzz.forms import INPUT_BYTES  # noqa: E402

from tools import fuzz_native  # noqa: E402

#: The target that is compiled: libFuzzer alone, without Python.
NATIVE = "native"
NAMES = (*targets.MODULES, NATIVE)
BUGS = {**planted.BUGS, **planted.NATIVE_BUGS}
#: Seconds for start and end of a run together, also where it has a tenth of a core; and megabytes of the process.
_AROUND_S, _PROCESS_MB = 900, 3072
_STATUS = re.compile(r"#(\d+)\s.*?(?:cov: (\d+) ft: (\d+))? corp: (\d+)/")
#: Lines of progress, and the input in three notations, which is in the file.
_NOISE = ("#", "0x", "Base64:", "INFO:", "WARNING:")
#: Panics of libraries are expected where they are caught, and their traces would hide ours.
_QUIET = {"OMP_NUM_THREADS": "1", "RUST_BACKTRACE": "0", "PYTHONWARNINGS": "ignore", "OMP_THREAD_LIMIT": "2"}
#: Without a program of its own, the sanitizers name places in the code with that of the linker.
_PLACES = {"ASAN_SYMBOLIZER_PATH": shutil.which("llvm-symbolizer") or shutil.which("addr2line") or ""}
_LINES_KEPT, _CHARACTERS_KEPT = 40, 300
#: How often an input is changed as bytes where its target has better ways.
_AS_BYTES = 0.15


#: Seconds of processor time in which an input is run once more.
_REPLAY_CPU_S = 120
#: Seconds between two looks at the processor time of a run.
_LOOK_S = 0.5


@dataclass(slots=True)
class Outcome:
    """What a run of one target came to; `edges` and `features` are the fuzzer's counts of what was reached."""

    target: str
    cpu_s: float = 0.0
    executions: int = 0
    edges: int = 0
    features: int = 0
    corpus: int = 0
    finding: Path | None = None
    words: str = ""
    failed: bool = False

    def __str__(self) -> str:
        counts = f"{self.executions} executions, {self.edges} edges, {self.features} features, corpus of {self.corpus}"
        found = f"FINDING {self.finding}" if self.finding else "did not run" if self.failed else "no finding"
        return f"{self.target:<12} {self.cpu_s:.0f} s of CPU, {counts}: {found}"

    def read(self, line: str) -> None:
        """Take the counts from a line that the fuzzer prints now and then."""
        if status := _STATUS.match(line):
            self.executions = int(status[1])
            self.edges, self.features = int(status[2] or self.edges), int(status[3] or self.features)
            self.corpus = int(status[4])


@dataclass(frozen=True, slots=True)
class Span:
    """How long a target runs: seconds of the clock at most, and of its own processor time; None: as many."""

    seconds: int
    cpu_s: int | None = None


def fuzz(
    name: str, span: Span, folder: Path, *, options: Sequence[str] = (), bug: str | None = None
) -> Outcome:
    """Run one target for so long in a process of its own; its corpus and findings are kept in `folder`."""
    corpus, findings = folder / "corpus" / name, folder / "findings" / name
    corpus.mkdir(parents=True, exist_ok=True)
    findings.mkdir(parents=True, exist_ok=True)
    before = set(findings.iterdir())
    options = [*options, f"-max_total_time={span.seconds}", f"-artifact_prefix={findings}/"]
    command = _command(name, bug)
    more = [str(_written(seeds.native(), folder / "seeds"))] if name == NATIVE else []
    outcome, last = Outcome(name), deque[str](maxlen=_LINES_KEPT)
    with tempfile.TemporaryDirectory(prefix="weighbridge-fuzz-") as scratch:
        process = subprocess.Popen(
            [*command, *options, str(corpus), *more],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": scratch, **_QUIET, **_PLACES, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,  # where the traceback comes
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        limit = threading.Timer(span.seconds + _AROUND_S, process.kill)
        limit.start()
        watch = threading.Thread(target=_watch, args=(process, span, outcome), daemon=True)
        watch.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                outcome.read(line)
                if not line.startswith(_NOISE):
                    last.append(line[:_CHARACTERS_KEPT].rstrip() + "\n")
            process.wait()
        finally:
            limit.cancel()
            process.kill()
            watch.join()
    outcome.finding = next(iter(sorted(set(findings.iterdir()) - before)), None)
    outcome.failed = process.returncode != 0 and outcome.finding is None
    outcome.words = "".join(last) if outcome.finding or outcome.failed else ""
    return outcome


def _watch(process: subprocess.Popen[str], span: Span, outcome: Outcome) -> None:
    """Note the processor time of a run, and let it end when it has had its share."""
    while process.poll() is None:
        if (used := _cpu_seconds(process.pid)) is not None:
            outcome.cpu_s = used
            if span.cpu_s is not None and used >= span.cpu_s:
                process.send_signal(signal.SIGUSR1)
        time.sleep(_LOOK_S)


def _cpu_seconds(pid: int) -> float | None:
    """Seconds of user and system time of a process; None where nothing tells."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _command(name: str, bug: str | None) -> list[str]:
    """Return the program of a target, to which the fuzzer's options are added."""
    if name == NATIVE:
        return [str(_native(bug)), *_bounds()]
    return [sys.executable, str(Path(__file__)), "--inside", name, *(["--planted", bug] if bug else []), "--"]


def _native(bug: str | None) -> Path:
    """Build the compiled target. Raises NotBuilt."""
    return fuzz_native.build(ROOT / "build" / "fuzz" / NATIVE, planted.NATIVE_BUGS[bug] if bug else None)


def _bounds() -> list[str]:
    return [
        f"-max_len={INPUT_BYTES}",
        "-use_value_profile=1",
        f"-rss_limit_mb={_PROCESS_MB}",
        "-report_slow_units=86400",  # by the clock: the targets measure their own processor time
    ]


def _inside(name: str, bug: str | None, options: Sequence[str]) -> None:
    """Be the process of one target. It ends with the fuzzer."""
    import atheris  # an extra of its own

    logging.disable()
    planted.plant(bug)
    with atheris.instrument_imports(include=["weighbridge"]):
        target = targets.target(name)
    scratch = _written(target.seeds(), Path(tempfile.mkdtemp()))
    words = scratch.with_suffix(".words")
    words.write_text("".join(_dictionary_line(word) for word in target.words))
    bounds = [*_bounds(), f"-dict={words}"]

    def change(data: bytes, most: int, seed: int) -> bytes:
        draw = random.Random(seed)
        made = target.change(data, draw) if target.change is not None and draw.random() > _AS_BYTES else None
        changed: bytes = atheris.Mutate(data, most) if made is None or len(made) > most else made
        return changed

    kept = next(Path(word.partition("=")[2]) for word in options if word.startswith("-artifact_prefix="))

    def run(data: bytes) -> bool:
        """Keep what fails at once: the fuzzer does so at the process's end, which other threads may spoil."""
        try:
            return target.run(data)
        except BaseException:
            (kept / f"crash-{hashlib.sha1(data, usedforsecurity=False).hexdigest()}").write_bytes(data)
            raise

    atheris.Setup([sys.argv[0], *bounds, *options, str(scratch)], run, custom_mutator=change)
    atheris.Fuzz()


def _written(inputs: Sequence[bytes], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(inputs):
        (folder / f"seed-{number}").write_bytes(data)
    return folder


def _dictionary_line(word: bytes) -> str:
    return '"' + "".join(rf"\x{byte:02x}" for byte in word) + '"\n'


def _replay(name: str, file: Path, bug: str | None) -> int:
    if name == NATIVE:
        return subprocess.run([_native(bug), str(file)], check=False).returncode
    resource.setrlimit(
        resource.RLIMIT_CPU, (_REPLAY_CPU_S, _REPLAY_CPU_S)
    )  # what never ends is no answer either
    planted.plant(bug)
    target = targets.target(name)
    accepted = target.run(file.read_bytes())
    print(f"{name} {'reads' if accepted else 'refuses'} {file} as it should")
    return 0


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help=f"one or more of {', '.join(NAMES)}; none: all"
    )
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument(
        "--cpu-seconds", type=int, help="for each target, of its own processor time; needs /proc"
    )
    parser.add_argument(
        "--input-seconds",
        type=int,
        default=20,
        help="for one input; more where the machine is busy or stands still",
    )
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "build" / "fuzz", help="of corpora and findings"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the fuzzer's random numbers; 0: another each time"
    )
    parser.add_argument(
        "--planted",
        metavar="BUG",
        choices=tuple(BUGS),
        help="without a check, as named in tests/fuzz",
    )
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one target with this input alone")
    parser.add_argument("--inside", metavar="TARGET", choices=tuple(targets.MODULES), help=argparse.SUPPRESS)
    known = parser.parse_args(words)
    if unknown := set(known.targets) - set(NAMES):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if known.seconds < 1:
        parser.error("--seconds must be at least 1")
    if known.replay and len(known.targets) != 1:
        parser.error("--replay takes one TARGET")
    if known.planted and not known.inside and known.targets != [BUGS[known.planted].target]:
        parser.error(f"--planted {known.planted!r} takes the TARGET {BUGS[known.planted].target}")
    return known


def main(arguments: Sequence[str]) -> int:
    """Run what the command line says; 1 where something was found, 2 where a target could not run."""
    words, _, options = ("\0".join(arguments)).partition("\0--\0")
    known = _parsed([word for word in words.split("\0") if word])
    if known.inside:
        _inside(known.inside, known.planted, options.split("\0"))
    if known.replay:
        return _replay(known.targets[0], known.replay, known.planted)
    names = known.targets or NAMES
    if names != [NATIVE] and importlib.util.find_spec("atheris") is None:
        print("the fuzzer is not installed: pip install -c constraints.txt -e '.[dev,fuzz]'", file=sys.stderr)
        return 2
    wanted = [f"-seed={known.seed}", f"-timeout={known.input_seconds}"]
    outcomes = []
    for name in names:
        try:
            span = Span(known.seconds, known.cpu_seconds)
            outcome = fuzz(name, span, known.folder.resolve(), options=wanted, bug=known.planted)
        except fuzz_native.NotBuilt as error:
            outcome = Outcome(name, words=f"{error}\n", failed=True)
        print(outcome, flush=True)
        print(outcome.words, end="", file=sys.stderr, flush=True)
        outcomes.append(outcome)
    return 2 if any(one.failed for one in outcomes) else int(any(one.finding for one in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
