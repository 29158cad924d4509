"""What a search would do and how long it would take: its work as `search.minutes` plans it, at a pace measured now."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from raypipe import config
from raypipe.config import SCORES, Component, Experiment
from raypipe.distributed.capacity import alive
from raypipe.distributed.look_ahead import Preparation, look_ahead
from raypipe.distributed.measuring import Measured, Request, Steps, measure_autoencoder, measure_components
from raypipe.distributed.rehearsal import Rehearsal, Rehearsed, rehearse
from raypipe.search.budget import Pace, Work
from raypipe.search.changes import check_changes
from raypipe.search.progress import is_searched
from raypipe.search.sizes import Network, StageNetworks, stage_networks
from raypipe.search.study import ended_trials
from raypipe.search.tuner import check_trial_resources, concurrent_trials
from raypipe.search.workload import GROUP, PROCESS, evaluation_scores, refit_jobs, rival_work, stage_work
from raypipe.workspace.clips import scored_windows
from raypipe.workspace.dataset import ExperimentData
from raypipe.workspace.layout import Workspace

STARTED = 2.2
"""CPU seconds after which a process begins to measure, where one takes `PROCESS` seconds to begin a trial."""
CEILING = 5.0
"""Seconds in which the command measures what the autoencoder allows, about as on the built-in dataset."""
ALIKE = 1.05
"""Networks whose numbers of parameters differ by less are measured once."""


@dataclass(frozen=True)
class Training:
    """The trainings of a stage, or of the autoencoder.

    trials, steps: those left, and training steps of each. refits, refit_steps: the trainings under Ray Train. batch: of
    a step. parameters: of the default, and the smallest and largest. rehearsed: what was measured. search, refit:
    seconds of the trials, and of the trainings under Ray Train with their scores; None if nothing could be measured.
    """

    name: str
    trials: int
    steps: int
    refits: int
    refit_steps: int
    batch: int
    parameters: tuple[int, ...]
    rehearsed: Rehearsed
    search: float | None
    refit: float | None

    @property
    def measured(self) -> Measured | None:
        """The measurement of the largest network."""
        return self.rehearsed.measured[-1] if self.rehearsed.measured else None


@dataclass(frozen=True)
class Plan:
    """What a command would do.

    places: number of trials at a time; 0: it has no trials. other: seconds of all but the trainings, by name.
    """

    experiment: Experiment
    preparation: Preparation
    trainings: Sequence[Training]
    places: int
    other: Mapping[str, float | None]

    @property
    def seconds(self) -> float | None:
        """Seconds of all that would be done; None if something could not be measured."""
        parts = [*(p for t in self.trainings for p in (t.search, t.refit)), *self.other.values()]
        return None if any(part is None for part in parts) else sum(part or 0.0 for part in parts)


def plan_search(
    experiment: Experiment,
    workspace: Workspace,
    stages: Sequence[Component],
    *,
    evaluates: bool = False,
    check: Callable[[ExperimentData], object] | None = None,
) -> Plan:
    """Plan what `pipeline.run_stages` would do with these arguments. Raises what it would raise before it begins."""
    experiment = config.replace(experiment, name=workspace.name)
    check_changes(workspace, experiment)
    check_trial_resources(experiment)
    made = look_ahead(experiment, workspace)
    if check is not None:
        check(ExperimentData(experiment, workspace))
    left = [component for component in stages if not is_searched(workspace, component, experiment.search)]
    return _planned(experiment, workspace, made, left, evaluates)


def plan_evaluation(experiment: Experiment, workspace: Workspace) -> Plan:
    """Plan the evaluation of a finished search, and the training of its rivals."""
    return _planned(experiment, workspace, look_ahead(experiment, workspace), [], True)


def _planned(
    experiment: Experiment, workspace: Workspace, made: Preparation, left: Sequence[Component], evaluates: bool
) -> Plan:
    measured = left or (experiment.search.searched[-1:] if evaluates else ())
    networks = {component: stage_networks(experiment, component, made.latent[0]) for component in measured}
    wanted = {"autoencoder": autoencoder_rehearsal(experiment, made)} if made.trains or made.frames else {}
    wanted |= {name: stage_rehearsal(experiment, made, stage) for name, stage in networks.items()}
    found = rehearse(wanted)
    start = _start(found.values())
    places = concurrent_trials(experiment) or experiment.search.max_concurrent or 1
    trainings = [autoencoder_training(experiment, made, found["autoencoder"], start)] if made.trains else []
    trainings += [
        _stage_training(experiment, workspace, name, networks[name], found[name], places, start) for name in left
    ]
    other = preparation_seconds(experiment, made, found.get("autoencoder"), start)
    if left:
        other |= {"ceiling of the autoencoder": CEILING * start}
    if evaluates:
        paces = [p for name in measured if (p := trial_pace(experiment, name, found[name])) is not None]
        other |= _evaluation_seconds(experiment, paces, places, start)
    return Plan(experiment, made, trainings, places, other)


def _evaluation_seconds(
    experiment: Experiment, paces: Sequence[Pace], places: int, start: float
) -> dict[str, float | None]:
    if not paces:
        return {"evaluation": None}
    score, last = statistics.mean(pace.score for pace in paces), paces[-1]
    seconds: dict[str, float | None] = {
        "evaluation": evaluation_scores(experiment) / places * score + PROCESS * start,
    }
    if experiment.rivals:
        seconds["rivals"] = _seconds(rival_work(experiment, places), last, start)
    return seconds


def _seconds(work: Work, pace: Pace, start: float) -> float:
    """start: how long a process takes to begin, relative to `PROCESS`."""
    return replace(work, fixed=work.fixed * start).seconds(pace)


def _start(found: Iterable[Rehearsed]) -> float:
    """How long a process takes to begin here, relative to the machine on which `PROCESS` was measured."""
    starts = [measured.start for each in found for measured in each.measured[:1]]
    return statistics.median(starts) / STARTED if starts else 1.0


def autoencoder_rehearsal(experiment: Experiment, made: Preparation, use_gpu: bool = False) -> Rehearsal:
    """What measures the autoencoder."""
    cpus = experiment.train.cpus_per_worker
    request = Request((experiment,), made.autoencoder, made.latent, (cpus, cpus))
    return Rehearsal(partial(measure_autoencoder, request, made.trains, use_gpu), {"CPU": cpus, "GPU": float(use_gpu)})


def autoencoder_training(experiment: Experiment, made: Preparation, found: Rehearsed, start: float = 1.0) -> Training:
    """The training of the autoencoder."""
    settings = experiment.autoencoder
    seconds = None
    if found.measured:
        workers = experiment.train.num_workers
        seconds = settings.steps * found.measured[0].worker.velocity / workers + GROUP * start
    return Training(
        "autoencoder", 0, 0, 1, settings.steps, settings.batch_size, (made.parameters,), found, 0.0, seconds
    )


def preparation_seconds(
    experiment: Experiment, made: Preparation, found: Rehearsed | None, start: float = 1.0
) -> dict[str, float | None]:
    """Seconds in which the dataset is simulated and the latents are encoded, by name."""
    seconds: dict[str, float | None] = {}
    if made.simulated:
        seconds["dataset"] = made.simulating
    if made.frames:
        slots = max(1, alive().room({"CPU": 1}))
        rate = found.measured[0].encode if found is not None and found.measured else None
        seconds["latents"] = None if rate is None else made.frames * rate / slots + PROCESS * start
    return seconds


def stage_rehearsal(experiment: Experiment, made: Preparation, stage: StageNetworks) -> Rehearsal:
    """What measures the trainings of a stage: of the default, or of the smallest and largest network."""
    search, train = experiment.search, experiment.train
    measured = [stage.default]
    if stage.largest.parameters > ALIKE * stage.smallest.parameters:
        measured = [stage.smallest, stage.largest]
    share = max(1, train.batch_size // search.workers_per_trial)
    of_a_trial = {
        "train.batch_size": share,
        "train.accumulate": min(train.accumulate, share),
        "train.num_workers": 1,
        "evaluation.windows": scored_windows(experiment, made.clips),
    }
    parts = tuple(config.replace(network.experiment, **of_a_trial) for network in measured)
    request = Request(parts, made.autoencoder, made.latent, (search.cpus_per_trial, train.cpus_per_worker))
    each = {"CPU": max(search.cpus_per_trial, train.cpus_per_worker), "GPU": search.gpus_per_trial}
    return Rehearsal(partial(measure_components, request), each, measured[-1].least_memory)


def trial_pace(experiment: Experiment, component: Component, found: Rehearsed, worker: bool = False) -> Pace | None:
    """The mean pace of the trainings of a stage. worker: with the threads of a worker of Ray Train."""
    if not found.measured:
        return None
    share = scored_share(experiment, component)

    def seconds(steps: Steps) -> float:
        return (1 - share) * steps.velocity + share * steps.scored

    step = statistics.mean(seconds(each.worker if worker else each.trial) for each in found.measured)
    return Pace(step, statistics.mean(each.score for each in found.measured))


def scored_share(experiment: Experiment, component: Component) -> float:
    """The share of training steps on the score of forecasts, in the mean over the values that trials may have."""
    axes = experiment.search.stages[component].axes
    if component != "joint" and experiment.train.loss not in SCORES and "train.loss" not in axes:
        return 0.0
    axis = axes.get("train.score_share")
    return experiment.train.score_share if axis is None else statistics.mean(axis.choices or [axis.low, axis.high])


def _stage_training(
    experiment: Experiment,
    workspace: Workspace,
    component: Component,
    stage: StageNetworks,
    found: Rehearsed,
    places: int,
    start: float,
) -> Training:
    settings, train = experiment.search.stages[component], experiment.train
    trials = max(0, settings.trials - ended_trials(workspace.study, component))
    each = {"CPU": train.cpus_per_worker, "GPU": float(experiment.search.gpus_per_trial > 0)}
    work = stage_work(experiment, component, trials, places, max(1, alive().room(each)))
    jobs = refit_jobs(experiment, component)
    left = max(0, jobs - _retrained(workspace, component))
    again = replace(work.refits, steps=work.refits.steps * left / max(1, jobs))
    pace, refits = trial_pace(experiment, component, found), trial_pace(experiment, component, found, worker=True)
    return Training(
        component,
        trials,
        settings.steps,
        left,
        settings.refit_steps,
        train.batch_size,
        tuple(dict.fromkeys(n.parameters for n in (stage.smallest, stage.default, stage.largest))),
        found,
        None if pace is None else _seconds(work.trials, pace, start),
        None if refits is None else _seconds(again, refits, start),
    )


def _retrained(workspace: Workspace, component: Component) -> int:
    """Number of finalists' trainings that are done, if the stage was interrupted among them."""
    if workspace.finalists(component).is_file():  # the stage is extended, and may have others
        return 0
    return len([*workspace.run(component, "").glob("*-s[0-9]*/config.json")])


