"""Choose the experiment of a search command: a new one, or an existing one that is continued."""

from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from raypipe import cli, config
from raypipe.config import ConfigError, Experiment, Search
from raypipe.search.changes import check_changes
from raypipe.workspace.claims import claim, latest
from raypipe.workspace.dataset import check_dataset
from raypipe.workspace.layout import Workspace

Unfinished = Callable[[Workspace, Search], bool]
"""Whether the search of an experiment is unfinished, for the numbers of trials in the given `search` section."""


def open_workspace(
    args: Any,
    overrides: Mapping[str, Any],
    unfinished: Unfinished,
    ready: Callable[[Workspace], bool] | None = None,
    *,
    check: Callable[[Experiment], None] = lambda experiment: None,
    extend: str = "--search.flow.trials",
) -> tuple[Experiment, Workspace]:
    """The experiment and folder of a command: a new one, or with --resume the latest unfinished one.

    An experiment that is continued keeps its settings, except those given by --config and on the command line.

    ready: without --resume, --name and --config, the latest experiment that meets this condition is continued. check:
    refuses what cannot run. extend: the flag that extends a finished search. The folder of a new experiment is created
    here, so that no concurrent command takes it; nothing else is written. Raises ConfigError if there is nothing to
    resume, if --name names an existing experiment that cannot be extended, or if the settings of an experiment cannot
    change as requested.
    """
    values = dict(overrides)
    if args.seed is not None:
        values = {"train.random_seed": args.seed, "search.seed": args.seed, **values}
    experiment = cli.experiment(args, values)
    storage = cli.storage_root(args)
    stated = {**(config.stated(args.config) if args.config else {}), **values}
    stated.pop("name", None)

    def left(workspace: Workspace) -> bool:
        return unfinished(workspace, _with_trials(workspace.experiment().search, experiment.search, stated))

    found = None
    if args.resume:
        found = _latest(args, experiment, storage, left)
        if found is None:
            _explain(args, experiment, storage, extend)
    elif args.name and (storage / args.name / "config.yaml").exists():
        if Workspace(storage, args.name).study.exists() or not left(Workspace(storage, args.name)):
            raise ConfigError(
                f"--name: {args.name!r} exists in {storage}; add --resume to continue it, or choose another name"
            )
    elif ready is not None and not args.name and not args.config:
        found = latest(storage, ready, like=experiment.name)
    if found is not None:
        experiment = cli.with_overrides(found.experiment(), stated)
    workspace = found or (Workspace(storage, args.name) if args.name else None)
    if workspace is not None:
        check_changes(workspace, experiment)
    check_dataset(workspace or Workspace(storage, experiment.name), experiment)
    check(experiment)
    workspace = workspace or claim(storage, experiment.name)
    return config.replace(experiment, name=workspace.name), workspace


def _with_trials(stored: Search, given: Search, stated: Container[str]) -> Search:
    """The stored settings with the numbers of trials in `given`, where `stated` contains their dotted names."""
    changed: dict[str, Any] = {
        name: replace(stage, trials=given.stages[name].trials)
        for name, stage in stored.stages.items()
        if f"search.{name}.trials" in stated
    }
    return replace(stored, **changed)


def _latest(args: Any, experiment: Experiment, storage: Path, has: Callable[[Workspace], bool]) -> Workspace | None:
    """The experiment that --name names, or else the latest one, if it meets a condition; None if there is none."""
    if not args.name:
        return latest(storage, has, like=experiment.name)
    named = Workspace(storage, args.name)
    return named if (named.folder / "config.yaml").is_file() and has(named) else None


def _explain(args: Any, experiment: Experiment, storage: Path, extend: str) -> None:
    """Raise ConfigError if --resume has found no unfinished search, unless there is no search at all to be resumed."""
    finished = _latest(args, experiment, storage, lambda workspace: True)
    if finished is not None:
        raise ConfigError(
            f"--resume: the search in {finished.folder} is finished; to extend it, give a larger number of trials with "
            f"{extend} N; to start a new one, omit --resume"
        )
    if args.name:
        raise ConfigError(f"--resume: nothing to resume in {storage / args.name}; omit --resume to start one")


def warm_start(args: Any) -> Path | None:
    """Folder of the experiment given by --warm-start, as a name in the storage root or as a path; None without it.

    Raises ConfigError if the folder holds no search.
    """
    if args.warm_start is None:
        return None
    for folder in (cli.storage_root(args) / args.warm_start, Path(args.warm_start).expanduser().resolve()):
        if (folder / "trials.parquet").is_file():
            return folder
    raise ConfigError(
        f"--warm-start: no search at {args.warm_start!r} (no trials.parquet); give the folder of a search, "
        f"or its name in {cli.storage_root(args)}"
    )
