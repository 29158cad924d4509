"""The sizes of the networks of a stage are those of the networks that its trials train."""

import pytest

from raypipe.config import COMPONENTS
from raypipe.search.sizes import stage_networks
from raypipe.training.component import ComponentTraining
from raypipe.workspace.layout import ParentModels
from tests.distributed.test_measuring import save_flow
from tests.raytools import tiny


@pytest.mark.parametrize("component", COMPONENTS)
def test_they_are_those_of_real_trainings(own_data, component):
    parents = ParentModels(flow=save_flow(own_data))
    axes = {f"search.{component}.axes": {"model.depth": {"low": 1, "high": 3}, "model.backbone": {"choices": ["conv"]}}}
    found = stage_networks(tiny(**axes, **{"search.joint.trials": 1}), component, own_data.channels)
    assert found.smallest.parameters == found.default.parameters < found.largest.parameters
    for network, depth in ((found.smallest, 1), (found.largest, 3)):
        experiment = network.experiment
        assert (experiment.train.component, experiment.model.depth) == (component, depth)
        module = ComponentTraining(experiment, own_data, parents).module
        assert sum(p.numel() for p in module.parameters()) == network.parameters
        assert network.weights == 4 * network.parameters


def test_combinations_that_no_trial_can_have_are_left_out():
    axes = {"model.num_heads": {"choices": [2, 3]}, "model.inner_dim": {"choices": [8, 12]}}
    found = stage_networks(tiny(**{"model.inner_dim": 12, "search.flow.axes": axes}), "flow", 4)
    ends = [(n.experiment.model.num_heads, n.experiment.model.inner_dim) for n in (found.smallest, found.largest)]
    assert ends[0] == (2, 8) and ends[1][1] == 12
