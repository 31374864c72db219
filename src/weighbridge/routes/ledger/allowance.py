"""What may be spent, by whom and within which time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from weighbridge.errors import BadInput
from weighbridge.fleet.limits.periods import zone_of
from weighbridge.routes.ledger.books import KEPT_HOURS

#: The tenant that stands for all who have no entry of their own.
ALL = "*"


class Per(StrEnum):
    """Within which time a budget is to last."""

    DAY = "day"
    MONTH = "month"
    WINDOW = "window"  # that rolls on with the hours


@dataclass(frozen=True, slots=True)
class Allowance:
    """US dollars per day or month of the budgets' zone, or per `hours` that have just passed. Raises BadInput."""

    usd: float
    per: Per = Per.DAY
    hours: int = 0

    def __post_init__(self) -> None:
        if self.per is Per.WINDOW and not 1 <= self.hours <= KEPT_HOURS:
            raise BadInput(f"a window has 1 to {KEPT_HOURS} hours, not {self.hours}", param="window_hours")

    @property
    def name(self) -> str:
        """How a refusal calls it."""
        return {Per.DAY: "daily", Per.MONTH: "monthly", Per.WINDOW: f"{self.hours}-hour"}[self.per]


#: A number is dollars per day.
Allowances = float | Sequence[Allowance]


@dataclass(frozen=True, slots=True)
class Budgets:
    """US dollars that may be spent, all of them hard. Names not listed have no budget of their own.

    `zone`: where days and months begin, as IANA names it. Raises BadInput for one that there is not.
    """

    total: Allowances | None = None
    tenants: Mapping[str, Allowances] = field(default_factory=dict)
    routes: Mapping[str, Allowances] = field(default_factory=dict)
    zone: str = "UTC"

    def __post_init__(self) -> None:
        zone_of(self.zone)

    @property
    def _total(self) -> Allowances:
        return () if self.total is None else self.total

    @property
    def rolls(self) -> bool:
        """Whether a window of some budget rolls."""
        given = [self._total, *self.tenants.values(), *self.routes.values()]
        return any(one.per is Per.WINDOW for allowances in given for one in each(allowances))

    def concerned(self, tenant: str, route: str) -> list[Concerned]:
        """Every budget that a request counts against."""
        own = self.tenants.get(tenant, self.tenants.get(ALL, ()))
        found = [Concerned("", one, None, None) for one in each(self._total)]
        found += [Concerned(f"tenant {tenant}'s", one, tenant, None) for one in each(own)]
        found += [Concerned(f"route {route}'s", one, None, route) for one in each(self.routes.get(route, ()))]
        return found


NO_BUDGETS = Budgets()


@dataclass(frozen=True, slots=True)
class Concerned:
    """A budget, and the tenant or route whose spending counts in it; None: everybody's."""

    whose: str
    allowance: Allowance
    tenant: str | None
    route: str | None

    @property
    def name(self) -> str:
        """How a refusal calls it."""
        if not self.whose:
            return f"the {self.allowance.name} budget"
        per = "" if self.allowance.per is Per.DAY else f"{self.allowance.name} "
        return f"{self.whose} {per}budget"


def each(allowances: Allowances) -> Sequence[Allowance]:
    """The allowances, also where there is only a number."""
    return (Allowance(float(allowances)),) if isinstance(allowances, int | float) else allowances
