"""`python -m raypipe.evaluate --i3d-weights FILE`: a bad file is refused before old scores are deleted."""

import pytest

from raypipe import cli, evaluate
from raypipe.config import COMPONENTS
from raypipe.evaluation.perceptual.weights import ACCEPTED
from raypipe.search.finalists import Finalist, write_finalists


@pytest.mark.parametrize("kind", list(ACCEPTED))
def test_bad_weights_end_the_command_before_anything_changes(own_data, capsys, monkeypatch, kind, tmp_path):
    workspace = own_data.workspace
    for component in COMPONENTS:
        write_finalists(workspace, component, [Finalist("a", "a-s0", 0.5, (0.5,), 1.0, (0.3,) * 4, 0.1, None)])
    kept = workspace.evaluation / "combinations.parquet"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("earlier scores")
    monkeypatch.chdir(tmp_path)
    argv = ["--storage", str(workspace.storage), "--name", "tiny", "--again", f"--{kind}-weights", "none.pt"]
    assert cli.run(evaluate.main, evaluate.PROG, argv) == cli.BAD_INPUT
    err = capsys.readouterr().err
    path = tmp_path.resolve() / "none.pt"
    said = f"evaluation.{kind}_weights: {path}: no such file; accepted: {ACCEPTED[kind]}"
    assert err == f"raypipe.evaluate: error: {said}\n"
    assert kept.read_text() == "earlier scores"
