"""`ray job submit --working-dir . -- python -m raypipe.evaluate`, on a cluster that asks for a token."""

import json
import shutil

import pytest

from raypipe.search import records
from tests.raytools import RAY, ROOT, complete, http_status, ray_head

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.demo]


@pytest.fixture
def guarded_head(tmp_path):
    """A head that asks for a token."""
    token = tmp_path / "token"
    token.write_text("7c0ffee7" * 8)
    with ray_head(tmp_path / "head", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token)) as made:
        yield made


@pytest.fixture
def checkout(tmp_path):
    """The repository as one would clone it."""
    names = ["raypipe", "experiments", "pyproject.toml", "requirements.txt", ".gitignore"]
    for path in map(ROOT.joinpath, names):
        if path.is_dir():
            shutil.copytree(path, tmp_path / "checkout" / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, tmp_path / "checkout" / path.name)
    return tmp_path / "checkout"


def test_the_evaluation_runs_as_a_ray_job(guarded_head, checkout, finished, tmp_path):
    assert http_status(f"{guarded_head.dashboard}/api/jobs/") == 401  # without the token
    storage = tmp_path / "storage"
    shutil.copytree(finished.storage, storage)
    table = storage / "demo" / "evaluation" / "combinations.parquet"
    before = records.read_rows(table)
    runtime = json.dumps({"env_vars": {"RAYPIPE_STORAGE": str(storage)}})
    submit = [
        *RAY,
        "job",
        "submit",
        "--address",
        guarded_head.dashboard,
        "--working-dir",
        ".",
        "--runtime-env-json",
        runtime,
    ]
    process = complete(
        tmp_path / "job",
        [*submit, "--", "python", "-m", "raypipe.evaluate", "--again"],
        tmp_path / "unused",
        cwd=checkout,
        **guarded_head.variables,
    )
    assert "succeeded" in process.out + process.err
    assert f"evaluating {storage / 'demo'}" in process.out
    assert "persistence" in process.out and "climatology" in process.out
    assert str(storage / "demo" / "evaluation" / "report.html") in process.out
    after = records.read_rows(table)
    times = [[row["seconds_per_frame"] for row in rows if row["steps"]] for rows in (before, after)]
    assert times[0] != times[1]  # they were scored anew, to the same values
    scores = [{(row["split"], row["key"]): row["crps_ratio"] for row in rows} for rows in (before, after)]
    assert scores[1] == pytest.approx(scores[0], rel=1e-4)
