"""Who might serve a request that one replica refused, and what nobody can: the error that says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from weighbridge.errors import BadInput, some_of, wording
from weighbridge.fleet.abilities.ability import ENDPOINTS, NOTHING, Ability, Needs, in_words
from weighbridge.fleet.abilities.known import KnownAbilities

#: Replicas that one request may be refused by before the last refusal is its answer.
MOST_REFUSALS = 8
#: Abilities that a server may lack without a word, answering as if they had not been asked for: whoever is known to
#: have them is asked before those of whom nothing is known.
SILENTLY_LACKED: Needs = frozenset({Ability.VISION, Ability.AUDIO})


class NobodyCan(BadInput):
    """No replica of the model can do what the request needs; the message names what would."""

    code = "no_replica_can"


def nobody_can(
    model: str,
    needs: Needs,
    replicas: Iterable[tuple[str, KnownAbilities]],
    others: Callable[[Needs], Sequence[str]],
    now: float,
) -> NobodyCan:
    """The error for a request that each of `replicas` is known to be unable to serve.

    `others`: the names of models of which a replica is known to have what these lack.
    """
    reasons, lacked = [], NOTHING
    for name, known in replicas:
        lacking = known.lacking(needs, now)
        lacked |= lacking
        why = dict.fromkeys(known.why(one, now) for one in sorted(lacking))
        reasons.append(wording("{} lacks {} ({})", name, in_words(lacking), some_of(list(why), len(why))))
    return refused_by_all(model, lacked, reasons, others(lacked))


def refused_by_all(model: str, lacked: Needs, reasons: Sequence[str], others: Sequence[str]) -> NobodyCan:
    """The same, of replicas that said so one after another."""
    if others:
        remedy = f"ask for {some_of([repr(name) for name in others], joint=' or ')}, which can"
    else:
        flags = ", ".join(f"{one}: true" for one in Ability if one in lacked)
        remedy = f"add a replica that can, or, where one can all the same, write `abilities: {{{flags}}}` in its entry"
    message = wording(
        "no replica of {!r} can do what this request needs ({}): {}; {}",
        model,
        in_words(lacked),
        some_of(reasons, joint="; "),
        remedy,
    )
    return NobodyCan(message, param=_param(lacked))


def _param(lacked: Needs) -> str:
    """The field of the request that asks for it."""
    if not lacked.isdisjoint(ENDPOINTS.values()):
        return "model"
    names = {
        Ability.TOOLS: "tools",
        Ability.FORCED_TOOLS: "tools",
        Ability.SCHEMA: "response_format",
        Ability.LOGPROBS: "logprobs",
        Ability.VISION: "messages",
        Ability.AUDIO: "messages",
    }
    return next(names[one] for one in Ability if one in lacked)
