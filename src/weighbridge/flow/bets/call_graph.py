"""The committed run as a graph of durations, which the gate's arithmetic and the reports work on."""

from __future__ import annotations

from collections.abc import Sequence

from weighbridge.flow.bets.gate import Node
from weighbridge.flow.hooks import CallView, Join


def nodes_of(calls: Sequence[CallView], final: Join | None) -> tuple[list[Node], dict[int, int]]:
    """Return the nodes in program order, and the position of each call by its number.

    Calls wait for their arguments, for effects before them, and for what the body had awaited; each await
    is a node of no duration. The last node is the end of the flow, which waits for `final`.
    """
    nodes: list[Node] = []
    position_of: dict[int, int] = {}
    joins: dict[int, int] = {}

    def place(join: Join | None) -> tuple[int, ...]:
        chain: list[Join] = []
        while join is not None and id(join) not in joins:
            chain.append(join)
            join = join.before
        before = () if join is None else (joins[id(join)],)
        for link in reversed(chain):
            awaited = position_of.get(link.call.number)
            after = before if awaited is None else (*before, awaited)
            joins[id(link)] = len(nodes)
            nodes.append(Node(0.0, after))
            before = (joins[id(link)],)
        return before

    for call in calls:
        before = place(call.frontier)
        deps = [position_of[dep.number] for dep in call.deps if dep.number in position_of]
        span = call.execution.span if call.execution is not None else None
        position_of[call.number] = len(nodes)
        seconds, usd = (span.seconds, span.usd) if span is not None else (0.0, 0.0)
        nodes.append(Node(seconds, (*before, *deps), call.step.writes, usd))
    nodes.append(Node(0.0, place(final)))
    return nodes, position_of
