"""Early stopping of a component's training by the score of its forecasts on validation windows."""

from dataclasses import replace

from torch import nn

from raypipe import config
from raypipe.config import Experiment
from raypipe.forecast.component import ComponentScorer
from raypipe.training.early_stopping import FIT_WINDOWS, WINDOWS, EarlyStopping, check_interval
from raypipe.workspace.dataset import ExperimentData
from raypipe.workspace.layout import ParentModels


def early_stopping(
    experiment: Experiment, data: ExperimentData, parents: ParentModels, rank: int, world_size: int
) -> EarlyStopping | None:
    """Early stopping as the `train` section of the config describes it; None if the training is not validated.

    A denoiser without a flow makes no forecasts, so it cannot be scored. The windows and the noise are the same at all
    checks. The magnitude is not fitted, but the middle candidate: fitting would take longer than the score, which is
    only compared with others of the same training.
    """
    every = check_interval(experiment, data.training_shards().lengths)
    component = experiment.train.component
    if every is None or (component == "denoiser" and parents.flow is None):
        return None
    if rank != 0:
        return EarlyStopping(experiment, every, None, world_size)
    evaluation = experiment.evaluation
    few = {
        "evaluation.windows": min(WINDOWS, evaluation.windows),
        "evaluation.fit_windows": min(FIT_WINDOWS, evaluation.fit_windows),
    }
    scorer = ComponentScorer(config.replace(experiment, **few), data, parents)
    unfitted = replace(evaluation, betas=_middle(evaluation.betas), multipliers=_middle(evaluation.multipliers))

    def score(module: nn.Module) -> float:
        return scorer(component, module, unfitted).score.ratio.value

    return EarlyStopping(experiment, every, score, world_size)


def _middle(candidates: list[float]) -> list[float]:
    return [sorted(candidates)[len(candidates) // 2]]
