"""The tiny experiment with a predictor in best/: an untrained flow with a constant diffusion."""

import shutil
from dataclasses import replace

import pytest
import torch

from raypipe import checkpoint
from raypipe.evaluation.combinations import Combination
from raypipe.evaluation.run import keep_best
from raypipe.forecast.manifest import CONSTANT
from raypipe.models.components import build_component

CHOSEN = Combination("a", None, CONSTANT, flow_model="a-s0", beta=0.5, residual_std=(0.3,) * 4, decoding="anchored")


@pytest.fixture(scope="module")
def data_with_best(tiny_data, tmp_path_factory):
    """A copy of the tiny experiment with `CHOSEN` in best/."""
    storage = tmp_path_factory.mktemp("best") / "storage"
    shutil.copytree(tiny_data.workspace.storage, storage)
    data = replace(tiny_data, workspace=replace(tiny_data.workspace, storage=storage))
    model = data.experiment.model
    torch.manual_seed(1)
    module = build_component("flow", model, data.channels)
    meta = checkpoint.Meta(data.channels, component="flow", model=model)
    checkpoint.save_component(data.workspace.run("flow", "a-s0"), module, meta)
    keep_best(data, CHOSEN)
    return data
