"""The schedulers of a search, which decide at each rung which trials stop: a registry by `search.scheduler`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ray.tune.schedulers import TrialScheduler

from raypipe import config
from raypipe.config import Axis, Search
from raypipe.search.schedulers.asha import ResumableASHA
from raypipe.search.schedulers.halving import Halving
from raypipe.search.schedulers.median import ResumableMedianStopping
from raypipe.search.schedulers.pbt import Exploit, PopulationBasedTraining


def make_scheduler(
    search: Search,
    rungs: Sequence[int],
    known: Mapping[str, Mapping[int, float]],
    trials: int,
    places: int,
    *,
    axes: Mapping[str, Axis] = MappingProxyType({}),
    copy: Callable[[Exploit], None] | None = None,
) -> TrialScheduler | None:
    """Make the scheduler that `search.scheduler` names; None if no trial is to be stopped.

    The scheduler reads a trial's status, its name in `config["trial"]` and, for pbt, its `config["values"]`; of a
    result it reads `train_step` and `objective` (lower is better). Tune sets its metric and mode; without Tune, call
    `set_search_properties`.

    rungs: training steps at which trials report; the last is their end. known: objectives by trial name and step,
    from before the search was resumed. trials: number of trials that will be added. places: largest number of
    concurrent trials, 0 for no limit; only used by schedulers that pause trials. axes: the axes that pbt may change.
    copy: called by pbt to carry out an exploit; required for pbt.
    """
    return _KINDS[search.scheduler].make(_Options(search, rungs, known, trials, places, axes, copy))


def spaced(search: Search, steps: int) -> list[int]:
    """The rungs of trials with `steps` training steps: increasing training steps, the last equal to `steps`."""
    return _KINDS[search.scheduler].spaced(search, steps)


def passing(search: Search, trials: int) -> float:
    """The share of `trials` that reach a rung of which a scheduler lets more go on, if all orders are as likely."""
    return _KINDS[search.scheduler].passing(search, trials)


@dataclass(frozen=True)
class _Options:
    """The arguments of `make_scheduler`."""

    search: Search
    rungs: Sequence[int]
    known: Mapping[str, Mapping[int, float]]
    trials: int
    places: int
    axes: Mapping[str, Axis]
    copy: Callable[[Exploit], None] | None


def _asha(options: _Options) -> TrialScheduler | None:
    if len(options.rungs) == 1:
        return None
    return ResumableASHA(
        options.known,
        grace_period=options.rungs[0],
        max_t=options.rungs[-1] + 1,  # ASHA never reaches it: a trial ends itself at its last rung
        reduction_factor=options.search.reduction_factor,
    )


def _halving(options: _Options) -> TrialScheduler:
    return Halving(options.known, options.trials, options.places, reduction_factor=options.search.reduction_factor)


def _median(options: _Options) -> TrialScheduler:
    return ResumableMedianStopping(options.known, grace_period=options.rungs[0])


def _pbt(options: _Options) -> TrialScheduler:
    assert options.copy is not None
    return PopulationBasedTraining(
        options.known,
        options.trials,
        options.places,
        axes=options.axes,
        seed=options.search.seed,
        copy=options.copy,
    )


def _none(options: _Options) -> None:
    return None


def _geometric(search: Search, steps: int) -> list[int]:
    """Rungs at steps / k^i for i = 0, 1, ..., with k = search.reduction_factor.

    They are rounded down: ASHA places its rungs at k^i times the first one and compares trials at the first report at
    or after a rung, so its rungs must not lie after these.
    """
    return sorted({max(1, steps // search.reduction_factor**i) for i in range(search.rungs)})


def _even(search: Search, steps: int) -> list[int]:
    """Equally spaced rungs."""
    return sorted({max(1, steps * (i + 1) // search.rungs) for i in range(search.rungs)})


def _all(search: Search, trials: int) -> float:
    return 1.0


def _best(search: Search, trials: int) -> float:
    return 1 / search.reduction_factor


def _above_median(search: Search, trials: int) -> float:
    return 0.5


def _best_so_far(search: Search, trials: int) -> float:
    """The share that ASHA lets pass.

    The n-th trial goes on if it is above the (1 - 1/k) quantile, as numpy interpolates it, of the n - 1 before it. A
    new one of n is above the value at position p of the others with probability 1 - (p + 1) / n.
    """
    share = 1 - 1 / search.reduction_factor
    return sum(1.0 if n == 1 else 1 - ((n - 2) * share + 1) / n for n in range(1, trials + 1)) / trials


@dataclass(frozen=True)
class _Kind:
    """A scheduler: how to make it, how its rungs are spaced, and the share of trials that it lets pass a rung."""

    make: Callable[[_Options], TrialScheduler | None]
    spaced: Callable[[Search, int], list[int]] = _geometric
    passing: Callable[[Search, int], float] = _all


_KINDS: Mapping[config.Scheduler, _Kind] = {
    "asha": _Kind(_asha, passing=_best_so_far),
    "halving": _Kind(_halving, passing=_best),
    "median": _Kind(_median, passing=_above_median),
    "pbt": _Kind(_pbt, _even),
    "none": _Kind(_none),
}
