"""Bugs that each fuzz target must find within a minute: a check of its parser that is not there.

They are deletions of the real checks, none of which a seed meets, and are noticed by what the target asserts anyway.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from tools.deletions import Deletion, without


@dataclass(frozen=True, slots=True)
class Bug:
    """A check that is taken out, and the target that must notice."""

    target: str
    deletion: Deletion


@dataclass(frozen=True, slots=True)
class NativeBug:
    """A check of the compiled layer, as it is written in one of its files, and what stands there instead."""

    file: str
    code: str
    instead: str
    target: str = "native"


def _bug(target: str, name: str, where: str, code: str, instead: str = "") -> tuple[str, Bug]:
    return name, Bug(target, Deletion(name, where, code, instead, package="weighbridge"))


BUGS = dict(
    [
        _bug(
            "safetensors",
            "the type of a tensor that is read",
            "models.files.checkpoint:SafetensorsCheckpoint.tensor",
            "if tensor.dtype not in _FLOATS: ...",
        ),
        _bug(
            "safetensors",
            "the shape of a tensor with all experts",
            "models.files.checkpoint:_cut",
            "len(shape) != 3 or shape[0] != experts.count or tuple(shape[1:]) not in (usual, usual[::-1])",
            "len(shape) != 3",
        ),
        _bug(
            "gguf",
            "columns that do not divide into blocks",
            "models.files.gguf_format:_entry",
            "if columns % block_size: ...",
        ),
        _bug(
            "gguf",
            "where a tensor ends",
            "models.files.gguf_format:_entry",
            "start + nbytes > limit",
            "start > limit",
        ),
        _bug(
            "gguf",
            "an alignment of nothing",
            "models.files.gguf_format:_read",
            "if not isinstance(alignment, int) or alignment < 1: ...",
        ),
        _bug(
            "tokenizer",
            "a vocabulary with gaps",
            "models.text.tokenizer:Tokenizer.__init__",
            "max([size, parts.size, *(index + 1 for index in added)])",
            "size",
        ),
        _bug(
            "tokenizer",
            "named tokens that take spaces with them",
            "models.text.word_tokens:_named",
            "if any(token.single_word or token.lstrip or token.rstrip for token in tokens): ...",
        ),
        _bug(
            "template",
            "the width of what is padded",
            "models.text.template_sandbox:_check_filter",
            "budget.bound(weights[0] + number)",
        ),
        _bug(
            "template",
            "a power of large numbers",
            "models.text.template_sandbox:BudgetedEnvironment.call_binop",
            "if operator == '**' and not _small_power(left, right): ...",
        ),
        _bug(
            "yaml",
            "a section that is no mapping",
            "fleet.config.reader:Section.__init__",
            "if not isinstance(node, yaml.MappingNode): ...",
        ),
        _bug(
            "yaml",
            "a count that is no number",
            "fleet.config.reader:Section.count",
            "type(value) is not int or value < least",
            "type(value) is int and value < least",
        ),
        _bug(
            "sse",
            "a choice below the first",
            "wire.protocols.openai:choice_index",
            "type(index) is int and index >= 0",
            "type(index) is int",
        ),
        _bug(
            "sse",
            "a text that is none",
            "wire.protocols.openai:message_parts",
            "isinstance(content, str) and (content or logprobs)",
            "content or logprobs",
        ),
        _bug(
            "http",
            "a connection that the server closes",
            "wire.client:_Connection.on_message_complete",
            "self._kept and self._parser.should_keep_alive()",
            "self._kept",
        ),
        _bug(
            "responses",
            "whose a message is",
            "wire.protocols.response.items:_message",
            "if role not in _ROLES: ...",
        ),
        _bug(
            "responses",
            "how many metadata there may be",
            "wire.protocols.responses:_refuse_what_is_not_here",
            "len(metadata) > MAX_METADATA",
            "False",
        ),
        _bug(
            "messages",
            "a block's text that is none",
            "wire.protocols.messages:_text_of",
            "if not isinstance(value, str): ...",
        ),
        _bug(
            "messages",
            "calls that wait for their results",
            "wire.protocols.messages:_messages",
            "if last is not None and last.role == 'assistant' and messages[-1].get('tool_calls'): ...",
        ),
        _bug(
            "ollama",
            "a call that is answered already",
            "wire.protocols.ollama:_Pending.answer",
            "number in self._ids",
            "True",
        ),
        _bug(
            "ollama",
            "a picture of no kind",
            "wire.protocols.ollama:_image",
            "if kind is None: ...",
        ),
        _bug(
            "styles",
            "half a letter in the name of a call",
            "server.styles.reading:string",
            "text.encode()",
        ),
        _bug(
            "styles",
            "a number that is none in arguments",
            "server.styles.typed:_json",
            "json.loads(text, parse_constant=_refuse)",
            "json.loads(text)",
        ),
        _bug(
            "kv_events",
            "a token of more than eight bytes",
            "fleet.kv.events",
            "Annotated[int, Meta(ge=-2 ** 63, le=2 ** 63 - 1)]",
            "int",
        ),
        _bug(
            "kv_events",
            "blocks that are elsewhere",
            "fleet.kv.following:Following._apply",
            "event.medium not in _NEAR or event.group_idx not in _GROUP",
            "event.group_idx not in _GROUP",
        ),
    ]
)


#: Bugs of the target that is compiled; it is built anew for each.
NATIVE_BUGS = {
    "a block behind the last one": NativeBug(
        "attention_plan.cpp", "id < 0 || id >= shape_.num_blocks", "id < 0 || id > shape_.num_blocks"
    ),
    "a context of more blocks than there are": NativeBug(
        "attention_plan.cpp", "if (blocks > max_blocks)", "if (blocks > max_blocks + 1)"
    ),
    "the rows of a packed matrix": NativeBug(
        "linear_checks.cpp",
        "if (matrix.rows != rows || matrix.columns != columns)",
        "if (matrix.columns != columns)",
    ),
    "a state of a row that is not there": NativeBug(
        "forward.cpp", 'check_range(batch.state_rows, batch.num_states, batch.num_rows, "state row");', ""
    ),
}


class _Instead(MetaPathFinder):
    """Finds one module in another file."""

    def __init__(self, module: str, file: Path) -> None:
        self._module, self._file = module, file

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, self._file) if name == self._module else None


def plant(name: str | None) -> None:
    """Take a check out for the rest of the process, before its module is imported; None: no check."""
    if name is None:
        return
    deletion = BUGS[name].deletion
    assert deletion.module not in sys.modules, f"{deletion.module} is imported already"
    file = Path(tempfile.mkdtemp(prefix="weighbridge-planted-")) / deletion.path.name
    file.write_text(without(deletion.path.read_text(encoding="utf-8"), deletion), encoding="utf-8")
    sys.meta_path.insert(0, _Instead(deletion.module, file))


def main(name: str) -> None:
    """Read the seeds without a check: nothing is noticed yet."""
    plant(name)
    from tests.fuzz.targets import target  # now that the check is gone

    found = target(BUGS[name].target)
    for seed in found.seeds():
        found.run(seed)


if __name__ == "__main__":
    main(sys.argv[1])
