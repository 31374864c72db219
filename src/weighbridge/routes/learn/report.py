"""Tickets in words, and many of them as a table or a page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from weighbridge.pages.html import page, table, tag

Ticket = Mapping[str, Any]


def explain(ticket: Ticket) -> str:
    """One ticket in words."""
    side = {"edge": "on this machine", "cloud": "in the cloud"}.get(ticket["placement"], ticket["placement"])
    failed = ticket.get("error")
    lines = [f"Request {ticket['id']} of tenant {ticket['tenant']} to the route {ticket['model']}."]
    lines.append(f"It failed: {failed}." if failed else f"It was answered {side} by {ticket['replica']}.")
    lines.append("Decided, in this order:")
    lines += [f"  {number}. {text}" for number, text in enumerate(ticket["decisions"], 1)]
    if ticket.get("degraded"):
        lines.append("It was not answered by the side that was wanted (degraded).")
    left = ticket.get("left_machine") or []
    lines.append("What left the machine: " + ("; ".join(left) if left else "nothing") + ".")
    estimated = " (counted here, the side did not say)" if ticket.get("cost_estimated") else ""
    lines.append(f"It cost {ticket.get('cost_usd', 0.0):.6f} USD{estimated}.")
    if ticket.get("counterfactual_usd") is not None:
        lines.append(f"The other side would have cost {ticket['counterfactual_usd']:.6f} USD.")
    return "\n".join(lines)


def summarise(tickets: Sequence[Ticket], shadows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Per route, and quality as shadow evaluation judged it. Money in US dollars."""
    routes: dict[str, list[Ticket]] = defaultdict(list)
    for ticket in tickets:
        routes[ticket["model"]].append(ticket)
    verdicts = [one["edge_quality"] for one in shadows if one.get("edge_quality") is not None]
    return {
        "routes": [_route(name, routes[name]) for name in sorted(routes)],
        "quality": {
            "judged": len(verdicts),
            "edge_stands": float(np.mean(verdicts)) if verdicts else None,
        },
    }


def _route(name: str, tickets: Sequence[Ticket]) -> dict[str, Any]:
    answered = [one for one in tickets if not one.get("error")]
    local = [one for one in answered if one["placement"] == "edge"]
    cost = sum(one.get("cost_usd", 0.0) for one in tickets)
    saved = sum((one.get("counterfactual_usd") or 0.0) - one.get("cost_usd", 0.0) for one in local)
    return {
        "route": name,
        "requests": len(tickets),
        "failed": len(tickets) - len(answered),
        "share_local": len(local) / len(answered) if answered else 0.0,
        "degraded": sum(bool(one.get("degraded")) for one in tickets),
        "cost_usd": cost,
        "saved_usd": saved,
        "edge_p50_ms": _median(one.get("e2e_ms") for one in local),
        "cloud_p50_ms": _median(one.get("e2e_ms") for one in answered if one["placement"] == "cloud"),
    }


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """What `summarise`, drift and suggestions say, a line each; none for what is not known."""
    lines, quality = [], summary["quality"]
    if quality["judged"]:
        stood = f"the local answer stood in {quality['edge_stands']:.1%}"
        lines.append(f"Shadow evaluation: {quality['judged']} judged, {stood}.")
    lines += [_suggestion(one) for one in summary.get("suggestions") or ()]
    found = summary.get("drift")
    if found is not None:
        lines += [f"Drift: {text}." for text in found["findings"]]
        if not found["findings"]:
            seen = f"{found['requests']} scores and {found['judged']} judged answers"
            enough = found["stability"] is not None or found["edge"] is not None
            lines.append(f"Drift: none in {seen}." if enough else f"Drift: {seen} are too few to tell.")
    return lines


def _suggestion(one: Mapping[str, Any]) -> str:
    name = "Pre-router threshold" if one["kind"] == "score" else "Cascade threshold"
    if not one["worth_changing"]:
        return f"{name}: {one['present']:g} is as good as any ({one['judged']} judged)."
    low, high = one["interval"]
    return (
        f"{name}: {one['threshold']:g} instead of {one['present']:g} sends {one['cloud_share']:.1%} to the cloud, "
        f"quality {one['quality']:.1%}, gains {one['gain']:.6f} USD per request ({low:.6f} to {high:.6f})."
    )


def as_html(summary: Mapping[str, Any]) -> str:
    """One page without scripts or anything fetched."""
    columns = list(summary["routes"][0]) if summary["routes"] else []
    rows = ([_shown(row[name]) for name in columns] for row in summary["routes"])
    said = sentences(summary) or ["No shadow evaluations."]
    return page(
        "Edge and cloud",
        tag("h1", "Edge and cloud"),
        table([name.replace("_", " ") for name in columns], rows),
        *(tag("p", line) for line in said),
    )


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
