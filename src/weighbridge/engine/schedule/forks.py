"""Further choices of one prompt (n > 1): they wait for the first to compute it, then share its blocks."""

from __future__ import annotations

from weighbridge.engine.request import Request, RequestState


class Forks:
    """Which requests wait for which other request's prompt."""

    def __init__(self) -> None:
        self._waiting: dict[Request, list[Request]] = {}

    def hold(self, request: Request) -> bool:
        """Whether `request` should wait because the one it forks is about to have the prompt computed."""
        parent = request.fork_of
        if parent is None or prompt_computed(parent) or parent.num_preemptions:
            return False
        if parent.state is RequestState.FINISHED:
            return False
        self._waiting.setdefault(parent, []).append(request)
        return True

    def discard(self, request: Request) -> None:
        """`request` waits no longer: it is gone."""
        if request.fork_of is not None and request in self._waiting.get(request.fork_of, ()):
            self._waiting[request.fork_of].remove(request)

    def release(self, parent: Request) -> list[Request]:
        """Who need not wait for `parent` any more: its prompt is there, or it will not come soon."""
        return self._waiting.pop(parent, [])

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))


def prompt_computed(request: Request) -> bool:
    """Whether the whole prompt of a running request is in its blocks, to be shared."""
    return request.state is RequestState.RUNNING and request.num_computed_tokens >= request.num_prompt_tokens
