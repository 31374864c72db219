"""The checks that the fuzzer must miss are where they are said to be, and what cannot be fuzzed here says why."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from tools.deletions import without

from tests.fuzz.planted import BUGS, NATIVE_BUGS, Bug, NativeBug
from tools import fuzz, fuzz_native


def test_every_target_has_bugs_to_find() -> None:
    assert {bug.target for bug in fuzz.BUGS.values()} == set(fuzz.NAMES)
    assert len(fuzz.BUGS) == len(BUGS) + len(NATIVE_BUGS)


@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS)
def test_a_check_is_there_once_and_is_gone_without_it(bug: Bug) -> None:
    source = bug.deletion.path.read_text(encoding="utf-8")
    assert without(source, bug.deletion) != ast.unparse(ast.parse(source))


@pytest.mark.parametrize("bug", NATIVE_BUGS.values(), ids=NATIVE_BUGS)
def test_a_check_of_the_compiled_layer_is_there_once(bug: NativeBug) -> None:
    assert (fuzz_native.NATIVE / bug.file).read_text(encoding="utf-8").count(bug.code) == 1


def test_without_clang_one_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fuzz.main(["--folder", str(tmp_path / "fuzz"), "native"]) == 2
    shown = capsys.readouterr()
    assert "native" in shown.out
    assert "did not run" in shown.out
    assert shown.err.splitlines() == [fuzz_native.MISSING]


def test_the_newest_clang_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("clang++-9", "clang++-16", "clang++-14"):
        (tmp_path / name).touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fuzz_native.compiler() == str(tmp_path / "clang++-16")
