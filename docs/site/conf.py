"""How the pages become a site: `make docs`. Nothing of it is loaded from elsewhere, neither scripts nor fonts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pygments.lexers.data import JsonLexer

ROOT = Path(__file__).resolve().parents[2]
_VERSION = re.search(r'__version__ = "([^"]+)"', (ROOT / "src/weighbridge/__init__.py").read_text())

project = "Weighbridge"
copyright = "the authors of Weighbridge; Apache-2.0"
release = version = _VERSION[1] if _VERSION else ""

extensions = ["myst_parser"]
root_doc = "docs/site/index"
include_patterns = ["*.md", "docs/**", "examples/README.md", "deploy/README.md"]
exclude_patterns = [".*", "build", "src", "tests", "benchmarks", "tools"]
source_suffix = {".md": "markdown"}

# Headings are linked to as they are where a repository shows these pages.
myst_heading_anchors = 4
myst_enable_extensions: list[str] = []
#: Blocks of ours that say what `tools/walk.py` does with them.
highlight_language = "text"

html_theme = "furo"
html_title = f"Weighbridge {release}"
html_extra_path = ["extra"]
html_static_path: list[str] = []
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {"footer_icons": [], "navigation_with_keys": True}
html_favicon = "../../src/weighbridge/server/console/static/icon.svg"


def setup(app: Any) -> None:
    """JSON with an object on each line is JSON to look at."""
    app.add_lexer("jsonl", JsonLexer)
