"""Check the contracts of the package: floors, pure cores, no circles, no crowded folder, one meaning a class name.

`make lint` runs it. Every import counts, also one inside a function or behind TYPE_CHECKING. Nothing is imported: the
sources are parsed.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

PACKAGE = "weighbridge"

_BASE = {"errors", "knobs", "secret", "state", "ticket", "cost"}
_ENGINE = _BASE | {"models", "engine", "workload"}
_FLEET = _ENGINE | {"wire", "fleet"}

#: The rooms that each room may import. What is not named here (cli, bench, `python -m`) stands on top and may all.
FLOORS: dict[str, set[str]] = {
    "errors": set(),
    "knobs": {"errors"},
    "secret": set(),
    "cost": {"errors", "knobs"},
    "state": {"errors"},
    "ticket": {"errors", "cost", "state"},
    "workload": _BASE,
    "wire": _BASE,
    "models": _BASE,
    "engine": _BASE | {"models", "workload"},
    "fleet": _ENGINE | {"wire"},
    "routes": _FLEET | {"pages"},
    "pages": _BASE | {"workload"},
    "simulator": _FLEET | {"pages"},
    "planner": _FLEET | {"simulator", "pages"},
    "flow": _BASE | {"wire", "pages", "workload"},
    "server": _FLEET | {"routes", "pages"},
}
#: Rooms that nobody below the top may import.
TOP = {"cli", "bench", "__main__"}

#: What a pure core never touches, neither itself nor through another module of the package: time is passed in,
#: randomness is a seeded generator passed in, and whoever calls it does the waiting.
_WORLD = (
    "aiohttp asyncio concurrent datetime http httptools httpx multiprocessing random requests secrets selectors "
    "socket sqlite3 ssl starlette subprocess threading time torch transformers urllib uvicorn"
)
WORLD = frozenset(_WORLD.split())
#: Patterns of module names, without the package; `!` takes some out again, with the reason beside it.
PURE = (
    "errors",
    "knobs",
    "cost",
    "cost.*",
    "engine.api",
    "engine.batch",
    "engine.request",
    "engine.memory.*",
    "engine.schedule.*",
    "fleet.api",
    "fleet.abilities.*",
    "fleet.desk",
    "fleet.kv.*",
    "!fleet.kv.feed",  # listens
    "fleet.load.*",
    "!fleet.load.weigher",  # tokenises in a thread
    "fleet.limits.days",
    "fleet.limits.tenant",
    "fleet.on_demand.occupancy",
    "fleet.policies.*",
    "!fleet.policies.routing",  # makes the seeded generator that policies draw from
    "fleet.reliability.breaker",
    "fleet.reliability.hedge",
    "fleet.reliability.retry",
    "routes.caps",
    "routes.policy",
    "routes.judge",
    "routes.privacy.*",
    "!routes.privacy.guard",  # runs detectors on threads, with a time-out
    "flow.bets.gate",
    "flow.bets.predict",
    "flow.step_times",
    "planner.*",
    "!planner.machine",  # opens a file, and asks this machine
    "!planner.search.simulated",  # runs the simulator
)

#: Modules that other modules of their folder stand on; in the graph of folders they are a folder of their own.
ROWS: dict[str, set[str]] = {
    "cli": {"options", "remote", "terminal"},
    "engine": {"api", "batch", "request"},
    "models": {"keeping", "kept_weights"},
    "fleet": {"api", "replica"},
    "routes": {"budget", "caps", "errors", "judge", "policy", "request", "settings"},
    "routes.privacy": {"checksums", "fields", "hits", "reading"},
    "flow": {
        "budget",
        "effect_order",
        "hooks",
        "identity",
        "nursery",
        "runtime",
        "slots",
        "step",
        "step_times",
    },
    "server": {"settings", "auth", "protocol", "endpoint"},
}

#: Modules that may stand side by side, `__init__` included: more than that nobody finds his way about.
MOST_MODULES = 15


@dataclass(frozen=True, slots=True)
class Import:
    """One import of one module; `target` is a module of the package or the first word of a foreign one."""

    source: str
    target: str
    line: int


@dataclass(slots=True)
class Tree:
    """The modules of a package, by their names without the package's own, and what they import."""

    paths: dict[str, Path]
    inside: dict[str, list[Import]] = field(default_factory=dict)
    outside: dict[str, list[Import]] = field(default_factory=dict)

    def links(self) -> dict[str, set[str]]:
        return {name: {one.target for one in found} for name, found in self.inside.items()}

    def place(self, found: Import) -> str:
        return f"{self.paths[found.source]}:{found.line}"


