"""Messages with words for whoever runs a server, and what others are told in their place."""

from __future__ import annotations

import copy
import pickle

import pytest

from weighbridge.errors import Inside, WeighbridgeError, plainly, some_of, wording, words_of
from weighbridge.wire.errors import LONGEST_MESSAGE, ApiError, bounded, told_plainly

WORDS = Inside("m/0: http://10.0.0.5 is out of reach", "m/0 is out of reach")


@pytest.mark.parametrize("is_outside", [True, False])
def test_what_a_client_is_told_depends_on_who_it_is(is_outside: bool) -> None:
    token = told_plainly.set(is_outside)
    try:
        error = ApiError(502, wording("no replica answered: {}; {}", WeighbridgeError(WORDS), "try again"))
    finally:
        told_plainly.reset(token)
    assert ("10.0.0.5" in str(error)) is not is_outside
    assert "m/0" in str(error)
    assert str(error).endswith("is out of reach; try again")


def test_words_are_put_together_for_both() -> None:
    whole = some_of([WORDS, "another", WORDS], 2, "; ")
    assert whole == "m/0: http://10.0.0.5 is out of reach; another; and 1 more"
    assert plainly(whole) == "m/0 is out of reach; another; and 1 more"
    assert type(wording("{} of {}", 1, "two")) is str
    assert plainly("what anybody may read") == "what anybody may read"


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_they_are_kept_by_copies(again: object) -> None:
    assert callable(again)
    error = again(WeighbridgeError(WORDS))
    assert (str(error), plainly(words_of(error))) == (str(WORDS), WORDS.plainly)


def test_a_long_message_keeps_its_ends_and_what_is_for_whom() -> None:
    words = "the model '" + "m" * 100_000 + "' does not exist; this server has 'a'"
    assert len(bounded(words)) == LONGEST_MESSAGE
    assert bounded(words).startswith("the model 'mmm")
    assert bounded(words).endswith("' does not exist; this server has 'a'")
    both = bounded(Inside(words, f"plainly, {words}"))
    assert (len(both), len(plainly(both))) == (LONGEST_MESSAGE, LONGEST_MESSAGE)
    assert plainly(both).startswith("plainly, ")
    assert bounded(WORDS) == WORDS
    assert plainly(bounded(WORDS)) == "m/0 is out of reach"
