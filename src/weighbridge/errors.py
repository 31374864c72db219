"""The errors that reach a person. Each message says what was wrong and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence


class Inside(str):
    """Words for whoever runs a server: they repeat what a process, a file or a server behind it said.

    Others are told `plainly`. An error keeps both where its message is one of these; `wording` puts them together.
    """

    plainly: str

    def __new__(cls, words: str, plainly: str) -> Inside:
        """Keep both; where `words` are such words themselves, theirs for others are not used."""
        made = super().__new__(cls, words)
        made.plainly = plainly
        return made

    def __reduce__(self) -> tuple[type[Inside], tuple[str, str]]:
        """What makes it again: it is copied, and sent between processes."""
        return Inside, (str(self), self.plainly)


class WeighbridgeError(Exception):
    """Base of every error raised on purpose; the command line prints it and exits 1."""


class BadInput(WeighbridgeError):
    """The caller asked for something malformed or unsupported (command line: exit 2; HTTP: `status`)."""

    status = 400
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class UnsupportedModel(BadInput):
    """An architecture, tensor type or feature of a checkpoint that the engine cannot run."""


class UnknownModel(BadInput):
    """No model of that name is behind this endpoint."""

    status = 404
    code = "model_not_found"


class AdaptersFixed(BadInput):
    """The operator lets no adapters be loaded while the server runs, or not from there."""

    status = 403
    code = "adapters_fixed"


class AdapterBusy(BadInput):
    """An adapter of that name is in use, or every place for adapters is."""

    status = 409
    code = "adapter_busy"


def words_of(error: BaseException) -> str:
    """What an error says, as `Inside` where it has something for whoever runs the server."""
    said = error.args[0] if error.args else ""
    return said if isinstance(said, Inside) else str(error)


def plainly(words: str) -> str:
    """What those are told who do not run the server."""
    return words.plainly if isinstance(words, Inside) else words


def wording(form: str, *parts: object) -> str:
    """Put words and errors into the places (`{}`) of `form`; the whole is `Inside` where one of them is."""
    words = [words_of(one) if isinstance(one, BaseException) else one for one in parts]
    whole = form.format(*words)
    if not any(isinstance(one, Inside) for one in words):
        return whole
    return Inside(whole, form.format(*[plainly(one) if isinstance(one, str) else one for one in words]))


def some_of(names: Sequence[str], most: int = 5, joint: str = ", ") -> str:
    """The first of `names` and how many more there are: for messages that should stay readable."""
    more = len(names) - most
    shown = names if more <= 0 else [*names[:most], f"and {more} more"]
    return wording(joint.join(["{}"] * len(shown)), *shown)


def said(error: BaseException, most: int = 300) -> str:
    """What a library says of a fault, as a message can hold it: on one line, in `most` characters at the most.

    Such texts quote the file that is at fault: its line ends, its control characters, its megabytes.
    """
    words = " ".join(str(error)[: 4 * most].split())
    words = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in words[: most + 1])
    return words if len(words) <= most else words[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


class Refused(WeighbridgeError):
    """A well-formed request that this replica will not run. `status` is the HTTP status to answer with."""

    status = 503
    kind = "server_error"
    code: str | None = "refused"
    param: str | None = None

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after  # seconds, when trying again later makes sense


class NeverFits(Refused):
    """The request can never fit the context window or the KV pool, however long it waits."""

    status = 400
    kind = "invalid_request_error"
    code = "context_length_exceeded"


class QueueFull(Refused):
    """The bounded queue is full; `retry_after` comes from the queue's weight."""

    status = 429
    kind = "rate_limit_error"
    code = "queue_full"


class RateLimited(Refused):
    """A tenant has used up one of its limits; `limit` names it, `retry_after` is when it will have room."""

    status = 429
    kind = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, limit: str, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.limit = limit


class Draining(Refused):
    """The server is finishing what it accepted and takes nothing new."""

    status = 503
    code = "draining"


class DeadlineMissed(Refused):
    """The request's deadline has passed, or can no longer be met."""

    status = 504
    kind = "timeout_error"
    code = "deadline_missed"
