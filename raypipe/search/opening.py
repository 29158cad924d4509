"""Choose the experiment of a search command: a new one, or an existing one that is continued."""

import logging
from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from raypipe import cli, config
from raypipe.common.places import to_place
from raypipe.config import ConfigError, Experiment, Search
from raypipe.data.remote import fetch_file
from raypipe.search.changes import check_changes
from raypipe.workspace import bucket
from raypipe.workspace.claims import claim, contents, is_experiment, latest, unclaimed
from raypipe.workspace.dataset import check_dataset
from raypipe.workspace.layout import Workspace

logger = logging.getLogger(__name__)

Unfinished = Callable[[Workspace, Search], bool]
"""Whether the search of an experiment is unfinished, for the numbers of trials and the patience of a `search` section.
"""


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
    here, so that no concurrent command takes it, but not with --dry-run; nothing else is written. Raises ConfigError
    if --resume finds no experiment or only a finished search, if --name names an existing experiment that cannot be
    extended, or if the settings of an experiment cannot change as requested.
    """
    values = dict(overrides)
    if args.seed is not None:
        values = {"train.random_seed": args.seed, "search.seed": args.seed, **values}
    experiment = cli.experiment(args, values)
    storage = bucket.storage_root(args, writes=not args.dry_run)
    stated = {**(config.stated(args.config) if args.config else {}), **values}
    stated.pop("name", None)

    def left(workspace: Workspace) -> bool:
        return unfinished(workspace, _with_extent(workspace.experiment().search, experiment.search, stated))

    found = None
    if args.resume:
        found = _resumed(args, experiment, storage, left, extend)
    elif args.name and (storage / args.name / "config.yaml").exists():
        if Workspace(storage, args.name).study.exists() or not left(Workspace(storage, args.name)):
            raise ConfigError(
                f"--name: {args.name!r} exists in {bucket.shown(storage)}; add --resume to continue it, or choose "
                "another name"
            )
    elif ready is not None and not args.name and not args.config:
        found = latest(storage, ready, like=experiment.name)
    if found is not None and (found.folder / "config.yaml").is_file():
        experiment = cli.with_overrides(found.experiment(), stated)
    elif found is not None:
        logger.warning("%s: interrupted before its settings were stored; those of this command are used", found.folder)
    workspace = found or (Workspace(storage, args.name) if args.name else None)
    if workspace is not None:
        check_changes(workspace, experiment)
        bucket.check_free(storage, workspace.name, break_lock=args.break_lock)
    check_dataset(workspace or Workspace(storage, experiment.name), experiment)
    check(experiment)
    workspace = workspace or (unclaimed if args.dry_run else claim)(storage, experiment.name)
    return config.replace(experiment, name=workspace.name), workspace


def _with_extent(stored: Search, given: Search, stated: Container[str]) -> Search:
    """The stored settings with the numbers of trials and the patience of `given` whose dotted names are in `stated`."""
    changed: dict[str, Any] = {
        name: replace(stage, trials=given.stages[name].trials)
        for name, stage in stored.stages.items()
        if f"search.{name}.trials" in stated
    }
    if "search.patience" in stated:
        changed["patience"] = given.patience
    return replace(stored, **changed)


def _resumed(
    args: Any, experiment: Experiment, storage: Path, left: Callable[[Workspace], bool], extend: str
) -> Workspace:
    """The experiment that --resume continues: the one that --name names, else the latest unfinished one.

    It may have been killed before its config was written. Raises ConfigError if there is none.
    """
    begun = [Workspace(storage, path.name) for path in storage.glob("*") if is_experiment(path)]
    if args.name:
        begun = [Workspace(storage, args.name)] if (storage / args.name).is_dir() else []
    else:
        begun = [w for w in begun if w.name == experiment.name or w.name.startswith(f"{experiment.name}-")]
    if not begun:
        raise ConfigError(
            f"--resume: no experiment {experiment.name!r} in {bucket.shown(storage)} ({contents(storage)}); omit "
            "--resume to start one, or correct --name or --storage"
        )
    begun.sort(key=_begin_time)
    unfinished = [w for w in begun if not (w.folder / "config.yaml").is_file() or left(w)]
    if not unfinished:
        patience = "" if begun[-1].experiment().search.patience is None else ", or a larger search.patience"
        raise ConfigError(
            f"--resume: the search in {bucket.shown(storage, begun[-1].folder)} is finished; to extend it, give a "
            f"larger number of trials with {extend} N{patience}; to start a new one, omit --resume"
        )
    return unfinished[-1]


def _begin_time(workspace: Workspace) -> int:
    config_file = workspace.folder / "config.yaml"
    return (config_file if config_file.is_file() else workspace.folder).stat().st_mtime_ns


def warm_start(args: Any) -> Path | None:
    """Folder of the experiment given by --warm-start, as a name in the storage root, a path or a URI; None without it.

    Of a URI, only the table of trials is copied. Raises ConfigError if the folder holds no search.
    """
    if args.warm_start is None:
        return None
    place = to_place(args.warm_start)
    if not isinstance(place, Path):
        copied = fetch_file(place, "trials.parquet")
        if copied is None:
            raise ConfigError(f"--warm-start: no search at {place} (no trials.parquet); give the URI of a search")
        return copied.parent
    storage = bucket.storage_root(args)
    for folder in (storage / place, place.expanduser().resolve()):
        if (folder / "trials.parquet").is_file():
            return folder
    raise ConfigError(
        f"--warm-start: no search at {args.warm_start!r} (no trials.parquet); give the folder of a search, "
        f"or its name in {bucket.shown(storage)}"
    )
