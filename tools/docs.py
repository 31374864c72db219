"""Check pages and docstrings: links, names in backticks, commands and programs; `--write` renews the file tables
and the reference.

Nothing is imported: sources are parsed, and commands are compared with the snapshot of the options. A table of files
stands between `<!-- files: ROOM -->` and `<!-- end -->`; each row is a module and the first sentence of its docstring.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = "tests/cli/help/options.json"
SOURCES = "src", "tests", "benchmarks", "tools", "docs", "examples"

_FENCE = re.compile(r"^ *(```|~~~)")
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_TABLE = re.compile(r"(<!-- files: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_FILE = re.compile(r"[\w./-]*\w\.(?:py|cpp|h|md|html|svg|lua)\b")
_DOTTED = re.compile(r"weighbridge(?:\.(?!yaml|json)\w+)+")
_TEST = re.compile(r"test_\w+")
_PROGRAM = re.compile(r"(?:python3? )?(?:-m )?(benchmarks(?:/[\w/-]+\.py|(?:\.\w+)+))")
#: Files of other projects, and words with a file's ending that name none of ours.
FOREIGN = {"_run.py"}
#: Pages that tell of the past may name what is gone.
HISTORY = ("CHANGELOG.md", "docs/decisions/")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a page; `fenced`: it stands in a block of code."""

    place: str
    text: str
    fenced: bool

    def problem(self, words: str) -> str:
        return f"{self.place}: {words}"


@dataclass(frozen=True)
class Page:
    """A page by its path from the root."""

    name: str
    text: str

    @property
    def folder(self) -> Path:
        return (ROOT / self.name).parent

    @property
    def tells_history(self) -> bool:
        return self.name.startswith(HISTORY)

    @cached_property
    def lines(self) -> list[Line]:
        found, fenced = [], False
        for number, text in enumerate(self.text.splitlines(), 1):
            if _FENCE.match(text):
                fenced = not fenced
                continue
            found.append(Line(f"{self.name}:{number}", text, fenced or text.startswith("    ")))
        return found

    @cached_property
    def anchors(self) -> set[str]:
        """The headings, as links name them."""
        titles = [line.text.lstrip("#") for line in self.lines if line.text.startswith("#")]
        return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


@cache
def read_page(name: str) -> Page:
    return Page(name, (ROOT / name).read_text(encoding="utf-8"))


class Repository:
    """What pages may point at."""

    @cached_property
    def files(self) -> list[str]:
        """Every source file from the root on."""
        return sorted(
            path.relative_to(ROOT).as_posix()
            for folder in SOURCES
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        )

    @cached_property
    def tails(self) -> set[str]:
        """Every file by all of its endings: `a/b/c.py`, `b/c.py`, `c.py`."""
        root = [path.name for path in ROOT.iterdir()]
        return {"/".join(parts[at:]) for parts in map(_parts, self.files) for at in range(len(parts))} | set(
            root
        )

    @cached_property
    def folders(self) -> set[str]:
        return {tail for file in self.files for tail in _ends(file.rsplit("/", 1)[0])}

    @cached_property
    def rooms(self) -> set[str]:
        return {path.name for path in (ROOT / "src/weighbridge").iterdir() if path.is_dir()}

    @cached_property
    def tests(self) -> set[str]:
        """Names of test functions, and of the files that hold them."""
        names = {Path(file).stem for file in self.files if file.startswith("tests/")}
        for file in self.files:
            if file.startswith("tests/") and file.endswith(".py"):
                names.update(re.findall(r"def (test_\w+)", (ROOT / file).read_text(encoding="utf-8")))
        return names

    @cached_property
    def commands(self) -> dict[str, Any]:
        commands: dict[str, Any] = json.loads((ROOT / OPTIONS).read_text(encoding="utf-8"))
        return commands


def _parts(file: str) -> list[str]:
    return file.split("/")


def _ends(folder: str) -> Iterator[str]:
    parts = folder.split("/")
    yield from ("/".join(parts[first:last]) for last in range(1, len(parts) + 1) for first in range(last))


def pages() -> list[Page]:
    names = ["README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md"]
    names += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
    return [read_page(name) for name in names]


def open_fence(page: Page) -> Iterator[str]:
    """A block of code that is never closed swallows the rest of the page."""
    if sum(_FENCE.match(line) is not None for line in page.text.splitlines()) % 2:
        yield f"{page.name}: a block of code has no end"


