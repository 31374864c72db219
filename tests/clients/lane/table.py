"""Which clients there are, and which versions of them: the one place where a version is named.

A newer version is a change here; `python -m tests.clients.lane.run --write` then renews the table of the guide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Client:
    """A client as it is installed and driven. `packages`: of the Python or the npm index, pinned."""

    title: str
    driver: str
    packages: tuple[str, ...]
    words: tuple[str, ...] = ()  # of the driver
    speaks: str = "chat"

    @property
    def is_node(self) -> bool:
        return self.driver.endswith(".mjs")


_AI_SDK = (
    "ai@7.0.173",
    "@ai-sdk/openai-compatible@3.0.92",
    "@ai-sdk/openai@4.0.118",
    "@ai-sdk/anthropic@4.0.105",
)
_OPENAI = "openai==3.51.0"

#: By the name under which the lane is asked for them.
CLIENTS: Mapping[str, Client] = MappingProxyType(
    {
        "openai": Client("openai (Python)", "drive_openai.py", (_OPENAI,)),
        "openai-1": Client("openai (Python)", "drive_openai.py", ("openai==1.109.1",)),
        "openai-responses": Client(
            "openai (Python)", "drive_openai_responses.py", (_OPENAI,), speaks="Responses"
        ),
        "anthropic": Client(
            "anthropic (Python)", "drive_anthropic.py", ("anthropic==2.14.0",), speaks="Messages"
        ),
        "ollama": Client("ollama (Python)", "drive_ollama.py", ("ollama==0.6.3",), speaks="Ollama"),
        "langchain": Client(
            "LangChain", "drive_langchain.py", ("langchain==1.5.0", "langchain-openai==1.7.4", _OPENAI)
        ),
        "llama-index": Client(
            "LlamaIndex",
            "drive_llama_index.py",
            ("llama-index-core==0.14.25", "llama-index-llms-openai-like==0.8.1"),
        ),
        "pydantic-ai": Client(
            "pydantic-ai", "drive_pydantic_ai.py", ("pydantic-ai-slim[openai]==2.68.0", _OPENAI)
        ),
        "openai-agents": Client(
            "openai-agents", "drive_openai_agents.py", ("openai-agents==0.24.0", _OPENAI), speaks="Responses"
        ),
        "instructor": Client("instructor", "drive_instructor.py", ("instructor==1.17.0",)),
        "llm": Client("llm", "drive_llm.py", ("llm==0.36",)),
        "openai-node": Client("openai (Node)", "drive_openai_node.mjs", ("openai@7.55.0",)),
        "ai-sdk": Client("AI SDK, openai-compatible", "drive_ai_sdk.mjs", _AI_SDK, ("compatible",)),
        "ai-sdk-openai": Client("AI SDK, openai", "drive_ai_sdk.mjs", _AI_SDK, ("openai",), "Responses"),
        "ai-sdk-anthropic": Client(
            "AI SDK, anthropic", "drive_ai_sdk.mjs", _AI_SDK, ("anthropic",), "Messages"
        ),
        "aiperf": Client("aiperf", "drive_aiperf.py", ("aiperf==0.13.0",)),
        "lm-eval": Client("lm-eval", "drive_lm_eval.py", ("lm-eval[api]==0.4.13",)),
    }
)

#: What the other proofs drive, by the name of their program: more is asked of these than every client is.
PROGRAMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "anthropic_sdk": CLIENTS["anthropic"].packages,
        "ollama_sdk": CLIENTS["ollama"].packages,
        "openai_decisions": ("openai==3.57.0",),
        "run_openai_agents": ("openai-agents==0.24.0", "openai==3.57.0"),
        "run_pydantic_ai": ("pydantic-ai-slim[openai]==2.68.0", "openai==3.57.0"),
    }
)
#: Coding agents, of the npm index.
AGENTS: Mapping[str, str] = MappingProxyType(
    {"codex": "@openai/codex@0.171.0", "claude": "@anthropic-ai/claude-code@2.1.197"}
)

#: What calls /openapi.json by its word; it is no client, and has a run of its own.
SCHEMATHESIS = "schemathesis==4.32.5"