def read_tree(package: Path) -> Tree:
    """Parse every module below `package`, a folder that holds an `__init__.py`."""
    tree = Tree({_name(package, path): path for path in sorted(package.rglob("*.py"))})
    for name, path in tree.paths.items():
        tree.inside[name], tree.outside[name] = [], []
        is_package = path.name == "__init__.py"
        for target, line in _targets(path, package.name, name, is_package):
            words = target.split(".")
            if words[0] != package.name:
                tree.outside[name].append(Import(name, words[0], line))
                continue
            module = _longest(words[1:], tree.paths)
            if module is not None and module != name:
                tree.inside[name].append(Import(name, module, line))
    return tree


def _name(package: Path, path: Path) -> str:
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _longest(words: list[str], modules: Mapping[str, Path]) -> str | None:
    """The module that a dotted name means: `cost.step.StepCost` is in `cost.step`."""
    for size in range(len(words), 0, -1):
        if ".".join(words[:size]) in modules:
            return ".".join(words[:size])
    return "" if "" in modules else None


def _targets(path: Path, package: str, name: str, is_package: bool) -> Iterator[tuple[str, int]]:
    """Every imported name in full, with its line."""
    home = [package, *(name.split(".") if name else [])]
    home = home if is_package else home[:-1]
    for node in _statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = home[: len(home) - node.level + 1] if node.level else []
            base += node.module.split(".") if node.module else []
            for alias in node.names:
                yield ".".join([*base, alias.name]), node.lineno


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """All statements at any depth; expressions hold no imports and are most of a tree."""
    for block in ("body", "orelse", "finalbody", "handlers", "cases"):
        for statement in getattr(node, block, ()):
            yield statement
            yield from _statements(statement)


def upward(tree: Tree, floors: Mapping[str, set[str]] = FLOORS) -> list[str]:
    """Imports that climb: a room that imports one it does not stand on."""
    found = []
    for name, imports in tree.inside.items():
        here = name.split(".")[0]
        for one in imports:
            there = one.target.split(".")[0]
            is_climb = there in floors or there in TOP
            if here in floors and there != here and is_climb and there not in floors[here]:
                found.append(f"{tree.place(one)}: {here} imports {one.target}, which is above it")
    return found


def impure(tree: Tree, patterns: Iterable[str] = PURE) -> list[str]:
    """Pure cores that reach the world, with the way they take; and patterns that name nothing any more."""
    patterns = list(patterns)
    pure = {name for name in tree.paths if _matches(name, patterns)}
    found = [
        f"PURE: no module is called {pattern!r}; correct the pattern"
        for pattern in patterns
        if not any(fnmatchcase(name, pattern.removeprefix("!")) for name in tree.paths)
    ]
    for name in sorted(pure):
        way = _way_out(tree, name)
        if way:
            path = " -> ".join(one.target for one in way)
            found.append(f"{tree.place(way[0])}: the pure core {name} reaches {path}")
    return found


def _matches(name: str, patterns: Iterable[str]) -> bool:
    wanted = False
    for pattern in patterns:
        if fnmatchcase(name, pattern.removeprefix("!")):
            wanted = not pattern.startswith("!")
    return wanted


