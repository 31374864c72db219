"""Each check that `tools/deletions.py` takes out is where it is said to be, and a door test notices that it is gone."""

from __future__ import annotations

import ast
from dataclasses import replace

import pytest
from tools.deletions import DELETIONS, Deletion, Moved, baseline, run_tests, verdict, without

SOURCE = """
class Box(Base, strict=True):
    size: int = 7

    def fill(self, load):
        if load > self.size:
            raise TooMuch(load)
        try:
            self.add(load)
        except ValueError:
            return 0
        log(load)
        return min(load, self.size)
"""


def deletion(where: str, code: str, instead: str = "") -> Deletion:
    return Deletion("a check", f"box:{where}", code, instead)


@pytest.mark.parametrize(
    ("where", "code", "instead", "gone", "there"),
    [
        ("Box.fill", "if load > self.size: ...", "", "TooMuch", "self.add(load)"),
        ("Box.fill", "if load > self.size: ...", "load = self.size", "TooMuch", "load = self.size"),
        ("Box.fill", "except ValueError:", "", "try:", "self.add(load)"),
        ("Box.fill", "log(load)", "", "log(load)", "self.add(load)"),
        ("Box.fill", "min(load, self.size)", "load", "min(", "return load"),
        ("Box", "strict=True", "", "strict", "class Box(Base):"),
        ("Box", "size: int = 7", "size: str = ''", "size: int", "size: str = ''"),
    ],
)
def test_a_check_is_taken_out_and_nothing_else(
    where: str, code: str, instead: str, gone: str, there: str
) -> None:
    text = without(SOURCE, deletion(where, code, instead))
    assert gone not in text
    assert there in text
    assert abs(len(ast.unparse(ast.parse(SOURCE))) - len(text)) < 80


@pytest.mark.parametrize(
    ("where", "code"),
    [("Bag.fill", "log(load)"), ("Box.empty", "log(load)"), ("Box.fill", "log(box)"), ("Box.fill", "load")],
)
def test_code_that_is_not_there_once_is_said(where: str, code: str) -> None:
    with pytest.raises(Moved):
        without(SOURCE, deletion(where, code))


@pytest.mark.parametrize("one", DELETIONS, ids=lambda one: one.name)
def test_a_check_is_where_it_is_said_to_be(one: Deletion) -> None:
    source = one.path.read_text(encoding="utf-8")
    text = without(source, one)
    assert text != ast.unparse(ast.parse(source))
    compile(text, one.path, "exec")
    assert one.node_ids


def test_there_are_many_checks_and_each_has_a_name() -> None:
    assert len({one.name for one in DELETIONS}) == len(DELETIONS) >= 20


@pytest.fixture(scope="module")
def passing() -> None:
    """A test that fails anyway would notice nothing."""
    whole = baseline(DELETIONS)
    assert not whole.failed
    assert not whole.trouble


@pytest.mark.proof
@pytest.mark.timeout(900)
@pytest.mark.parametrize("one", DELETIONS, ids=lambda one: one.name)
def test_a_door_test_notices_that_a_check_is_gone(one: Deletion, passing: None) -> None:
    is_caught, words = verdict(one)
    assert is_caught, words


@pytest.mark.proof
@pytest.mark.timeout(900)
def test_a_deletion_that_nobody_notices_is_said() -> None:
    """The row here has nothing to do with the check."""
    one = replace(next(iter(DELETIONS)), rows=("health",), tests=())
    assert verdict(one) == (False, "NOT CAUGHT")


@pytest.mark.proof
def test_a_test_that_is_not_there_is_said() -> None:
    assert "no tests ran" in run_tests(["tests/doors/test_doors.py::test_of_nothing"]).trouble
