"""Why a door may answer differently: ten reasons at most, each a sentence that a user would accept."""

REASONS = {
    "one place": "A single server and a plain model have one place to answer in: what must go to a cloud is refused.",
    "chats": "A route answers chats: other endpoints are refused for its name, and say so.",
    "several models": "A door with several models cannot guess which one is meant; one with a single model can.",
    "asked a replica": (
        "A gateway passes on what it does not read itself: by the time a replica refuses, the request has a ticket. "
        "The server that reads it refuses it before."
    ),
    "behind all": "A speculative request has a class of its own in the engine's ticket, not yet in a gateway's.",
    "a ticket each": "An engine writes a ticket for each prompt of a completion; a gateway, one for all of them.",
    "says more": "Where there are routes, health, load and the models tell of them too; a server alone of its model.",
    "short words": (
        "A key on the command line may have no tenant or limits and never expires; a file says all of each key."
    ),
    "room": "A route that knows a place's context does not ask it for more tokens than fit; a server cuts the answer.",
    "two places": "A route may have answered from its second choice, and says so in `x-weighbridge-degraded`.",
}
MOST = 10

#: Headers that only some doors have: the reason, and where.
HEADERS = {
    "x-weighbridge-degraded": ("two places", ("route", "routes")),
    **{
        f"x-ratelimit-{what}-{kind}": ("short words", ("gateway", "route", "routes"))
        for what in ("limit", "remaining", "reset")
        for kind in ("requests", "tokens")
    },
}
#: Of an error that names no ticket at some door: what tells whom was asked.
OF_REFUSALS = (
    "asked a replica",
    frozenset(
        ["x-weighbridge-cost", "x-weighbridge-placement", "x-weighbridge-replica", "x-weighbridge-ticket"]
    ),
)
