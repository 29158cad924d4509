"""The README's commands, run in order in a fresh copy of the repository, as a user types them."""

import pytest
import torch

from tests.readmetools import COMMANDS, PYTHON

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.demo]

ELSEWHERE = {
    "make test": "this very test is part of it; tests/test_readme.py checks what it runs",
    "export RAY_AUTH_MODE=token": "tests/test_jobs.py, which sets it for a head with ports of its own",
    "ray start --head": "tests/test_jobs.py, with its own ports and folder: other clusters may share the host",
    "ray job submit --working-dir . -- python -m raypipe.evaluate": "tests/test_jobs.py, on that head",
    "ray up cluster.yaml": "tests/cloud/test_cluster_yaml.py, on an emulated EC2 (`make test-cluster`)",
}
"""Commands that are not run here, and why."""


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ELSEWHERE])
def test_command(command, finished, user):
    if command in user.done:  # `finished` ran it
        return
    with user.typing(command) as process:
        assert process.finish() == 0, process.err[-4000:] + process.out[-4000:]
    assert "Traceback" not in process.err, process.err[-4000:]


def test_what_it_asks_in_python(finished, monkeypatch):
    monkeypatch.setenv("HOME", str(finished.storage.parent))
    given = torch.rand(1, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert len(PYTHON) == 2
    for code, shape in zip(PYTHON, ([1, 1, 8, 3, 32, 32], [1, 16, 32, 3, 32, 32]), strict=True):
        exec(code, names := {"frames": given})
        assert list(names["future"].shape) == shape


def test_it_left_what_the_readme_says(user):
    demo, mine = (user.home / "raypipe" / name for name in ("demo", "mine"))
    for folder in (demo, mine):
        for name in (
            "config.yaml",
            "manifest.json",
            "study.log",
            "trials.parquet",
            "samples",
            "best/manifest.json",
            "evaluation/combinations.parquet",
            "evaluation/protocol.json",
            "evaluation/report.html",
        ):
            assert (folder / name).exists(), name
    assert (demo / "flow" / "f-01-nll" / "model.safetensors").is_file()

    assert (user.folder / "clip-prediction.mp4").is_file() and (user.folder / "clip-prediction.gif").is_file()


def test_every_command_is_run_or_listed(user):
    assert user.done == [command for command in COMMANDS if command not in ELSEWHERE]
    assert set(ELSEWHERE) <= set(COMMANDS)
