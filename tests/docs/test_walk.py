"""Pages are walked through as a reader would: what does not work, or says something else, is found with its place."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tools import walk

ROOT = Path(__file__).parents[2]
START = ROOT / "docs/guide/start.md"
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


@pytest.mark.proof
def test_the_first_hour_is_as_it_is_written() -> None:
    """Each step within five minutes, the models pulled before."""
    took = walk.walk(START)
    assert max(took.values()) < 300, took
