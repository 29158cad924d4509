"""The moving average of weights, against its formula."""

import pytest
import torch
from torch import nn

from raypipe.training.loop import Average


def test_it_is_its_formula_with_a_short_memory_at_first():
    live = nn.Linear(1, 1, bias=False)
    live.weight.data.fill_(8.0)
    average = Average(live, decay=0.15)
    found = []
    for step, value in enumerate((3.0, 1.0, 2.0)):
        live.weight.data.fill_(value)
        average.update(step)
        found.append(average.module.weight.item())
    first = 0.1 * 8 + 0.9 * 3  # (1 + 0) / (10 + 0) is below the decay, later ones are not
    second = 0.15 * first + 0.85 * 1
    assert found == pytest.approx([first, second, 0.15 * second + 0.85 * 2])
    assert live.weight.item() == 2.0


def test_statistics_are_copied_and_the_average_stays_in_eval_mode():
    live = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    average = Average(live, decay=0.9)
    live.train()(torch.randn(8, 2) + 5)
    average.update(0)
    assert not average.module.training and live.training
    for name, buffer in live.named_buffers():
        assert torch.equal(dict(average.module.named_buffers())[name], buffer), name
    assert not any(p.requires_grad for p in average.module.parameters())