def _way_out(tree: Tree, name: str) -> list[Import]:
    """The shortest chain of imports from a module to something of the world; empty when there is none."""
    seen: set[str] = {name}
    waiting: list[tuple[str, list[Import]]] = [(name, [])]
    for here, way in waiting:  # grows while it is read: breadth first
        foreign = [item for item in tree.outside[here] if item.target in WORLD]
        if foreign:
            return [*way, foreign[0]]
        for item in tree.inside[here]:
            if item.target not in seen:
                seen.add(item.target)
                waiting.append((item.target, [*way, item]))
    return []


def circles(links: Mapping[str, set[str]]) -> list[list[str]]:
    """The sets of nodes that can all reach each other, largest first (Tarjan)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for target in sorted(links.get(node, ())):
            if target not in order:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], order[target])
        if low[node] == order[node]:
            at = stack.index(node)
            circle = sorted(stack[at:])
            del stack[at:]
            if len(circle) > 1:
                found.append(circle)

    for node in sorted(links):
        if node not in order:
            visit(node)
    return sorted(found, key=lambda circle: (-len(circle), circle))


def folder_links(tree: Tree, rows: Mapping[str, set[str]] = ROWS) -> dict[tuple[str, str], list[Import]]:
    """What folders import from each other. A module beside the package's own `__init__` is a folder of its own."""

    def folder(name: str) -> str:
        if tree.paths[name].name == "__init__.py":
            return name
        above, _, last = name.rpartition(".")
        if not above:
            return name
        return f"{above} ({', '.join(sorted(rows[above]))})" if last in rows.get(above, ()) else above

    found: dict[tuple[str, str], list[Import]] = {}
    for name, imports in tree.inside.items():
        for one in imports:
            pair = folder(name), folder(one.target)
            if pair[0] != pair[1] and one.target:
                found.setdefault(pair, []).append(one)
    return found


def folder_circles(tree: Tree, rows: Mapping[str, set[str]] = ROWS) -> list[tuple[str, str, Import]]:
    """The links between folders that are part of a circle, each with one import that makes it."""
    links = folder_links(tree, rows)
    graph: dict[str, set[str]] = {}
    for source, target in links:
        graph.setdefault(source, set()).add(target)
    room = {node: number for number, circle in enumerate(circles(graph)) for node in circle}
    return [
        (source, target, imports[0])
        for (source, target), imports in sorted(links.items())
        if source in room and room.get(target) == room[source]
    ]


def crowded(tree: Tree, most: int = MOST_MODULES) -> list[str]:
    """Folders with more than `most` modules."""
    found = Counter(path.parent for path in tree.paths.values())
    return [
        f"{folder}: {count} modules side by side; move what belongs together into a package of its own"
        for folder, count in sorted(found.items())
        if count > most
    ]


def twins(tree: Tree) -> list[str]:
    """Public class names that mean more than one thing."""
    places: dict[str, list[str]] = {}
    for path in tree.paths.values():
        for node in _statements(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(f"{path}:{node.lineno}")
    return [
        f"{found[-1]}: another class is called {name}, at {found[0]}; say in its name what this one holds"
        for name, found in sorted(places.items())
        if len(found) > 1
    ]


def circular(tree: Tree) -> list[str]:
    """Modules, and folders, that import each other in a circle."""
    found = [
        f"modules that import each other in a circle: {', '.join(circle)}" for circle in circles(tree.links())
    ]
    return found + [
        f"{tree.place(one)}: in a circle of folders: {here} -> {there}"
        for here, there, one in folder_circles(tree)
    ]


def main(arguments: list[str]) -> int:
    package = Path(arguments[0]) if arguments else Path("src") / PACKAGE
    tree = read_tree(package)
    problems = upward(tree) + impure(tree) + circular(tree) + crowded(tree) + twins(tree)
    print("\n".join(problems), end="\n" if problems else "")
    print(f"contracts: {len(tree.paths)} modules, {len(problems)} problems")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
