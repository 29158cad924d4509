"""A user who types the README's commands, read out of the README itself, in a fresh copy of the repository.

Only sizes are appended to a command, so that each takes seconds; `~` is a folder of the test.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

import numpy as np

from raypipe.data.video.io import write_video
from tests.raytools import ROOT, TINY, Head, Process, flags, started, wait_for

BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
COMMANDS = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]

DEMO = TINY | {"search.max_concurrent": 1, "evaluation.decoding": "plain", "evaluation.choose_by": "latents"}
"""The demo's sizes. One trial at a time: otherwise the table depends on which trial ends first. What the evaluation
decodes and chooses by is as in the recorded search (`test_recorded_search.py`)."""
SHORT = TINY | {
    "autoencoder.steps": 20,
    "search.flow.trials": 1,
    "search.diffusion.trials": 1,
    **{"search.joint.trials": 1, "search.joint.steps": 8, "search.joint.refit_steps": 8},
    "search.finalist_seeds": 1,
    "evaluation.finalists": 1,
}
APPENDED = {
    "make demo": [],  # takes its flags by the variable DEMO_FLAGS
    "python experiments/pipeline.py --resume": ["--wandb", "--mlflow"],
    "python experiments/tune_flow.py": flags({k: v for k, v in SHORT.items() if k != "search.flow.trials"}),
    "python -m raypipe.train": flags(SHORT),
    "python experiments/pipeline.py --dataset.root": flags(
        {k: v for k, v in SHORT.items() if not k.startswith("demo.")}
        | {"dataset.image_size": 64, "search.joint.trials": 0}
    ),
}
"""What makes a command small, by its beginning."""


@dataclass
class User:
    """Somebody with a fresh copy of the repository and an empty home. done: the commands so far."""

    folder: Path
    home: Path
    head: Head
    done: list[str] = field(default_factory=list)

    @property
    def storage(self) -> Path:
        return self.home / "raypipe"

    @contextmanager
    def typing(self, command: str, *, own_ray: bool = False) -> Iterator[Process]:
        """Start a command. own_ray: it starts its own Ray; otherwise it joins the shared one."""
        variables = {
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": str(self.folder),
            "RAYPIPE_STORAGE": "",
            **dict.fromkeys(("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"), str(self.home / "wandb")),
            **({} if own_ray else self.head.variables),
        }
        log = self.home.parent / "logs" / str(len(self.done))
        with started(log, self._argv(command), Path(), cwd=self.folder, **variables) as process:
            yield process
        self.done.append(command)

    def _argv(self, command: str) -> list[str]:
        if command == "make demo":
            # The environment that runs the tests stands for .venv, and make takes it for up to date.
            venv = Path(sys.executable).parents[1]
            small = "DEMO_FLAGS=" + " ".join(map(quote, ["--wandb", "--mlflow", *flags(DEMO)]))
            make = ["make", f"VENV={venv}", f"--old-file={venv}/installed", small, "demo"]
            return ["-c", f"import os; os.execvp('make', {make!r})"]
        beginning = max((known for known in APPENDED if command.startswith(known)), key=len, default=None)
        line = " ".join([command, *map(quote, APPENDED[beginning] if beginning else [])])
        return ["-c", f"import os; os.execvp('bash', ['bash', '-ec', {line!r}])"]


@dataclass(frozen=True)
class Finished:
    """A storage folder in which the whole pipeline has run, as experiment `demo`. Tests only read it."""

    storage: Path
    process: Process


def new_user(base: Path, head: Head) -> User:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\n")):
        if (ROOT / name).is_file():
            (base / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, base / "copy" / name)
    (base / "home").mkdir()
    make_videos(base / "copy")
    return User(base / "copy", base / "home", head)


def run_demo(user: User) -> Finished:
    """`make demo`, interrupted before it trains the autoencoder, a look at it, and the command that resumes it."""
    demo, resume = COMMANDS[0], next(command for command in COMMANDS if command.endswith("--resume"))
    assert demo == "make demo"
    with user.typing(demo, own_ray=True) as process:
        begun = user.storage / "demo" / "manifest.json"
        wait_for(lambda: begun.is_file() or process.popen.poll() is not None, 300)
        assert process.popen.poll() is None, process.err[-4000:]
        process.interrupt()
        assert process.finish() != 0  # make dies of the signal too, or reports a failed recipe
        assert "interrupted; run the same command with --resume to continue" in process.err, process.err[-4000:]
        assert "Traceback" not in process.err, process.err[-4000:]
        process.gone(60)
    with user.typing("raypipe show") as process:
        assert process.finish() == 0, process.err[-4000:]
    assert process.out.startswith(f"{user.storage / 'demo'}: not running\n") and "to do  flow: " in process.out
    with user.typing(resume) as process:
        assert process.finish() == 0, process.err[-4000:] + process.out[-4000:]
    return Finished(user.storage, process)


def make_videos(folder: Path) -> None:
    """The folders of videos that the README's commands name, each with a few short clips."""
    rng = np.random.default_rng(0)

    def clip(path, size=64, frames=12):
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn = rng.integers(0, 255, (size // 8, size // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        write_video(path, np.stack([np.roll(drawn, 2 * t, 1) for t in range(frames)]), 8)

    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        for i in range(count):
            clip(folder / "videos" / split / f"{i}.mp4")
            clip(folder / "CLEVRER" / f"video_{'validation' if split == 'val' else split}" / f"{i}.mp4", 128, 80)
    for person in range(1, 26, 4):
        clip(folder / "KTH" / f"person{person:02d}_boxing_d1_uncomp.mp4", 64, 44)
    for person in range(10):
        clip(folder / "flat" / f"person{person}.mp4")
    clip(folder / "clip.mp4")
