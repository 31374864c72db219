"""How a replica is chosen: one small class per policy, by name. Pure; randomness is given."""

from __future__ import annotations

from collections.abc import Callable

from weighbridge.errors import BadInput
from weighbridge.fleet.api import Randomness
from weighbridge.fleet.policies.affinity import PrefixAffinity
from weighbridge.fleet.policies.counting import LeastRequests, PowerOfTwo, Random, RoundRobin
from weighbridge.fleet.policies.policy import Policy
from weighbridge.fleet.policies.tokens import LeastTokens, NewPrefillTimesBatch
from weighbridge.fleet.policies.weigh import Weigh

__all__ = ["DEFAULT_POLICY", "POLICIES", "make_policy"]

DEFAULT_POLICY = "weigh"

POLICIES: dict[str, Callable[[Randomness], Policy]] = {
    "round_robin": RoundRobin,
    "random": Random,
    "least_requests": LeastRequests,
    "power_of_two": PowerOfTwo,
    "least_tokens": LeastTokens,
    "prefix_affinity": PrefixAffinity,
    "new_prefill_x_batch": NewPrefillTimesBatch,
    "weigh": Weigh,
}


def make_policy(name: str, rng: Randomness) -> Policy:
    """The policy called `name`, drawing from `rng`. Raises BadInput for a name that is not one."""
    if name not in POLICIES:
        raise BadInput(f"{name!r} is not a policy; choose from {', '.join(POLICIES)}", param="policy")
    return POLICIES[name](rng)
