"""How much longer a replica's prompts take than its step cost says, learned from the first tokens it sent.

A step cost gives the work of a prompt; how many iterations it is spread over is the engine's own rule (chunks kept
small for the sake of streams, rounded to blocks), and no engine tells it. So it is measured: while there is a line,

    stretch = predicted seconds of prefill that went by / predicted seconds of the prompts that got their first token

Little work says more about the iteration it fell into than about the pace: it is gathered until it fills one.
"""

from __future__ import annotations

#: Measurements remembered: each new one fades all earlier by 1/MEMORY.
MEMORY = 50.0
#: Full iterations that the step cost's own word weighs at the start.
PRIOR = 4.0
#: What a stretch may be: beyond, the step cost is wrong, or others are there.
LEAST, MOST = 0.5, 10.0


class PrefillPace:
    """`stretch`: seconds that one predicted second of prefill takes; 1 until something is measured.

    `measuring`: the line that there is tells of it.
    """

    __slots__ = ("_expected", "_passed", "_spent", "_work", "measuring", "stretch")

    def __init__(self) -> None:
        self.stretch = 1.0
        self._expected = self._spent = 0.0  # work done and what it took, faded
        self._work = self._passed = 0.0  # the same since the last measurement
        self.measuring = False

    def begin(self) -> None:
        """Begin a line: the first prompt was sent to a replica that had none to compute."""
        self._work = self._passed = 0.0
        self.measuring = True

    def disturb(self) -> None:
        """Learn nothing from this line: something else was in it, or left it half done."""
        self.measuring = False

    def passed(self, seconds: float) -> None:
        """Add the prefill that should have been done since the last call."""
        self._passed += seconds

    def first_token(self, work: float, full: float) -> None:
        """Learn from a prompt of `work` predicted seconds that is done; a full iteration computes `full`
        seconds of work."""
        self._work += work
        if not self.measuring or self._work < full or full <= 0.0:
            return
        if not self._spent:
            self._expected = self._spent = PRIOR * full
        fade = 1.0 - 1.0 / MEMORY
        self._expected = fade * self._expected + self._work
        self._spent = fade * self._spent + self._passed
        self._work = self._passed = 0.0
        self.stretch = min(max(self._spent / self._expected, LEAST), MOST)
