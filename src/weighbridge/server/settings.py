"""What an operator can set on the HTTP floor."""

from __future__ import annotations

from dataclasses import dataclass

from weighbridge.wire.keys import ApiKey


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Limits and behaviour of the HTTP server. Sizes in bytes, times in seconds."""

    api_keys: tuple[ApiKey, ...] = ()  # none: everybody may call, and names its own tenant
    max_body: int = 8 << 20
    max_choices: int = 16
    max_inputs: int = 2048  # of one embeddings request; OpenAI's own limit
    max_logprobs: int = 20
    default_max_tokens: int = 1024
    drain_timeout: float = 30.0
    json_logs: bool = False
