"""Messages with words for whoever runs a server, and what others are told in their place."""

from __future__ import annotations

import copy
import pickle

import pytest

from weighbridge.errors import Inside, WeighbridgeError, plainly, some_of, wording, words_of
from weighbridge.wire.errors import ApiError, told_plainly

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
