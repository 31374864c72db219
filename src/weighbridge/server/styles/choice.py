"""Which styles a model uses, by what its chat template writes."""

from __future__ import annotations

from dataclasses import dataclass

from weighbridge.errors import BadInput
from weighbridge.server.styles.harmony import HARMONY_TOOLS
from weighbridge.server.styles.json_calls import BARE, FENCED, GRANITE, HERMES, LLAMA, TAGGED
from weighbridge.server.styles.mistral import MARKED, MISTRAL
from weighbridge.server.styles.reading import ToolStyle
from weighbridge.server.styles.reasoning import THINK, THINK_BRACKETS, ReasoningStyle
from weighbridge.server.styles.sections import DEEPSEEK, KIMI
from weighbridge.server.styles.tagged import GLM, QWEN_CODER

AUTO, NONE = "auto", "none"
#: For a template that shows none of the others: calls as JSON, in the frames that need no template to be told.
JSON = ToolStyle("json", (TAGGED, MARKED, FENCED, BARE), (*HERMES.marks, *MISTRAL.marks))


@dataclass(frozen=True, slots=True)
class StyleRule:
    """A template with all of these texts in it asks for this style."""

    texts: tuple[str, ...]
    style: ToolStyle


#: The first that fits: what is particular to one model stands before what several have.
TOOL_RULES = (
    StyleRule(("<|channel|>", "<|message|>"), HARMONY_TOOLS),
    StyleRule(("<function=", "<parameter="), QWEN_CODER),
    StyleRule(("<arg_key>",), GLM),
    StyleRule(("<｜tool▁call▁begin｜>",), DEEPSEEK),
    StyleRule(("<|tool_call_begin|>",), KIMI),
    StyleRule(("[TOOL_CALLS]",), MISTRAL),
    StyleRule(("<|tool_call|>",), GRANITE),
    StyleRule(("<tool_call>",), HERMES),
    StyleRule(("<|python_tag|>",), LLAMA),
)
TOOL_STYLES = {one.style.name: one.style for one in TOOL_RULES} | {JSON.name: JSON}
REASONING_STYLES = {one.name: one for one in (THINK, THINK_BRACKETS)}
TOOL_STYLE_NAMES = (AUTO, NONE, *TOOL_STYLES)
REASONING_STYLE_NAMES = (AUTO, NONE, *REASONING_STYLES)


@dataclass(frozen=True, slots=True)
class Styles:
    """How one model's answers are read; None: not at all."""

    tools: ToolStyle | None
    reasoning: ReasoningStyle | None


def styles_for(template: str, tool_style: str = AUTO, reasoning_style: str = AUTO) -> Styles:
    """The styles of a model with this chat template, unless they are named. Raises BadInput for unknown names."""
    return Styles(_tools(template, tool_style), _reasoning(template, reasoning_style))


def _tools(template: str, name: str) -> ToolStyle | None:
    if name == NONE:
        return None
    if name == AUTO:
        rules = (one.style for one in TOOL_RULES if all(text in template for text in one.texts))
        return next(rules, JSON)
    if name not in TOOL_STYLES:
        raise BadInput(f"tool-style {name!r} is not known: use one of {', '.join(TOOL_STYLE_NAMES)}")
    return TOOL_STYLES[name]


def _reasoning(template: str, name: str) -> ReasoningStyle | None:
    """An answer that begins with `<think>` thinks, whatever the template says."""
    if name == NONE:
        return None
    if name == AUTO:
        return THINK_BRACKETS if THINK_BRACKETS.end in template else THINK
    if name not in REASONING_STYLES:
        raise BadInput(
            f"reasoning-style {name!r} is not known: use one of {', '.join(REASONING_STYLE_NAMES)}"
        )
    return REASONING_STYLES[name]
