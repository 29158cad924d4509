"""Ray metrics of a search, which Ray's dashboard and Prometheus show: best score, trials by state, steps per second."""

from collections import Counter
from collections.abc import Sequence

from ray.util.metrics import Gauge

from raypipe.distributed.gauges import TAGS, speed_gauge
from raypipe.search import finalists, records

STATES = ("running", "finished", "stopped", "failed")


class Gauges:
    """The gauges of the search of a stage. This process must be connected to Ray."""

    def __init__(self, experiment: str, stage: str) -> None:
        self._stage = stage
        self._best = Gauge("raypipe_best_crps_ratio", "Lowest CRPS ratio of the trials of a stage so far.", TAGS)
        self._trials = Gauge("raypipe_trials", "Number of trials of a stage by state.", (*TAGS, "state"))
        self._speed = speed_gauge(experiment, stage)
        for gauge in (self._best, self._trials):
            gauge.set_default_tags({"experiment": experiment, "stage": stage})

    def show(self, rows: Sequence[records.Row], running: int, speed: float = 0.0) -> None:
        """Set the gauges. rows: of trials.parquet. running: number of trials that have not ended. speed: of these
        together, in training steps per second."""
        mine = [row for row in rows if row["stage"] == self._stage and not row["refit"]]
        counts = Counter(row["status"] for row in records.last_rows(mine))
        for state in STATES:
            self._trials.set(running if state == "running" else counts[state], {"state": state})
        self._speed.set(speed)
        for best in finalists.last_rungs(mine, self._stage)[:1]:
            self._best.set(best.objective)
