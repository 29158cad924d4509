"""The README's commands, run in order in a fresh copy of the repository, as a user types them.

They are read out of the README. Only sizes are appended, so that each takes seconds; `~` is a folder of the test.
"""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from raypipe.data.video.io import write_video
from tests.raytools import ROOT, TINY, flags, started, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
COMMANDS = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]

ELSEWHERE = {
    "make test": "this very test is part of it; tests/test_readme.py checks what it runs",
    "export RAY_AUTH_MODE=token": "tests/test_jobs.py, which sets it for a head with ports of its own",
    "ray start --head": "tests/test_jobs.py, with its own ports and folder: other clusters may share the host",
    "ray job submit --working-dir . -- python -m raypipe.evaluate": "tests/test_jobs.py, on that head",
    "ray up cluster.yaml": "needs an AWS account; tests/test_cluster.py validates the file as Ray does",
}
"""Commands that are not run here, and why."""

SIZES = TINY | {
    "autoencoder.steps": 20,
    "search.flow_trials": 2,
    "search.diffusion_trials": 1,
    "search.finalist_seeds": 1,
    "evaluation.finalists": 1,
}
SEARCH = flags(SIZES)
APPENDED = {
    "make demo": [],  # takes its flags by the variable DEMO_FLAGS
    "python experiments/pipeline.py --resume": [],
    "python experiments/tune_flow.py": flags({k: v for k, v in SIZES.items() if k != "search.flow_trials"}),
    "python -m raypipe.train": SEARCH,
    "python experiments/pipeline.py --dataset.root": flags(
        {k: v for k, v in SIZES.items() if not k.startswith("demo.")} | {"dataset.image_size": 64}
    ),
}
"""What makes a command small, by its beginning."""


@dataclass
class User:
    """Somebody with a fresh copy of the repository and an empty home. done: the commands so far."""

    folder: Path
    home: Path
    done: list[str] = field(default_factory=list)

    def variables(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
        return {"HOME": str(self.home), "PATH": path, "RAYPIPE_STORAGE": "", "PYTHONPATH": str(self.folder)}

    def argv(self, command: str) -> list[str]:
        """The command through a shell, with its sizes appended."""
        beginning = max((known for known in APPENDED if command.startswith(known)), key=len, default=None)
        more = APPENDED[beginning] if beginning else []
        if command == "make demo":
            # The environment that runs the tests stands for .venv, and make takes it for up to date.
            venv = Path(sys.executable).parents[1]
            make = [
                "make",
                f"VENV={venv}",
                f"--old-file={venv}/installed",
                "DEMO_FLAGS=" + " ".join(map(quote, SEARCH)),
            ]
            return ["-c", f"import os; os.execvp('make', {[*make, 'demo']!r})"]
        line = " ".join([command, *map(quote, more)])
        return ["-c", f"import os; os.execvp('bash', ['bash', '-ec', {line!r}])"]


def quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    base = tmp_path_factory.mktemp("readme")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (base / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, base / "copy" / name)
    (base / "home").mkdir()
    make_videos(base / "copy")
    return User(base / "copy", base / "home")


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
            clip(folder / "CLEVRER" / f"video_{'validation' if split == 'val' else split}" / f"{i}.mp4", 128, 64)
    for person in range(1, 26, 4):
        clip(folder / "KTH" / f"person{person:02d}_boxing_d1_uncomp.mp4", 64, 44)
    for person in range(10):
        clip(folder / "flat" / f"person{person}.mp4")
    clip(folder / "clip.mp4")


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ELSEWHERE])
def test_command(command, user, tmp_path):
    with started(tmp_path / "log", user.argv(command), Path(), cwd=user.folder, **user.variables()) as process:
        if command == "make demo":
            # Interrupted on its way, so that the next command has something to resume.
            trials = user.home / "raypipe" / "demo" / "trials.parquet"
            wait_for(lambda: trials.is_file() or process.popen.poll() is not None, 300)
            assert process.popen.poll() is None, process.err[-4000:]
            process.interrupt()
            assert process.finish() != 0  # make dies of the signal too, or reports a failed recipe
            process.gone(60)
        else:
            assert process.finish() == 0, process.err[-4000:] + process.out[-4000:]
    assert "Traceback" not in process.err, process.err[-4000:]
    user.done.append(command)


def test_it_left_what_the_readme_says(user):
    demo, mine = (user.home / "raypipe" / name for name in ("demo", "mine"))
    for folder in (demo, mine):
        for name in ("config.yaml", "manifest.json", "study.log", "trials.parquet", "evaluation/combinations.parquet",
                     "evaluation/report.html", "samples", "best/manifest.json"):  # fmt: skip
            assert (folder / name).exists(), name
    assert (demo / "flow" / "f-01-nll" / "model.safetensors").is_file()

    assert (user.folder / "clip-prediction.mp4").is_file() and (user.folder / "clip-prediction.gif").is_file()


def test_every_command_is_run_or_listed(user):
    assert user.done == [command for command in COMMANDS if command not in ELSEWHERE]
    assert set(ELSEWHERE) <= set(COMMANDS)
