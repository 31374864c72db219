"""A tiny model whose chat template has a place for tools, and the calls a constraint makes it write."""

from __future__ import annotations

from pathlib import Path

import transformers

from tests.tiny import CHAT_TEMPLATE, make_tiny

#: A random model does not call tools by itself: a regular expression makes it write what one that can would.
CALL = r'<tool_call>\n\{"name": "%s", "arguments": \{"load": "[a-z]{%d}", "heavy": (true|false)\}\}\n</tool_call>'


def make_tool_model(directory: Path) -> Path:
    make_tiny("qwen2", directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = "{% if tools %}Tools: {{ tools | tojson }}\n{% endif %}" + CHAT_TEMPLATE
    tokenizer.save_pretrained(directory)
    return directory
