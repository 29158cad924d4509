"""Early stopping: the weights that score best on validation are kept, and a training that stops improving ends."""

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy.typing as npt
import torch
from torch import nn

from raypipe import checkpoint
from raypipe.checkpoint import Meta
from raypipe.config import Experiment
from raypipe.training.few_data import few_data

WINDOWS, FIT_WINDOWS = 16, 4
"""Largest numbers of validation and of training windows that a check uses."""
SHARE = 0.1
"""Checks are this share of the steps apart, or more so that they take about this share of a training's time."""
EXTRA = "validation"
"""Key of `Validated` in the `extra` values of a Meta."""


@dataclass(frozen=True)
class Validated:
    """What the checks of a training have found so far; stored with the model, so that a resumed training knows it.

    score, step: the lowest score, and the steps done when it was measured. failures: number of checks since then that
    count against `train.patience`. stopped: the training ended early, after the last of them.
    """

    score: float | None = None
    step: int = 0
    failures: int = 0
    stopped: bool = False


def validated(meta: Meta) -> Validated | None:
    """What the checks of a saved training have found; None if it was not validated."""
    found = meta.extra.get(EXTRA)
    return None if found is None else Validated(**found)


def kept_early(folder: Path) -> str | None:
    """One line that says which weights of a saved training were kept; None if they are the last ones."""
    meta = checkpoint.read_meta(folder)
    found = validated(meta)
    if found is None or found.score is None or found.step == meta.step:
        return None
    return (
        f"{folder.name}: the weights of step {found.step} are kept, as they score best on validation "
        f"({found.score:.3f}); the training ended {'early, ' if found.stopped else ''}after step {meta.step}"
    )


class EarlyStopping:
    """Scores a model on validation every so often, keeps the best weights, and decides when the training ends.

    experiment: `train.patience` is the number of checks without a lower score after which the training ends. Checks of
    a network that is to be trained on the score of its forecasts do not count against it until that begins. every:
    training steps between checks; there is another one after the last step. score: the score of a model, lower is
    better; None on ranks other than 0, which learn the score from rank 0. A score that is not finite is never the best.
    """

    def __init__(
        self, experiment: Experiment, every: int, score: Callable[[nn.Module], float] | None, world_size: int = 1
    ) -> None:
        train = experiment.train
        self.found = Validated()
        self.best: nn.Module | None = None
        self._every, self._last, self._patience = every, train.steps, train.patience
        self._counted_from = train.velocity_steps
        self._score, self._world_size = score, world_size

    def next_check(self, step: int) -> int:
        """The step of the next check after `step`."""
        return min(self._last, (step // self._every + 1) * self._every)

    def check(self, step: int, model: nn.Module) -> float | None:
        """Score the model if a check is due at this step, and keep a copy of it if it is the best; returns its score.

        All ranks must call it at the same steps, with the same weights.
        """
        if step % self._every and step != self._last:
            return None
        score = self._agreed(model)
        if math.isfinite(score) and (self.found.score is None or score < self.found.score):
            self.found = Validated(score, step)
            self.best = _copy(model)
        elif step > self._counted_from:
            failures = self.found.failures + 1
            stopped = self._patience is not None and failures >= self._patience and step < self._last
            self.found = replace(self.found, failures=failures, stopped=stopped)
        return score

    def extra(self) -> dict[str, object]:
        """What `restore` needs beside the best weights, for `Meta.extra`."""
        return {EXTRA: asdict(self.found)}

    def restore(self, folder: Path, model: nn.Module) -> None:
        """Go on from a saved training, which may not have been validated. model: of the same kind as the saved one."""
        self.found = validated(checkpoint.read_meta(folder)) or Validated()
        self.best = None
        if self.found.score is not None:
            self.best = _copy(model)
            self.best.load_state_dict(checkpoint.load_component(folder).state_dict())

    def _agreed(self, model: nn.Module) -> float:
        """The score that rank 0 measures, on all ranks."""
        score = math.nan if self._score is None else self._score(model)
        if self._world_size == 1:
            return score
        shared = torch.tensor(score, dtype=torch.float64, device=next(model.parameters()).device)
        torch.distributed.broadcast(shared, 0)
        return float(shared.item())


def _copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval().requires_grad_(False)


def check_interval(experiment: Experiment, lengths: npt.ArrayLike) -> int | None:
    """Training steps between checks, see `train.validate_every`; None: no checks.

    lengths: [clips], frames of each training clip. Time is counted in calls of the network with one sample, so that a
    resumed training has the same interval; a sample that is trained on counts as four, about as measured.
    """
    train, evaluation = experiment.train, experiment.evaluation
    if train.validate_every is not None:
        return train.validate_every or None
    if few_data(lengths, experiment, train.steps) is None:
        return None
    check = min(WINDOWS, evaluation.windows) * evaluation.members * evaluation.horizon * evaluation.steps[0]
    every = max(math.ceil(SHARE * train.steps), math.ceil(check / (SHARE * 4 * train.samples / train.steps)))
    return every if 2 * every <= train.steps else None
