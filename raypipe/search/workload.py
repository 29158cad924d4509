"""How many training steps and scores a search still needs, for `budget.Budget`. Estimates, from the config alone."""

from raypipe.config import REFERENCE_COMPONENTS, Component, Experiment
from raypipe.search.budget import StageWork, Work

START_UP = 15.0
"""Seconds of a worker group under Ray Train beyond its training steps, about as measured on two CPUs."""
RIVAL_STEPS = (1, 2, 4, 8, 25)
"""Integration steps per frame, and so network evaluations, at which rivals are scored."""


def stage_work(experiment: Experiment, component: Component, trials: int, places: int) -> StageWork:
    """What is left of a stage. trials: number of trials that have not ended. places: what runs concurrently."""
    from raypipe.search.rungs import stage_rungs  # imports ray, for which a reader of the tables must not wait

    stage = experiment.search.stages[component]
    at_once = max(1, min(places, trials))
    rungs = len(stage_rungs(experiment, component))
    return StageWork(
        Work(trials * stage.steps / at_once, trials * rungs / at_once), refit_work(experiment, component, places)
    )


def refit_work(experiment: Experiment, component: Component, places: int) -> Work:
    """The retraining of the finalists of a stage. places: what runs concurrently."""
    jobs = refit_jobs(experiment, component)
    together = max(1, min(places, jobs))
    steps = experiment.search.stages[component].refit_steps
    return Work(jobs * steps / together, jobs / together, START_UP)


def refit_jobs(experiment: Experiment, component: Component) -> int:
    """About as many trainings of finalists as the stage has."""
    return _finalists(experiment, component) * experiment.search.finalist_seeds


def _finalists(experiment: Experiment, component: Component) -> int:
    """About as many configurations as are retrained: the top k, one more for each further loss, and the default."""
    search = experiment.search
    trials, top_k = search.stages[component].trials, search.top_k
    if component == "joint":
        return min(trials, top_k)
    losses = search.stages[component].axes.get("train.loss")
    further = 0 if losses is None else len(losses.choices or ()) - 1
    if component == "diffusion":
        return min(trials, top_k + further) + 1
    return min(trials, top_k + further + 1)


def evaluation_work(experiment: Experiment, places: int) -> Work:
    """The training of the rivals, and the scores of the evaluation: all combinations on validation, then the best of
    them, and five on test, decoded; the rivals on both.

    A decoded score counts as two, and one of a rival as much as it has network evaluations.
    """
    search, evaluation = experiment.search, experiment.evaluation
    k = search.top_k
    denoised = 1 + len(evaluation.alphas) * max(1, k - 1)
    settings = len(evaluation.steps) * len(evaluation.solvers)
    found = k * denoised * (1 + k) * settings
    if "joint" in search.searched:
        found += k * denoised * settings * (2 if evaluation.models == "all" else 1)
    decoded = evaluation.finalists + 1 + len(REFERENCE_COMPONENTS) + 2
    rivals, seeds = len(experiment.rivals), search.finalist_seeds if evaluation.models == "all" else 1
    found += 2 * rivals * (sum(RIVAL_STEPS) + len(RIVAL_STEPS))
    stages: tuple[Component, ...] = ("joint",) if "joint" in search.searched else ("flow", "diffusion")
    steps = seeds * sum(search.stages[stage].refit_steps for stage in stages)
    return Work(
        rivals * steps / max(1, min(places, seeds)),
        (found + len(evaluation.steps) + 2 * decoded) / max(1, places),
        rivals * START_UP,
    )
