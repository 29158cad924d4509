"""Carries out a `StageLimit` in Ray Tune: a searcher that proposes no more trials, and a stopper of those that run."""

from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from raypipe.search.limits import StageLimit


class LimitedSearcher(Searcher):
    """A searcher that asks a `StageLimit` before each trial, and tells it what becomes of the trial."""

    def __init__(self, inner: Searcher, limit: StageLimit) -> None:
        super().__init__(metric="objective", mode="min")
        self._inner, self._limit = inner, limit

    def suggest(self, trial_id: str) -> Any:
        """A trial config; None if no trial may start now; `Searcher.FINISHED` if none may start any more."""
        start = self._limit.start()
        if start != "now":
            return None if start == "later" else Searcher.FINISHED
        found = self._inner.suggest(trial_id)
        assert isinstance(found, dict)
        self._limit.begin(trial_id, found["trial"], found["reported"])
        return found

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._inner.on_trial_result(trial_id, result)
        self._report(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._inner.on_trial_complete(trial_id, result, error)
        if result is None or error or result.get("failure") is not None:
            self._limit.end(trial_id, None)
        elif result.get("halt") is None:
            self._report(trial_id, result)  # Tune does not call on_trial_result with the last result
            self._limit.end(trial_id, result["objective"])

    def _report(self, trial_id: str, result: dict[str, Any]) -> None:
        steps, training, scoring = (result.get(name, 0) for name in ("trained", "training", "scoring"))
        self._limit.report(trial_id, steps=steps, training=training, scoring=scoring)

    def save(self, checkpoint_path: str) -> None:
        """Write an empty file, which Tune requires; the study holds all state."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing; the study holds all state."""


class StopEarly(tune.Stopper):
    """Ends the search when `limit` says so. Tune then stops the running trials; in the study they stay running."""

    def __init__(self, limit: StageLimit) -> None:
        self._limit = limit

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._limit.stop()
