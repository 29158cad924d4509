"""The rungs of a stage: the numbers of training steps at which its trials are scored and compared."""

from raypipe.config import SCORES, Component, Experiment
from raypipe.search.schedulers import passing, spaced


def stage_rungs(experiment: Experiment, component: Component) -> list[int]:
    """The rungs of a stage, ascending; the last one is the end of a trial.

    Where the loss may be the score of forecasts, rungs are left out at which a trial may have been trained for fewer
    steps on the score than on the velocity before: the forecasts of such a network do not tell how good they will be.
    """
    stage = experiment.search.stages[component]
    rungs = spaced(experiment.search, stage.steps)
    losses = stage.axes["train.loss"].choices if "train.loss" in stage.axes else [experiment.train.loss]
    if component != "joint" and not set(losses or ()) & set(SCORES):
        return rungs
    axis = stage.axes.get("train.score_share")
    share = experiment.train.score_share if axis is None else min(axis.choices or [axis.low])
    velocity_steps = (1 - share) * stage.steps
    return [rung for rung in rungs if rung >= 2 * velocity_steps] or rungs[-1:]


def mean_trial(experiment: Experiment, component: Component, trials: int) -> tuple[float, float]:
    """Training steps and scores of a trial, in the mean over `trials` of them, of which a scheduler stops some.

    If the scores of trials do not depend on when they run. Later ones are better where the sampler has learned: then a
    scheduler stops fewer.
    """
    rungs = stage_rungs(experiment, component)
    left, before, steps, scores = float(trials), 0, 0.0, 0.0
    for rung in rungs:
        steps, scores, before = steps + left * (rung - before), scores + left, rung
        left *= passing(experiment.search, max(1, round(left)))
    return (steps / trials, scores / trials) if trials else (0.0, 0.0)
