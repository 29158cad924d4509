"""The notebook: its cells run one after another, from a video to a plot, and it is stored without their outputs."""

import json

import pytest

from tests.raytools import ROOT, started

NOTEBOOK = json.loads((ROOT / "experiments" / "notebook.ipynb").read_text())
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
SHOW = """
assert future.shape == (1, members, horizon, 3, SIZE, SIZE) and search.state == "finished"
assert (work / "raypipe" / "video" / "best" / "README.md").is_file()
for number in plt.get_fignums():
    plt.figure(number).savefig(f"figure-{number}.png")
"""


def test_it_is_stored_without_outputs():
    assert NOTEBOOK["nbformat"] == 4 and CODE
    for cell in CODE:
        assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.long
def test_its_cells_run_in_order(head, tmp_path):
    script = tmp_path / "notebook.py"
    script.write_text(
        "\n\n".join("".join(cell["source"]) for cell in CODE) + SHOW.replace('f"figure', f'f"{tmp_path}/figure')
    )
    variables = head.variables | {"MPLBACKEND": "agg", "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    with started(tmp_path / "log", [script], tmp_path, cwd=ROOT / "experiments", **variables) as process:
        assert process.finish() == 0, process.err[-4000:]
    assert len(list(tmp_path.glob("figure-*.png"))) == 2
