"""The site as `make docs` builds it: strictly, with a search, and without a word to anybody when it is read."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.server.console.chromium import PROGRAM, browser

pytestmark = pytest.mark.proof
ROOT = Path(__file__).parents[2]
#: Elements whose address is loaded when a page is read; a link is followed by its reader alone.
LOADS = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "srcset", "object": "data"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", str(ROOT / "docs/site")]
    done = subprocess.run([*command, str(ROOT), str(folder)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder


class Loads(HTMLParser):
    """The addresses that a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        if tag == "link" and told.get("rel") in ("canonical", "next", "prev", "index", "search"):
            return
        address = told.get(LOADS.get(tag, ""))
        if address:
            self.found.append(address)
        self.found += re.findall(r"url\(['\"]?([^)'\"]+)", told.get("style") or "")


def loads(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".css":
        yield from re.findall(r"url\(['\"]?([^)'\"]+)", text)
        yield from re.findall(r"@import ['\"]([^'\"]+)", text)
        return
    page = Loads()
    page.feed(text)
    yield from page.found


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    files = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert len(files) > 60
    foreign = {
        (path.relative_to(site).as_posix(), one)
        for path in files
        for one in loads(path)
        if re.match(r"(?:https?:)?//", one)
    }
    assert foreign == set()


def test_links_between_pages_lead_somewhere(site: Path) -> None:
    """Those that the generator does not check: files beside the pages, and places within them."""
    anchors: dict[Path, set[str]] = {}
    broken = []
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r'<a [^>]*href="([^"]+)"', text):
            if re.match(r"[a-z]+:|//", target):
                continue
            name, _, anchor = target.partition("#")
            there = (path.parent / name.partition("?")[0]).resolve() if name else path
            if not there.exists():
                broken.append((path.name, target))
            elif anchor and there.suffix == ".html":
                known = anchors.setdefault(
                    there, set(re.findall(r' id="([^"]+)"', there.read_text(encoding="utf-8")))
                )
                if anchor not in known:
                    broken.append((path.name, target))
    assert broken == []


@pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium")
def test_it_is_searched_without_a_network(site: Path, tmp_path: Path) -> None:
    """From the disk, as somebody reads it who has unpacked it."""
    with browser(tmp_path) as tab:
        tab.go(f"file://{site}/index.html")
        tab.until(
            "document.title.includes('Weighbridge') && location.pathname.endsWith('docs/site/index.html')"
        )
        tab.go(f"file://{site}/search.html?q=itl_target")
        tab.until("document.querySelectorAll('#search-results li a').length > 0", 30)
        assert [one for one in tab.requests if not one.startswith(("file:", "data:", "blob:"))] == []
        assert not [one for one in tab.problems if "Content Security" in one]
