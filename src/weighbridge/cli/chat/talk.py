"""A conversation in the terminal, and what lines that begin with / do to it. Nothing here reads, writes or waits."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from weighbridge.errors import BadInput
from weighbridge.knobs import check_choices, knob, knobs, settings_from

Messages = list[dict[str, Any]]

HELP = """\
/new             forget the conversation
/again           answer the last message once more
/undo            take back the last message and its answer
/system [TEXT]   set the system prompt, or show it
/set NAME VALUE  temperature, max_tokens or thoughts; without a value: show them
/model [NAME]    ask another model of this server, or show the one that is asked
/save FILE       write the conversation to a JSON file
/help            this
/bye             leave; Ctrl-D does too
A line that ends with \\ goes on in the next one. Ctrl-C stops an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSettings:
    """How answers are made."""

    system: str | None = knob(None, "A system prompt.")
    temperature: float = knob(0.7, min=0.0, max=2.0)
    max_tokens: int = knob(1024, "Longest answer, in tokens.", min=1)
    thoughts: str = knob(
        "dim", "What a model thinks before it answers: dim, or hide.", choices=("dim", "hide")
    )

    def __post_init__(self) -> None:
        check_choices(self)


class Then(Enum):
    """What is to happen after a line."""

    READ = "read"  # the next line
    ANSWER = "answer"  # the conversation is to be answered
    SAVE = "save"  # it is to be written to the file that is told
    LEAVE = "leave"


@dataclass(frozen=True, slots=True)
class LineTaken:
    """What is to happen, and what is to be said before."""

    then: Then
    told: str = ""


@dataclass(slots=True)
class Talk:
    """What was said, how answers are made, and by which model; None: the first that the server lists."""

    settings: ChatSettings
    model: str | None = None
    said: Messages = field(default_factory=list)

    @property
    def messages(self) -> Messages:
        """The conversation with its system prompt."""
        system = self.settings.system
        return [*([{"role": "system", "content": system}] if system else []), *self.said]

    def take(self, line: str) -> LineTaken:
        """A line that somebody wrote. Raises BadInput for a command that is wrong."""
        if not line.strip():
            return LineTaken(Then.READ)
        name, _, rest = line.strip()[1:].partition(" ")
        if not line.startswith("/") or not (name.isalpha() or name == "?"):  # /usr/bin/env is a message
            self.said.append({"role": "user", "content": line})
            return LineTaken(Then.ANSWER)
        return self._command(name, rest.strip())

    def answered(self, text: str) -> None:
        self.said.append({"role": "assistant", "content": text})

    def unanswered(self) -> None:
        """The last message could not be answered; the next one must not carry it."""
        if self.said and self.said[-1]["role"] == "user":
            self.said.pop()

    def _command(self, name: str, rest: str) -> LineTaken:
        match name:
            case "bye" | "quit" | "exit":
                return LineTaken(Then.LEAVE)
            case "help" | "?":
                return LineTaken(Then.READ, HELP)
            case "new":
                self.said.clear()
                return LineTaken(Then.READ)
            case "undo":
                self._take_back("assistant")
                self._take_back("user")
                return LineTaken(Then.READ, f"{len(self.said)} messages are left")
            case "again":
                self._take_back("assistant")
                if not self.said:
                    raise BadInput("there is nothing to answer again")
                return LineTaken(Then.ANSWER)
            case "save":
                if not rest:
                    raise BadInput("/save needs the name of a file")
                return LineTaken(Then.SAVE, rest)
            case "system" | "model" | "set":
                return LineTaken(Then.READ, self._setting(name, rest))
        raise BadInput(f"/{name} is no command; /help lists them")

    def _take_back(self, role: str) -> None:
        if self.said and self.said[-1]["role"] == role:
            self.said.pop()

    def _setting(self, name: str, rest: str) -> str:
        if name == "system":
            if rest:
                self.settings = replace(self.settings, system=rest)
            return self.settings.system or "there is no system prompt"
        if name == "model":
            self.model = rest or self.model
            return self.model or "the first that the server lists"
        key, _, value = rest.replace("=", " ").partition(" ")
        if value:
            self.settings = _changed(self.settings, key, value.strip())
        elif key:
            raise BadInput(f"/set {key} needs a value")
        return ", ".join(f"{one.key} {getattr(self.settings, one.name)}" for one in knobs(ChatSettings)[1:])


def _changed(settings: ChatSettings, key: str, value: str) -> ChatSettings:
    """Raises BadInput for a name that is not known, or a value that is not in its bounds."""
    known = {one.key: one for one in knobs(ChatSettings)[1:]}
    if key not in known:
        raise BadInput(f"{key!r} cannot be set: {', '.join(known)} can")
    one = known[key]
    try:
        read = one.kind(value)
    except ValueError:
        raise BadInput(f"{key} must be a number, not {value!r}") from None
    for side, bound in (("at least", one.min), ("at most", one.max)):
        if bound is not None and (read < bound if side == "at least" else read > bound):
            raise BadInput(f"{key} must be {side} {bound:g}, not {read:g}")
    now = {each.key: getattr(settings, each.name) for each in knobs(ChatSettings)}
    return settings_from(ChatSettings, now | {key: read})
