"""What an operator can set on the HTTP floor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weighbridge.fleet.config.keeping import KeepSettings
from weighbridge.knobs import check_choices, knob
from weighbridge.secret import Secret
from weighbridge.server.styles.choice import AUTO, REASONING_STYLE_NAMES, TOOL_STYLE_NAMES
from weighbridge.wire.keys import ApiKey, TenantPriority, parse_key, parse_tenant_priority


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenSettings(KeepSettings):
    """Where a server listens, and by whom it may be asked."""

    host: str = knob("127.0.0.1", "Address to listen on.")
    port: int = knob(8080, "Port; 0 takes a free one.", min=0, max=65535)
    handover: Path | None = knob(
        None,
        "Unix socket at which a process that is started with --takeover asks for this one's place.",
        is_made=True,
    )
    takeover: bool = knob(
        False,
        "Take the listening socket of the process behind --handover, which finishes once this one is ready.",
        flag="--takeover",
    )
    api_keys: tuple[ApiKey, ...] = knob(  # none: everybody may call, and names its own tenant
        (),
        "KEY or TENANT=KEY; may repeat.",
        flag="--api-key",
        parse=parse_key,
        environment="WEIGHBRIDGE_API_KEYS",
    )
    tenant_priorities: tuple[TenantPriority, ...] = knob(
        (),
        "TENANT=CLASS: the most urgent class a tenant may ask for (lower is more urgent), 0 unless said; may repeat.",
        flag="--tenant-priority",
        parse=parse_tenant_priority,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings(ListenSettings):
    """Limits and behaviour of the HTTP server. Sizes in bytes, times in seconds."""

    admin_key: Secret | None = knob(
        None,
        "The operator's own key, or its hash: with keys on, for what changes a server for all.",
        parse=Secret,
        environment="WEIGHBRIDGE_ADMIN_KEY",
    )
    max_body: int = knob(8 << 20, "Largest request body.", unit="bytes")
    tool_style: str = knob(
        AUTO,
        f"How the model writes tool calls, by its chat template unless named: {', '.join(TOOL_STYLE_NAMES)}.",
        choices=TOOL_STYLE_NAMES,
    )
    reasoning_style: str = knob(
        AUTO,
        f"How the model marks its thoughts, shown as reasoning_content: {', '.join(REASONING_STYLE_NAMES)}.",
        choices=REASONING_STYLE_NAMES,
    )
    keep_streams: bool = knob(
        False,
        "Streams survive their client for a minute, also where it does not ask for that.",
        flag="--keep-streams",
    )
    prefix_care: bool = knob(
        False,
        "Tickets say where a prompt left the one before it, with a few tokens of both.",
        flag="--prefix-care",
    )
    max_choices: int = 16
    max_inputs: int = 2048  # of one embeddings request; OpenAI's own limit
    max_logprobs: int = 20
    default_max_tokens: int = knob(1024, "Longest answer where a client does not say, in tokens.", min=1)
    drain_timeout: float = knob(30.0, "Seconds to finish accepted requests on SIGTERM.", min=0.0)
    tickets: Path | None = knob(None, "Append every ticket to this JSONL file.")
    json_logs: bool = knob(False, "Log JSON lines.", flag="--json-logs")

    def __post_init__(self) -> None:
        check_choices(self)
