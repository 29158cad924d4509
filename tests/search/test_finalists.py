"""What a stage hands on, as a file."""

import os

import pytest

from raypipe.config import ConfigError
from raypipe.search.finalists import Finalist, published, read_finalists, write_finalists
from raypipe.workspace.layout import Workspace

FINALISTS = [
    Finalist("flow-03", "flow-03-seed1", 0.41, (0.4, 0.42), 0.65, (0.1, 0.25), 0.1, "nll"),
    Finalist(
        "diffusion-00", "m", 0.5, (0.5,), 1.0, (), 0.0, None, flow="flow-03-seed1", published=True, handed_on=False
    ),
]


def test_finalists_come_back(tmp_path):
    place = Workspace(tmp_path, "e")
    write_finalists(place, "flow", FINALISTS)
    assert read_finalists(place, "flow") == FINALISTS
    assert os.listdir(place.folder / "flow") == ["finalists.json"]
    write_finalists(place, "flow", FINALISTS[::-1])
    assert read_finalists(place, "flow") == FINALISTS[::-1]


def test_an_unfinished_stage_says_how_to_go_on(tmp_path):
    place = Workspace(tmp_path, "mine")
    write_finalists(place, "flow", FINALISTS)
    with pytest.raises(ConfigError) as error:
        read_finalists(place, "denoiser")
    message = str(error.value)
    assert str(place.folder) in message and "\n" not in message
    assert "experiments/tune_denoiser.py --name mine --resume" in message


@pytest.mark.parametrize("content", ["", "[{", '[{"trial": "a"}]', '{"trial": 3}', '[{"trial": 3, "surprise": 1}]'])
def test_another_file_is_named(tmp_path, content):
    place = Workspace(tmp_path, "e")
    place.finalists("flow").parent.mkdir(parents=True)
    place.finalists("flow").write_text(content)
    with pytest.raises(ConfigError) as error:
        read_finalists(place, "flow")
    assert str(error.value).startswith(f"{place.finalists('flow')}: ") and "\n" not in str(error.value)


def test_the_published_default_is_found():
    assert published(FINALISTS) is FINALISTS[1]