def plan_training(
    experiment: Experiment, workspace: Workspace, runs: Mapping[str, tuple[Experiment, int]], *, use_gpu: bool = False
) -> Plan:
    """Plan trainings under Ray Train outside of a search. runs: config and number of steps left of each, by name.

    Raises what `prepare` would raise before it begins.
    """
    made = look_ahead(experiment, workspace)
    cpus, gpus = experiment.train.cpus_per_worker, float(use_gpu)
    wanted = {"autoencoder": autoencoder_rehearsal(experiment, made, use_gpu)} if made.trains or made.frames else {}
    networks = {name: Network(run, made.latent[0]) for name, (run, _) in runs.items()}
    for name, network in networks.items():
        workers = experiment.train.num_workers
        part = {"train.batch_size": experiment.train.batch_size // workers, "train.num_workers": 1}
        request = Request((config.replace(network.experiment, **part),), made.autoencoder, made.latent, (cpus, cpus))
        call = partial(measure_components, request)
        wanted[name] = Rehearsal(call, {"CPU": cpus, "GPU": gpus}, network.least_memory)
    found = rehearse(wanted)
    start = _start(found.values())
    trainings = [autoencoder_training(experiment, made, found["autoencoder"], start)] if made.trains else []
    trainings += [_run_training(name, networks[name], runs[name][1], found[name], start) for name in runs]
    other = preparation_seconds(experiment, made, found.get("autoencoder"), start)
    return Plan(experiment, made, trainings, 0, other)


def _run_training(name: str, network: Network, left: int, found: Rehearsed, start: float) -> Training:
    train, seconds = network.experiment.train, None
    if found.measured:
        steps = found.measured[0].worker
        velocity = max(0, left - (train.steps - train.velocity_steps)) if train.scores_forecasts else left
        seconds = velocity * steps.velocity + (left - velocity) * steps.scored + GROUP * start
    return Training(name, 0, 0, 1, left, train.batch_size, (network.parameters,), found, 0.0, seconds)
