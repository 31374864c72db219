"""The checker of the contracts finds what is planted, however it is hidden, and passes what is right."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools.contracts import circles, crowded, folder_circles, impure, main, read_tree, twins, upward

FLOORS = {"errors": set(), "cost": {"errors"}, "wire": {"errors"}, "fleet": {"errors", "cost", "wire"}}


def package(tmp_path: Path, **modules: str) -> Path:
    """A package `weighbridge` of these modules; `__` in a name stands for the folder's slash."""
    root = tmp_path / "weighbridge"
    root.mkdir()
    (root / "__init__.py").touch()
    for name, text in modules.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    "text",
    [
        "from weighbridge.fleet.pool import Pool",
        "import weighbridge.fleet.pool",
        "from weighbridge import fleet",
        "from ..fleet import pool",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from weighbridge.fleet.pool import Pool",
        "def late():\n    for _ in ():\n        try:\n            pass\n        except ValueError:\n"
        "            from weighbridge.fleet import pool",
        "class Late:\n    async def call(self):\n        with open('x'):\n            import weighbridge.fleet.pool",
        "match 1:\n    case 1:\n        from weighbridge.fleet.pool import Pool",
    ],
)
def test_an_import_of_an_upper_room_is_found_wherever_it_hides(text: str, tmp_path: Path) -> None:
    root = package(tmp_path, fleet__pool="", cost__step=text)
    [problem] = upward(read_tree(root), FLOORS)
    line = text.count("\n") + 1
    assert f"step.py:{line}: cost imports fleet" in problem


def test_lower_rooms_may_be_imported_and_the_top_may_import_all(tmp_path: Path) -> None:
    root = package(
        tmp_path,
        errors="",
        cost__step="from weighbridge.errors import BadInput",
        fleet__pool="from weighbridge.cost.step import StepCost",
        cli__serve="from weighbridge.fleet.pool import Pool",
    )
    assert upward(read_tree(root), FLOORS) == []


def test_nobody_imports_the_command_line(tmp_path: Path) -> None:
    root = package(tmp_path, cli__serve="", fleet__pool="from weighbridge.cli.serve import serve")
    assert "fleet imports cli.serve" in upward(read_tree(root), FLOORS)[0]


@pytest.mark.parametrize(
    "module", ["asyncio", "time", "random", "threading", "torch", "socket", "http.client"]
)
def test_a_pure_core_that_touches_the_world_is_found(module: str, tmp_path: Path) -> None:
    root = package(tmp_path, cost__step=f"def now():\n    import {module}")
    [problem] = impure(read_tree(root), ["cost.*"])
    assert f"cost.step reaches {module.partition('.')[0]}" in problem


def test_a_pure_core_must_not_reach_the_world_through_others_either(tmp_path: Path) -> None:
    root = package(
        tmp_path,
        cost__step="from weighbridge.cost.mean import Mean",
        cost__mean="from weighbridge.errors import now",
        errors="from time import monotonic as now",
    )
    assert "cost.step reaches cost.mean -> errors -> time" in impure(read_tree(root), ["cost.step"])[0]


def test_an_exception_is_kept_and_a_pattern_without_a_module_is_said(tmp_path: Path) -> None:
    root = package(tmp_path, cost__step="", cost__clock="import time")
    assert impure(read_tree(root), ["cost.*", "!cost.clock"]) == []
    assert "'cost.clocks'" in impure(read_tree(root), ["cost.step", "cost.clocks"])[0]


def test_circles_of_modules_and_of_folders_are_counted(tmp_path: Path) -> None:
    root = package(
        tmp_path,
        fleet__a="import weighbridge.fleet.b",
        fleet__b="def f():\n    import weighbridge.fleet.a",
        fleet__load__state="from weighbridge.fleet.api import Arrival",
        fleet__api="",
        fleet__pool="from weighbridge.fleet.load.state import State",
        cost__step="",
    )
    tree = read_tree(root)
    assert circles(tree.links()) == [["fleet.a", "fleet.b"]]
    assert [(here, there) for here, there, _ in folder_circles(tree, {})] == [
        ("fleet", "fleet.load"),
        ("fleet.load", "fleet"),
    ]
    assert folder_circles(tree, {"fleet": {"api"}}) == []


def test_the_program_says_what_is_wrong_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = package(tmp_path, errors="import time")
    assert main([str(root)]) == 1
    assert "the pure core errors reaches time" in capsys.readouterr().out


def test_a_crowded_folder_is_found(tmp_path: Path) -> None:
    root = package(tmp_path, fleet__a="", fleet__b="", cost__step="")
    assert crowded(read_tree(root), most=3) == []
    [problem] = crowded(read_tree(root), most=2)
    assert "weighbridge/fleet: 3 modules" in problem


def test_a_class_name_with_two_meanings_is_found_wherever_it_is_defined(tmp_path: Path) -> None:
    root = package(
        tmp_path,
        fleet__a="class Report: ...\nclass _Own: ...\nclass Load: ...",
        cost__step="def f():\n    class Report: ...\nclass _Own: ...",
    )
    [problem] = twins(read_tree(root))
    assert all(part in problem for part in ("called Report", "fleet/a.py", "cost/step.py"))
