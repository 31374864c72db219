"""One request as it goes through the house: what is asked, by whom, and the client's own bytes for all the rest."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from os import urandom
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from weighbridge.ticket.record import Ticket, prompt_hash
from weighbridge.ticket.trace import Trace

#: Values of a request by their common names ("messages", "prompt", "tools", "temperature", ...), as they were written.
Fields = dict[str, msgspec.Raw]

#: Characters of a name that a client chooses: tenant, route, session.
LONGEST_NAME = 200
#: And of a salt.
LONGEST_SALT = 1024
#: Labels of one request.
MAX_LABELS = 32

#: What stands for the prompt where texts are scored.
_QUERIES = ("query", "queries", "text_1")

PlacementWord = Literal["auto", "only_edge", "prefer_edge", "prefer_cloud", "only_cloud"]
Name = Annotated[str, Meta(max_length=LONGEST_NAME)]

_encode = msgspec.json.encode


#: Kinds of characters that nobody sees, and letters and marks among the others that show nothing.
_UNSEEN = frozenset(("Cc", "Cf", "Cn", "Co", "Cs"))
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0") | frozenset(
    map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)))
)


def folded(label: str) -> str:
    """A label as labels are compared: neither case, nor width, nor white space around it, nor what nobody sees makes it
    another one. Nor does the case of Turkish, in which i has a dot as a capital and I none as a small letter."""
    text = unicodedata.normalize("NFKC", label).strip().casefold()
    if text.isascii() and text.isprintable():
        return text
    seen = [one for one in text if unicodedata.category(one) not in _UNSEEN and one not in _BLANK]
    text = unicodedata.normalize("NFKC", "".join(seen)).strip().casefold()
    return text.replace("i\N{COMBINING DOT ABOVE}", "i").replace("\N{LATIN SMALL LETTER DOTLESS I}", "i")


def new_id() -> str:
    """A name for a request that nobody can guess: 128 random bits."""
    return urandom(16).hex()


class Placement(StrEnum):
    """Where a client wants its request answered; AUTO leaves it to the policy."""

    AUTO = "auto"
    ONLY_EDGE = "only_edge"
    PREFER_EDGE = "prefer_edge"
    PREFER_CLOUD = "prefer_cloud"
    ONLY_CLOUD = "only_cloud"


class Extension(Struct, forbid_unknown_fields=True):
    """The body key `weighbridge`. An unknown field is an error: a misspelt restriction must not be ignored."""

    tenant: Annotated[str, Meta(min_length=1, max_length=LONGEST_NAME)] | None = None
    priority: int | None = None
    deadline_ms: Annotated[float, Meta(gt=0.0)] | None = None
    placement: PlacementWord | None = None
    labels: Annotated[list[str], Meta(max_length=MAX_LABELS)] | None = None
    max_usd: Annotated[float, Meta(ge=0.0)] | None = None
    speculative: bool | None = None
    route: Name | None = None
    session: Name | None = None
    resume: bool | None = None


@dataclass(slots=True)
class Ask:
    """What came in at the door, whatever protocol it was written in.

    A protocol fills in what is asked; `fields` keeps every value of the body, known or not. The door fills in who asks.
    Times are seconds of the server's clock, money is US dollars.
    """

    id: str
    path: str  # what is to be computed: "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/score", ...
    fields: Fields
    model: str  # the name the client used; empty: it named none
    tenant: str
    stream: bool = False
    wants_usage: bool = False  # the client asked for usage in its stream
    max_tokens: int | None = None
    choices: int = 1
    echoes: bool = False  # the answer begins with the prompt
    scores_prompt: bool = False  # how likely the prompt's tokens are is asked: no cache can tell
    priority: int = 0
    deadline: float | None = None
    deadline_ms: float | None = None  # the same, as the client put it
    route: str = ""
    session: str = ""
    resume: bool | None = None  # None: as the model is configured
    speculative: bool = False
    keep_alive: float | None = (
        None  # seconds for which it wants its model to stay loaded; None: it does not say
    )
    labels: frozenset[str] = frozenset()  # folded
    placement: Placement = Placement.AUTO
    max_usd: float | None = None
    anonymous: bool = False  # replicas are not told whose it is
    among: frozenset[str] | None = None  # replicas that it may go to, by name; None: any
    proposed_id: bool = False  # the client chose `id`
    headers: Mapping[str, str] = field(default_factory=dict)  # what goes on to the replica
    raw: bytes = b""  # the whole body, where it came in OpenAI's form
    extension: Extension | None = None  # the body's own word on how it is to be treated
    user: str | None = None  # who OpenAI's `user` says asks
    answer: bytes | None = None  # what its protocol answers by itself, where nothing is to be computed
    cache_salt: str = ""  # what is cached of a prompt is for requests of the same salt only
    off_disk: bool = False  # what it asks and what it is answered must not be written down
    notes: list[str] = field(default_factory=list)  # what was made of it at the door, for its ticket
    prompt_rules: dict[str, Any] | None = None  # what rules for prompts touched in it, as tickets have it
    trace: Trace | None = None  # where it is in a distributed trace; None: none is made
    sent: tuple[bytes, ...] = ()  # events of its answer that another gateway had sent: it goes on behind them
    own: Any = None  # the request as its protocol read it, for that protocol's encoder alone
    _prompt_hash: str = field(default="", init=False)

    def keep_apart(self, tenant: str) -> None:
        """Let nothing that is cached of this request's prompt show in the answers of other tenants than `tenant`."""
        self._prompt_hash = ""
        own = blake2b(tenant.encode("utf-8", "surrogatepass")).digest()
        self.cache_salt = blake2b(self.cache_salt.encode(), digest_size=16, key=own).hexdigest()

    def replace_fields(self, fields: Fields) -> None:
        """Ask with other values in the place of these."""
        self.fields = {**self.fields, **fields}
        self.raw = b""
        self._prompt_hash = ""

    def tell(self, ticket: Ticket) -> None:
        """Write on its ticket what was made of it at the door."""
        ticket.decisions.extend(self.notes)
        ticket.prompt_rules = self.prompt_rules

    @property
    def size(self) -> int:
        """About how many bytes there are to read of it."""
        return len(self.raw) or sum([len(raw) for raw in self.fields.values()])

    @property
    def prompt(self) -> msgspec.Raw | None:
        """The messages, prompt or input, as they were written."""
        return self.fields.get(self.prompt_field)

    @property
    def prompt_field(self) -> str:
        """What the field with the prompt is called."""
        if "messages" in self.fields:
            return "messages"
        if "prompt" in self.fields:
            return "prompt"
        return (
            "input"
            if "input" in self.fields
            else next((name for name in _QUERIES if name in self.fields), "input")
        )

    @property
    def prompt_hash(self) -> str:
        """The name of its prompt in tickets; worked out once, as that takes 1 ms a megabyte."""
        if not self._prompt_hash:
            self._prompt_hash = prompt_hash(bytes(self.prompt or b""), self.cache_salt)
        return self._prompt_hash

    def as_body(self) -> bytes:
        """The JSON object of all fields, as an engine in this process reads it."""
        return self.raw or _encode(self.fields)

    def body(
        self,
        model: str | None,
        extension: Mapping[str, Any] | None,
        *,
        ask_usage: bool = True,
        cache_salt: str = "",
    ) -> bytes:
        """The JSON for a replica: `model` as that server calls it (None: as the client did), our own key and a
        `cache_salt` only for those who know them, and for a stream the wish for usage, which settles what it really
        weighed."""
        fields = dict(self.fields)
        fields.pop("weighbridge", None)
        fields.pop("cache_salt", None)
        if extension is not None:
            fields["weighbridge"] = msgspec.Raw(_encode(extension))
        if cache_salt:
            fields["cache_salt"] = msgspec.Raw(_encode(cache_salt))
        if model is not None:
            fields["model"] = msgspec.Raw(_encode(model))
        if self.stream and ask_usage and not self.wants_usage:
            options = msgspec.json.decode(fields["stream_options"]) if "stream_options" in fields else None
            fields["stream_options"] = msgspec.Raw(_encode({**(options or {}), "include_usage": True}))
        return _encode(fields)
