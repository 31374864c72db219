"""Which fields of a chat may leave this machine, and which go to our own engines at most."""

from __future__ import annotations

#: Top-level fields that may go to any place. What is not named here (user, metadata, store, ...) stays: it is of
#: no use to a model, and may name people.
_FORWARDED = (
    "messages tools tool_choice parallel_tool_calls response_format stop temperature top_p top_k min_p "
    "presence_penalty frequency_penalty repetition_penalty seed max_tokens max_completion_tokens n "
    "logprobs top_logprobs reasoning_effort"
)
FORWARDED = frozenset(_FORWARDED.split())
#: Further fields that our own engines understand; they never cross the boundary.
_EDGE_ONLY = (
    "logit_bias stop_token_ids ignore_eos min_tokens structured_outputs chat_template_kwargs "
    "add_generation_prompt"
)
EDGE_ONLY = frozenset(_EDGE_ONLY.split())
