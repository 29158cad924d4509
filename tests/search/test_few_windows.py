"""The word where the data are too few for the trainings of a search."""

from raypipe import config
from raypipe.config import Experiment
from raypipe.search.pipeline import few_windows

JOINT = {"search.joint.refit_steps": 2000, "train.batch_size": 16}


def test_few_clips_are_said_to_be_few():
    said = few_windows([26] * 42, config.replace(Experiment(), **JOINT))  # 42 x 22 windows of 5 frames
    assert "924 windows of 5 frames, each seen 35 times in search.joint.refit_steps 2000" in said
    steps = int(said.split("--search.joint.refit_steps ")[1].split(",")[0])
    assert steps == 1732  # 30 times 924 windows, in batches of 16
    assert few_windows([26] * 42, config.replace(Experiment(), **JOINT | {"search.joint.refit_steps": steps})) is None


def test_the_demo_has_enough():
    assert few_windows([24] * 400, Experiment()) is None
