"""The scheduler that settings ask for."""

from __future__ import annotations

from weighbridge.engine.schedule.scheduler import Scheduler
from weighbridge.engine.schedule.scheduler_api import CostSource, SchedulerLike, SchedulerSettings
from weighbridge.engine.schedule.static import StaticScheduler


def make_scheduler(settings: SchedulerSettings, cost: CostSource) -> SchedulerLike:
    """Return a scheduler with nothing to do yet."""
    if settings.batching == "static":
        return StaticScheduler(settings, cost, settings.static_batch_size, settings.static_timeout)
    return Scheduler(settings, cost)
