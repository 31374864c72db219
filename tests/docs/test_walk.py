"""Pages are walked through as a reader would: what does not work, or says something else, is found with its place."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tools import walk
from weighbridge.routes.config import parse_configuration

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs/guide"
START = GUIDE / "start.md"
#: What needs no model, and is done in seconds.
QUICK = [
    ("clients.md", "Streams that survive"),
    ("identity.md", "Keys"),
    ("upgrade.md", "Look, copy, upgrade"),
    ("upgrade.md", "An old weighbridge.yaml"),
]
#: Everything else that can be run.
SLOW = [
    (page.name, section)
    for page in walk.PAGES
    for section in walk.sections(page)
    if (page.name, section) not in QUICK
]
PAGES = {page.name: page for page in walk.PAGES}
PAGE = """
## First
```yaml said.yaml
word: 8080
```
```bash serve 8080
{python} -c "{server}" --port 8080
```
```bash
cat said.yaml; echo "it says  hello to $(curl -s 127.0.0.1:8080/me | wc -c) of you"
```
```text
word: …
it says hello to … of
```
## Second
```
nothing is run that has no language
```
"""
SERVER = (
    "import http.server as h, sys; "
    "h.HTTPServer(('127.0.0.1', int(sys.argv[-1])), type('H', (h.BaseHTTPRequestHandler,), "
    "{'do_GET': lambda s: (s.send_response(200), s.end_headers(), s.wfile.write(b'abc'))})).serve_forever()"
)


def page(folder: Path, text: str) -> Path:
    file = folder / "page.md"
    file.write_text(
        text.replace("{python}", sys.executable).replace("{server}", SERVER).replace(" --port 8080\n", "\n")
    )
    return file


def test_a_page_that_is_true_is_walked_through(tmp_path: Path) -> None:
    assert list(walk.walk(page(tmp_path, PAGE))) == ["First"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("it says hello to … of\n", "it says hello to … friends\n", "nothing like 'it says hello"),
        ("cat said.yaml;", "cat said.yaml; no-such-command;", "ended with"),
        ('-c "{server}"', "-c 'raise SystemExit(3)'", "was not ready"),
    ],
)
def test_where_it_stumbles_is_said(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(walk.Stumbled, match=words) as stumbled:
        walk.walk(page(tmp_path, PAGE.replace(old, new)))
    assert str(stumbled.value).startswith("page.md:")


def test_the_first_hour_has_all_it_promises() -> None:
    found = list(walk.blocks("start.md", START.read_text(encoding="utf-8")))
    sections = {one.section for one in found if one.language == "bash"} - {""}
    assert len(sections) == 6
    assert {one.section for one in found if one.language == "text"} == sections


@pytest.mark.parametrize(("page", "section"), QUICK)
def test_what_is_quick_is_as_it_is_written(page: str, section: str) -> None:
    assert list(walk.walk(PAGES[page], section)) == [section]


@pytest.mark.proof
@pytest.mark.parametrize(("page", "section"), SLOW)
def test_a_section_is_as_it_is_written(page: str, section: str) -> None:
    """Within five minutes, the models pulled before."""
    took = walk.walk(PAGES[page], section)
    assert max(took.values()) < 300, took


def test_one_block_of_commands_in_ten_may_be_left_out_and_says_why() -> None:
    counts = [walk.count(page) for page in walk.PAGES]
    left_out = [one for count in counts for one in count.left_out]
    assert 10 * len(left_out) <= sum(count.all for count in counts)
    assert [one for one in left_out if not one[1].startswith(walk.EXCUSES)] == []


@pytest.mark.parametrize("page", walk.PAGES, ids=lambda page: page.name)
def test_every_block_says_what_it_is_and_every_guide_has_something_to_do(page: Path) -> None:
    fences = re.findall(r"^ *```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)[::2]
    assert [fence for fence in fences if not fence] == []
    assert walk.count(page).all


def fragments() -> Iterator[tuple[str, str]]:
    """Pieces of weighbridge.yaml that are no file of a walk, by their places."""
    for page in walk.PAGES:
        for block in walk.blocks(page.name, page.read_text(encoding="utf-8")):
            if block.language == "yaml":
                yield block.place, block.text


@pytest.mark.parametrize(("place", "text"), list(fragments()), ids=[place for place, _ in fragments()])
def test_pieces_of_configuration_hold(
    place: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what they leave out: models, where there are none, and the files and variables that they name."""
    for number, variable in enumerate(re.findall(r"_env: (\w+)", text)):
        monkeypatch.setenv(variable, f"a-key-that-is-long-enough-{number}")
    for file in re.findall(r"(?:tokenizer|tls_\w+|router): ([^\s,}]+)", text):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    parse_configuration(completed(text), place, tmp_path)


def completed(text: str) -> str:
    """A fragment with what is around it in a whole file."""
    found = yaml.safe_load(text)
    model = {"replicas": [{"url": "http://127.0.0.1:1"}]}
    if isinstance(found, list):
        found = {"models": {"m": {"replicas": found}}}
    if "replicas" in found:
        found = {"models": {"m": found}}
    if "places" in found:
        names = {one["model"] for one in found["places"] if "url" not in one}
        found = {"models": dict.fromkeys(names, model), "routes": {"auto": found}}
    if "models" not in found and "routes" not in found:
        found["models"] = {"m": model}
    if "tls_client_ca" in found and "tls_cert" not in found:
        found["tls_cert"] = found["tls_client_ca"]
    return yaml.safe_dump(found)
