"""Searches without Ray: the real commands, study, searcher and schedulers, and trials whose scores are computed."""

import random
from types import SimpleNamespace

import yaml
from ray.tune.schedulers import TrialScheduler

from raypipe import cli, config, tune
from raypipe.search import progress, records
from raypipe.search.changes import adapt_study, adopt
from raypipe.search.opening import open_workspace
from raypipe.search.schedulers import make_scheduler
from raypipe.search.stage import Stage
from raypipe.search.study import STEP, VALUES, known_trials, open_storage, trial_name
from raypipe.search.trial_log import TrialLog
from raypipe.search.tuner import make_searcher
from raypipe.workspace.layout import Workspace
from tests.raytools import tiny


def begin(storage, **values):
    """An experiment named x that has begun, without its dataset and autoencoder."""
    experiment = tiny(**values | {"name": "x"})
    folder = Workspace(storage, "x").folder
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict(experiment)))
    return Stage(experiment, Workspace(storage, "x"), "flow")


def resume(storage, *argv):
    """What `--name x --resume` does before the first trial; returns the flow stage."""
    line = ["--storage", str(storage), "--name", "x", "--resume", *map(str, argv)]
    args, overrides = cli.parse(tune.make_parser("pipeline.py", ""), line)
    experiment, workspace = open_workspace(args, overrides, progress.is_unfinished)
    adopt(workspace, experiment)
    return Stage(experiment, workspace, "flow")


def score(values, step):
    """A score between 0 and 1 that falls with the step and depends on all values."""
    return random.Random(repr(sorted(values.items()))).random() / 2 + 1 / (2 + step)


def search(stage, draw, events=10**6):
    """Run trials of a stage, two at a time, until all have ended or, as if killed, after a number of events.

    Returns the names of the trials that were trained, in order.
    """
    adapt_study(stage.workspace, "flow", stage.experiment, stage.experiment)
    storage = open_storage(stage.workspace.study)
    searcher = make_searcher(stage, storage)
    total, settings = stage.experiment.search.flow.trials, stage.experiment.search
    TrialLog(stage, total, searcher.ended).catch_up(searcher.past())
    left = total - searcher.ended
    rule = None
    if settings.scheduler in ("asha", "median"):
        rule = make_scheduler(settings, stage.rungs, searcher.rungs, left, 2)
    if rule is not None:
        rule.set_search_properties("objective", "min")
    live, trained = [], []
    while events > 0 and (live or left > 0):
        events -= 1
        if left > 0 and len(live) < 2:
            trial = SimpleNamespace(trial_id=f"t{left}", config=searcher.suggest(f"t{left}"), status="RUNNING")
            stage.configure(trial.config["values"])
            if rule is not None:
                rule.on_trial_add(None, trial)
            live.append((trial, iter([rung for rung in stage.rungs if rung not in trial.config["reported"]])))
            trained.append(trial.config["trial"])
            left -= 1
            continue
        trial, rungs = live[draw.randrange(len(live))]
        step = next(rungs, stage.rungs[-1])
        result = {"train_step": step, "objective": score(trial.config["values"], step), "nfe_per_frame": 1}
        result["training_iteration"] = step
        if step < stage.rungs[-1]:
            decision = TrialScheduler.CONTINUE if rule is None else rule.on_trial_result(None, trial, result)
            searcher.on_trial_result(trial.trial_id, result)
            if decision != TrialScheduler.STOP:
                continue
        elif draw.random() < 0.1:
            result |= {"objective": float("inf"), "failure": "the loss is nan"}
        if rule is not None:
            rule.on_trial_complete(None, trial, result)
        searcher.on_trial_complete(trial.trial_id, result)
        live = [pair for pair in live if pair[0] is not trial]
    TrialLog(stage, total, searcher.ended).catch_up(searcher.past())
    return trained


def ended(workspace):
    """What the study knows about each trial that has ended, by name."""
    known = known_trials(open_storage(workspace.study), "flow") if workspace.study.exists() else []
    return {
        trial_name("flow", t.number): (
            t.state, t.user_attrs[VALUES], t.values, t.intermediate_values, t.user_attrs.get(STEP)
        )
        for t in known
        if t.state.is_finished()
    }  # fmt: skip


def rows(workspace):
    """The scores in trials.parquet, by trial and step."""
    table = records.read_rows(workspace.trials)
    assert len({(row["trial"], row["step"]) for row in table}) == len(table)
    return {(row["trial"], row["step"]): row["objective"] for row in table}


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