def bad_links(page: Page) -> Iterator[str]:
    for line in page.lines:
        for target in () if line.fenced else _LINK.findall(_SPAN.sub("", line.text)):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            there = (page.folder / path).resolve() if path else ROOT / page.name
            if not there.exists():
                yield line.problem(f"no such file: {target}")
            elif anchor and anchor not in read_page(there.relative_to(ROOT).as_posix()).anchors:
                yield line.problem(f"no such heading: {target}")


def bad_names(page: Page, repository: Repository) -> Iterator[str]:
    """Files, modules, folders and tests in backticks that do not exist, nor are made by a command of the page."""
    made = {name for line in page.lines if line.fenced for name in _FILE.findall(line.text)}
    for line in () if page.tells_history else page.lines:
        for span in () if line.fenced else _SPAN.findall(line.text):
            missing = (name for name in _missing(span, repository) if name not in made)
            yield from (line.problem(f"`{name}` does not exist") for name in missing)
            yield from (
                line.problem(f"`{name}` is elsewhere; write its path") for name in _strange(page, span)
            )


def _strange(page: Page, span: str) -> Iterator[str]:
    """Bare names of modules on the page of a room that are none of this room's."""
    home = ROOT / "src/weighbridge" / Path(page.name).stem
    is_room = page.name.startswith("docs/design/") and home.is_dir()
    is_bare = re.fullmatch(r"(?!test_)\w+\.py", span)
    if is_room and is_bare and not (home.parent / span).is_file() and not any(home.rglob(span)):
        yield span


def _missing(span: str, repository: Repository) -> Iterator[str]:
    if "*" in span or "://" in span:
        return
    for name in _FILE.findall(span):
        if name not in FOREIGN and name.removeprefix("./") not in repository.tails:
            yield name
    for name in _DOTTED.findall(span):
        if not span.startswith("http") and not _resolves(name):
            yield name
    first, _, rest = span.partition("/")
    if (
        first in repository.rooms
        and rest
        and re.fullmatch(r"[\w/]+", rest)
        and not _is_here(span, repository)
    ):
        yield span
    if _TEST.fullmatch(span) and span not in repository.tests:
        yield span


def _is_here(span: str, repository: Repository) -> bool:
    return span.rstrip("/") in repository.folders or f"{span}.py" in repository.tails


@cache
def _resolves(name: str) -> bool:
    """Whether a dotted name is a module of the package, or something that one defines or imports."""
    words = name.split(".")
    for size in range(len(words), 0, -1):
        stem = ROOT / "src" / "/".join(words[:size])
        module = stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")
        if module.is_file() or stem.is_dir():
            return size == len(words) or words[size] in module.read_text(encoding="utf-8")
    return False


def bad_commands(page: Page, repository: Repository) -> Iterator[str]:
    """`weighbridge ...` lines whose sub-command or flag there is not, and `make` targets that are not there."""
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for line, command in _shown(page):
        words = _words(command)
        if words and words[0] == "make" and len(words) > 1 and words[1].isalpha() and words[1] not in targets:
            yield line.problem(f"make has no target {words[1]!r}")
        if words and words[0] == "weighbridge":
            yield from (line.problem(problem) for problem in _wrong(words, repository.commands))


def _shown(page: Page) -> Iterator[tuple[Line, str]]:
    """Commands as they are shown: whole lines of blocks, joined where they go on, and code in the text."""
    pending = ""
    for line in page.lines:
        if not line.fenced:
            spans = _SPAN.findall(line.text)
            yield from ((line, span) for span in spans if span.startswith(("weighbridge ", "make ")))
            continue
        pending += line.text.strip().removeprefix("$ ")
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        yield line, pending
        pending = ""


def _words(command: str) -> list[str]:
    text = re.sub(r"[\[\]]", " ", command.split("  #")[0])
    try:
        return shlex.split(text, comments=True)
    except ValueError:
        return text.split()


def _wrong(words: list[str], commands: dict[str, Any]) -> Iterator[str]:
    paths, rest = ["weighbridge"], words[1:]
    while rest and commands[paths[0]]["commands"] and not rest[0].startswith(("-", "<")):
        choices, rest = rest[0].rstrip(",.;").split("|"), rest[1:]
        wrong = [word for word in choices if word not in commands[paths[0]]["commands"]]
        if wrong:
            yield f"there is no command {paths[0]} {wrong[0]}"
            return
        paths = [f"{paths[0]} {word}" for word in choices]
    flags = [word.partition("=")[0].rstrip(",.;") for word in rest if word.startswith("--")]
    for path in paths:
        known = {flag for name in commands[path]["parameters"] for flag in re.split(r"[/, ]+", name)}
        for flag in flags:
            if not ({flag, f"--{flag.removeprefix('--no-')}"} & known) and flag != "--help":
                yield f"{path} has no {flag}"


