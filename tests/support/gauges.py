"""Current values, each of which differs from the others."""

from enhanced_checkpointing.observability.events import Gauges, SystemState

GAUGES = Gauges(
    state=SystemState.OUTAGE,
    journal_pending=3,
    journal_oldest_age=1.5,
    journal_size=4096,
    journal_writable=True,
    journal_utilization=0.25,
    journal_dead_letters=5,
    journal_frozen_threads=2,
    journal_damages=1,
    breaker_openings=7,
    standby_size=2048,
    pool={"size": 2, "available": 1, "waiting": 0, "min": 1, "max": 10},
)
