"""Who of a search's trials goes on, and where they are compared: a registry of Ray Tune's schedulers and ours."""

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
    """The scheduler that `search.scheduler` names; None: every trial runs to its end, as it comes.

    It looks at a trial's status, at its own name (`config["trial"]`) and, for pbt, at `config["values"]`, and at
    `train_step` and `objective` (less is better) of a result. Its metric is set by Tune, or `set_search_properties`.

    rungs: training steps at which trials report, the last at their end; known: objectives by trial name and step, from
    before the search was resumed; trials: how many will be added; places: how many may run at once, as far as the
    scheduler decides it, 0 for any number; axes: what pbt may change; copy: what pbt puts an exploit into effect with.
    """
    return _KINDS[search.scheduler].make(_Terms(search, rungs, known, trials, places, axes, copy))


def spaced(search: Search, steps: int) -> list[int]:
    """The rungs of trials of so many steps: training steps, rising, the last at the end."""
    return _KINDS[search.scheduler].spaced(search, steps)


@dataclass(frozen=True)
class _Terms:
    """As `make_scheduler` has them."""

    search: Search
    rungs: Sequence[int]
    known: Mapping[str, Mapping[int, float]]
    trials: int
    places: int
    axes: Mapping[str, Axis]
    copy: Callable[[Exploit], None] | None


def _asha(terms: _Terms) -> TrialScheduler | None:
    if len(terms.rungs) == 1:
        return None
    return ResumableASHA(
        terms.known,
        grace_period=terms.rungs[0],
        max_t=terms.rungs[-1] + 1,  # a trial ends by itself
        reduction_factor=terms.search.reduction_factor,
    )


def _halving(terms: _Terms) -> TrialScheduler:
    return Halving(terms.known, terms.trials, terms.places, reduction_factor=terms.search.reduction_factor)


def _median(terms: _Terms) -> TrialScheduler:
    return ResumableMedianStopping(terms.known, grace_period=terms.rungs[0])


def _pbt(terms: _Terms) -> TrialScheduler:
    assert terms.copy is not None
    return PopulationBasedTraining(
        terms.known, terms.trials, terms.places, axes=terms.axes, seed=terms.search.seed, copy=terms.copy
    )


def _none(terms: _Terms) -> None:
    return None


def _geometric(search: Search, steps: int) -> list[int]:
    """steps / k^i.

    Rounded down, since ASHA's own rungs are the first one times k^i: none of those may lie beyond one of these,
    or nobody would be stopped there.
    """
    return sorted({max(1, steps // search.reduction_factor**i) for i in range(search.rungs)})


def _even(search: Search, steps: int) -> list[int]:
    return sorted({max(1, steps * (i + 1) // search.rungs) for i in range(search.rungs)})


@dataclass(frozen=True)
class _Kind:
    make: Callable[[_Terms], TrialScheduler | None]
    spaced: Callable[[Search, int], list[int]] = _geometric


_KINDS: Mapping[config.Scheduler, _Kind] = {
    "asha": _Kind(_asha),
    "halving": _Kind(_halving),
    "median": _Kind(_median),
    "pbt": _Kind(_pbt, _even),
    "none": _Kind(_none),
}