def bad_programs(page: Page) -> Iterator[str]:
    """Benchmarks that are shown and do not exist, or whose flags occur nowhere in them."""
    shown = [(line, span) for line in page.lines for span in _SPAN.findall(line.text)]
    for line, command in [*shown, *((line, text) for line, text in _shown(page) if line.fenced)]:
        for match in _PROGRAM.finditer(command):
            name = match[1]
            path = ROOT / (name if name.endswith(".py") else name.replace(".", "/") + ".py")
            if not path.is_file():
                yield line.problem(f"no such program: {name}")
                continue
            text = path.read_text(encoding="utf-8")
            for flag in re.findall(r"--[a-z][\w-]+", command[match.end() :]):
                if flag not in text:
                    yield line.problem(f"{name} has no {flag}")


def renewed(text: str) -> str:
    """A page with its tables of files as the docstrings are now."""
    return _TABLE.sub(lambda match: match[1] + file_table(match[2]) + match[3], text)


def file_table(room: str) -> str:
    """The modules of a room, folder after folder; a room may be a single file."""
    home = ROOT / "src/weighbridge" / room
    paths = (
        [home] if home.is_file() else sorted(home.rglob("*.py"), key=lambda path: (path.parent, path.name))
    )
    rows = ["| file | what |", "|---|---|"]
    for path in paths:
        sentence = first_sentence(path)
        if path.name == "__init__.py" and path.parent == home and len(paths) > 1:
            continue  # the page itself says what the room is
        name = path.relative_to(home.parent if home.is_file() else home).as_posix()
        if path.name == "__init__.py":
            name = name.removesuffix("__init__.py")
        if sentence:
            rows.append(f"| `{name}` | {sentence} |")
    return "\n".join(rows) + "\n"


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, fit for a cell of a table."""
    text = " ".join(
        (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0].split()
    )
    sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z`])", text)[0].rstrip(".")
    return sentence.replace("|", "\\|")


def stale_table(page: Page) -> Iterator[str]:
    if renewed(page.text) != page.text:
        yield f"{page.name}: the table of files is not as the docstrings are; run tools/docs.py --write"


def stale_docstrings(name: str, text: str, repository: Repository) -> Iterator[str]:
    """Names in backticks of a source's docstrings that do not exist, and pages that it points at."""
    pages = [page for page in re.findall(r"(?<![\w/])docs/[\w/-]+\.md", text) if not (ROOT / page).is_file()]
    yield from (f"{name}: {page} does not exist" for page in pages)
    for docstring in _docstrings(ast.parse(text)):
        for span in _SPAN.findall(docstring):
            yield from (f"{name}: `{word}` does not exist" for word in _missing(span, repository))
            is_dotted = re.fullmatch(r"[a-z_]+(\.\w+)+", span) and span.split(".")[0] in repository.rooms
            if is_dotted and not _FILE.fullmatch(span) and not _resolves(f"weighbridge.{span}"):
                yield f"{name}: `{span}` does not exist"


def _docstrings(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """Those of a module, its classes and their methods; not of functions inside functions."""
    yield ast.get_docstring(node, clean=False) or ""
    for child in () if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child)


def sources() -> Iterator[str]:
    for folder in ("src", "benchmarks", "examples"):
        yield from (path.relative_to(ROOT).as_posix() for path in sorted((ROOT / folder).rglob("*.py")))


def problems(of: Iterable[Page]) -> list[str]:
    repository = Repository()
    found: list[str] = []
    for page in of:
        found += open_fence(page)
        found += bad_links(page)
        found += bad_names(page, repository)
        found += bad_commands(page, repository)
        found += bad_programs(page)
        found += stale_table(page)
    return found


def problems_of_sources() -> list[str]:
    repository = Repository()
    return [
        problem
        for name in sources()
        for problem in stale_docstrings(name, (ROOT / name).read_text(encoding="utf-8"), repository)
    ]


def main(words: list[str]) -> int:
    if "--write" in words:
        subprocess.run([sys.executable, "-m", "tools.reference", "--write"], cwd=ROOT, check=True)
        for page in pages():
            if renewed(page.text) != page.text:
                (ROOT / page.name).write_text(renewed(page.text), encoding="utf-8")
        read_page.cache_clear()
    found = problems(pages()) + problems_of_sources()
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
