"""Fields that constrain an answer and come from other servers than OpenAI's: none of them is left out in silence.

Those that our engine keeps are fields of `Common`. The rest is refused by name, unless its value means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from weighbridge.wire.errors import ApiError

#: What a field must be to mean nothing, and what to use instead, where there is something.
_NOTHING: tuple[Any, ...] = (None, False, 0, 0.0, "", [], {})
_ONE: tuple[Any, ...] = (None, 1, 1.0)

#: Fields of vLLM, SGLang, llama-server, Ollama and TGI that would change which tokens come, or how many.
UNKEPT: Mapping[str, tuple[tuple[Any, ...], str]] = {
    **dict.fromkeys(("typical_p", "typ_p", "tfs_z"), (_ONE, "use top_p or min_p")),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff", "top_a"), (_NOTHING, "use top_p or min_p")),
    **dict.fromkeys(("top_n_sigma",), ((*_NOTHING, -1, -1.0), "use top_p or min_p")),
    **dict.fromkeys(("mirostat", "xtc_probability", "dry_multiplier", "dynatemp_range"), (_NOTHING, "")),
    **dict.fromkeys(("samplers", "logits_processors", "custom_logit_processor"), (_NOTHING, "")),
    **dict.fromkeys(("repeat_penalty",), (_ONE, "use repetition_penalty")),
    **dict.fromkeys(("length_penalty",), (_ONE, "")),
    **dict.fromkeys(("use_beam_search", "early_stopping", "num_beams"), ((*_NOTHING, 1), "use n")),
    **dict.fromkeys(("n_predict", "max_new_tokens"), ((None, -1), "use max_tokens")),
    **dict.fromkeys(("min_new_tokens", "min_length"), (_NOTHING, "use min_tokens")),
    **dict.fromkeys(("stop_regex", "structural_tag", "grammar_lazy", "grammar_triggers"), (_NOTHING, "")),
    **dict.fromkeys(("truncate_prompt_tokens", "thinking_token_budget", "reasoning_budget"), ((None,), "")),
    **dict.fromkeys(("chat_template",), (_NOTHING, "start the server with --chat-template")),
    **dict.fromkeys(("documents",), (_NOTHING, "put them into messages")),
    **dict.fromkeys(("no_stop_trim",), (_NOTHING, "use include_stop_str_in_output")),
    **dict.fromkeys(("functions",), (_NOTHING, "use tools")),
    **dict.fromkeys(("function_call",), ((*_NOTHING, "none", "auto"), "use tool_choice")),
    **dict.fromkeys(("skip_special_tokens",), ((None, True), "")),
    **dict.fromkeys(("audio",), (_NOTHING, "answers are texts")),
    **dict.fromkeys(("modalities",), ((None, [], ["text"]), "answers are texts")),
    **dict.fromkeys(("lora_path", "lora"), (_NOTHING, "")),
}


def refuse_unkept(fields: Mapping[str, msgspec.Raw]) -> None:
    """Raise ApiError for a field that would constrain the answer and that nothing here keeps."""
    for name in UNKEPT.keys() & fields.keys():
        neutral, remedy = UNKEPT[name]
        if not _is_one_of(msgspec.json.decode(fields[name]), neutral):
            rest = f"; {remedy}" if remedy else "; leave it out"
            raise ApiError(400, f"{name}: is not supported here{rest}", param=name)


def _is_one_of(value: Any, neutral: tuple[Any, ...]) -> bool:
    return any(type(value) is type(one) and value == one for one in neutral)


# -- structured output in everybody's words ------------------------------------------------------------------

#: Constraints on the whole output beside `response_format`: the field, and what our engine calls its kind.
GUIDES = {
    "guided_json": "json",
    "json_schema": "json",
    "guided_regex": "regex",
    "regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "grammar": "grammar",
    "ebnf": "grammar",
}
