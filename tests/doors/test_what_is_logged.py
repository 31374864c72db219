"""After all these requests the doors' logs hold no traceback, no key and no prompt. Runs behind the other files."""

from __future__ import annotations

import pytest

from tests.doors.doors import GATEWAY, KEYS, ROUTES, SINGLE, Door
from tests.doors.table import chat


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("name", [SINGLE, GATEWAY, ROUTES])
def test_nothing_that_was_meant_is_a_traceback(
    name: str, keyed: bool, doors: dict[bool, dict[str, Door]]
) -> None:
    text = doors[keyed][name].log.read_text(encoding="utf-8", errors="replace")
    assert "Traceback" not in text, text[text.index("Traceback") - 500 :][:3000]
    prompt = chat()["messages"][0]["content"]
    for secret in (*KEYS.values(), prompt, "weigh it weigh it"):
        assert secret not in text
