"""The rivals in the table: baselines at several numbers of steps, which are never chosen."""

from dataclasses import replace

from raypipe.config import Experiment
from raypipe.distributed.training_job import finished
from raypipe.evaluation.combinations import Combination
from raypipe.forecast.manifest import JOINT
from raypipe.search.rivals import rival_jobs
from raypipe.search.workload import RIVAL_STEPS
from raypipe.workspace.layout import Workspace


def rival_combinations(experiment: Experiment, workspace: Workspace) -> list[Combination]:
    """The rivals that are trained, at all RIVAL_STEPS, the most expensive first. Their beta is that of the formulas."""
    found = []
    for rival in experiment.rivals:
        jobs = rival_jobs(experiment, workspace, rival)
        if all(map(finished, jobs)):
            first, *more = [job.name for job in jobs]
            made = Combination(rival, None, JOINT, first, beta=1.0, baseline=rival, more_models=tuple(more))
            found += [replace(made, steps=steps) for steps in reversed(RIVAL_STEPS)]
    return found
