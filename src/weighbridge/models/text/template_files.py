"""Chat templates that an operator names instead of the model's own: files, and a few that are known by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from weighbridge.errors import BadInput
from weighbridge.models.files.hf_config import read_text

_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token or '' }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_MISTRAL = (
    "{{ bos_token or '' }}{% set ns = namespace(system='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set ns.system = message['content'] ~ '\n\n' %}"
    "{% elif message['role'] == 'user' %}[INST] {{ ns.system }}{{ message['content'] }} [/INST]"
    "{% set ns.system = '' %}"
    "{% else %} {{ message['content'] }}{{ eos_token or '' }}{% endif %}{% endfor %}"
)
_GEMMA = (
    "{{ bos_token or '' }}{% set ns = namespace(system='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set ns.system = message['content'] ~ '\n\n' %}{% else %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else 'user' }}\n"
    "{{ ns.system }}{{ message['content'] | trim }}<end_of_turn>\n{% set ns.system = '' %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_ZEPHYR = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token or '' }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_PLAIN = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)

#: What `--chat-template` knows by name.
KNOWN: Mapping[str, str] = {
    "chatml": _CHATML,
    "gemma": _GEMMA,
    "llama3": _LLAMA3,
    "mistral": _MISTRAL,
    "plain": _PLAIN,
    "zephyr": _ZEPHYR,
}


def named_template(name: str) -> str:
    """Return the text of a template, by its name or from its file. Raises BadInput."""
    if name in KNOWN:
        return KNOWN[name]
    try:
        return read_text(Path(name))
    except FileNotFoundError:
        known = ", ".join(KNOWN)
        raise BadInput(f"--chat-template {name} is neither a file nor one of {known}") from None
