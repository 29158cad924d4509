"""How many training steps and scores a search still needs, for `budget.Budget`. Estimates, from the config alone."""

import math

from raypipe.config import REFERENCE_COMPONENTS, Component, Experiment
from raypipe.search.budget import StageWork, Work

PROCESS = 5.0
"""Seconds until a process of Ray trains or scores, about as measured on two CPUs."""
GROUP = 2 * PROCESS
"""Seconds of a worker group under Ray Train beyond its training steps."""
START_UP = GROUP + PROCESS
"""Seconds of the retraining of finalists beyond its training steps and scores."""
RIVAL_STEPS = (1, 2, 4, 8, 25)
"""Integration steps per frame, and so network evaluations, at which rivals are scored."""


def stage_work(
    experiment: Experiment, component: Component, trials: int, places: int, workers: int | None = None
) -> StageWork:
    """What is left of a stage. trials: number of trials that have not ended. places, workers: see `refit_work`."""
    # Imports ray, for which a reader of the tables must not wait.
    from raypipe.search.rungs import mean_trial, stage_rungs

    steps, scores = mean_trial(experiment, component, trials)
    rounds, rungs = math.ceil(trials / max(1, min(places, trials))), stage_rungs(experiment, component)
    work = Work()
    if trials:  # one of them is never stopped, and the stage lasts as long
        work = Work(max(rounds * steps, rungs[-1]), max(rounds * scores, len(rungs)), PROCESS)
    return StageWork(work, refit_work(experiment, component, places, workers))


def refit_work(experiment: Experiment, component: Component, places: int, workers: int | None = None) -> Work:
    """The retraining of the finalists of a stage.

    places: number of concurrent trials and scores. workers: number of training workers for which the cluster has room;
    None: as many as `places`. If there are as many trainings, each worker trains its own, else some train all together.
    """
    jobs = refit_jobs(experiment, component)
    workers = max(1, places if workers is None else workers)
    together = min(experiment.train.num_workers, workers)
    rounds = math.ceil(jobs / workers) if jobs >= workers else jobs / together
    steps = experiment.search.stages[component].refit_steps
    scored = jobs + (component == "denoiser")  # "no denoiser" is scored too
    return Work(rounds * steps, math.ceil(scored / max(1, places)), START_UP if jobs else 0.0)


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
    """The training of the rivals, and the scores of the evaluation."""
    rivals = rival_work(experiment, places)
    return Work(rivals.steps, evaluation_scores(experiment) / max(1, places), rivals.fixed)


def rival_work(experiment: Experiment, places: int) -> Work:
    """The training of the rivals."""
    search, rivals = experiment.search, len(experiment.rivals)
    seeds = search.finalist_seeds if experiment.evaluation.models == "all" else 1
    stages: tuple[Component, ...] = ("joint",) if "joint" in search.searched else ("flow", "diffusion")
    steps = seeds * sum(search.stages[stage].refit_steps for stage in stages)
    return Work(rivals * steps / max(1, min(places, seeds)), 0.0, rivals * START_UP)


def evaluation_scores(experiment: Experiment) -> float:
    """Number of scores of the evaluation: all combinations on validation, then the best of them, and five on test,
    decoded; the rivals on both.

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
    found += 2 * len(experiment.rivals) * (sum(RIVAL_STEPS) + len(RIVAL_STEPS))
    return found + len(evaluation.steps) + 2 * decoded
