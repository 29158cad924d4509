"""The recorded search of `test_recorded_search.py`, unpacked, and cut off in the middle as by a kill."""

import shutil
import tarfile
from pathlib import Path

import optuna

from raypipe.search import records
from raypipe.search.study import VALUES, open_storage
from raypipe.workspace.layout import Workspace

RECORDED = Path(__file__).parent / "recorded" / "search.tar.gz"
BEGUN = {"train.noise_std": 0.2, "train.loss": "nll", "train.learning_rate": 2e-3, "train.flow": "flow-02-s1"}
"""Values of the trial that was cut off."""


def unpack(storage: Path) -> Workspace:
    """The finished search, in the experiment `demo`: three flows, a denoiser and two diffusions."""
    with tarfile.open(RECORDED) as archive:
        archive.extractall(storage, filter="data")
    return Workspace(storage, "demo")


def cut(storage: Path) -> Workspace:
    """The search, killed while diffusion-01 had not reached a rung yet and a line of the journal was written."""
    workspace = unpack(storage)
    for folder in (workspace.evaluation, workspace.best, workspace.run("diffusion", "diffusion-01")):
        shutil.rmtree(folder)
    workspace.finalists("diffusion").unlink()
    rows = records.read_rows(workspace.trials)
    kept = [r for r in rows if r["stage"] != "diffusion" or r["trial"] == "diffusion-00"]
    records.write_rows(workspace.trials, kept)
    lines = workspace.study.read_text().splitlines(keepends=True)
    begun = next(i for i, line in enumerate(lines) if '"trial_id":5,"state":0' in line)
    workspace.study.write_text("".join(lines[:begun]))
    study = optuna.load_study(study_name="diffusion", storage=open_storage(workspace.study))
    study.ask().set_user_attr(VALUES, BEGUN)
    with workspace.study.open("a") as journal:
        journal.write('{"op_code":7,"worker_id":"1b1f5d')
    return workspace
