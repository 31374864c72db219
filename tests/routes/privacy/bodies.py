"""Bodies of chats, and what a guard makes of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from weighbridge.routes.privacy.guard import Guard, Redacted
from weighbridge.routes.privacy.hits import Detector
from weighbridge.routes.privacy.patterns import DenyListDetector, PatternDetector
from weighbridge.routes.privacy.walk import Unhidable


def chat(content: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **fields}


def tool(name: str, properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, **more}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


async def redact(body: dict[str, Any], deny: Sequence[str] = (), timeout: float = 30.0) -> Redacted | None:
    """The redacted body; None: it stays."""
    detectors: list[Detector] = [PatternDetector(), DenyListDetector(deny)]
    guard = Guard(detectors, timeout=timeout)
    try:
        return await guard.redact(await guard.inspect(body), body)
    except Unhidable:
        return None
    finally:
        guard.close()


def sent(redacted: Redacted) -> str:
    """What would leave, as text."""
    return json.dumps(redacted.body, ensure_ascii=False)
