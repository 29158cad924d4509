"""Choose the experiment of a search command: a new one, or an existing one that is continued."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from raypipe import cli, config
from raypipe.config import ConfigError, Experiment
from raypipe.workspace.claims import claim, latest
from raypipe.workspace.dataset import check_dataset
from raypipe.workspace.layout import Workspace

Holds = Callable[[Workspace], bool]
"""A condition on an experiment."""


def open_workspace(
    args: Any,
    overrides: Mapping[str, Any],
    unfinished: Holds,
    ready: Holds | None = None,
    check: Callable[[Experiment], None] = lambda experiment: None,
) -> tuple[Experiment, Workspace]:
    """The experiment and folder of a command: a new one, or with --resume the latest unfinished one.

    ready: without --resume, --name and --config, the latest experiment that meets this condition is continued. The
    folder of a new experiment is created here, so that no concurrent command takes it; `check` is called before that,
    to refuse what cannot run. Raises ConfigError if there is nothing to resume, or if --name names an existing
    experiment that cannot be extended.
    """
    values = dict(overrides)
    if args.seed is not None:
        values = {"train.random_seed": args.seed, "search.seed": args.seed, **values}
    experiment = cli.experiment(args, values)
    storage = cli.storage_root(args)
    found = None
    if args.resume:
        found = latest(storage, unfinished, like=experiment.name)
        if found is None and args.name:
            raise ConfigError(f"--resume: nothing to resume in {storage / args.name}; omit --resume to start one")
        if found is None and latest(storage, lambda workspace: True, like=experiment.name) is not None:
            raise ConfigError(
                f"--resume: no unfinished search {experiment.name!r} in {storage}; omit --resume to start a new one"
            )
    elif args.name and (storage / args.name / "config.yaml").exists() and not _extends(storage, args.name, unfinished):
        raise ConfigError(
            f"--name: {args.name!r} exists in {storage}; add --resume to continue it, or choose another name"
        )
    elif ready is not None and not args.name and not args.config:
        found = latest(storage, ready, like=experiment.name)
    if found is not None:
        experiment = cli.with_overrides(found.experiment(), values)
    check_dataset(found or Workspace(storage, experiment.name), experiment)
    check(experiment)
    workspace = found or (Workspace(storage, args.name) if args.name else claim(storage, experiment.name))
    return config.replace(experiment, name=workspace.name), workspace


def _extends(storage: Path, name: str, unfinished: Holds) -> bool:
    """Whether an experiment exists that `unfinished` accepts and that has no search yet."""
    workspace = Workspace(storage, name)
    return bool(unfinished(workspace)) and not workspace.study.exists()


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
