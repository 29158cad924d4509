"""A training step of joint networks at the sizes for KTH and CLEVRER."""

import pytest
import torch

from raypipe import config
from raypipe.data.batches import TrainBatch
from raypipe.models.components import build_component
from raypipe.training.component_task import component_task

REFERENCE = {"model.backbone": "transformer", "model.inner_dim": 768, "model.depth": 4, "model.mid_depth": 5}
CONV = {"model.backbone": "conv", "model.inner_dim": 256, "model.depth": 3, "model.mid_depth": 5}


@pytest.mark.slow
@pytest.mark.parametrize("noise", [pytest.param("additive", marks=pytest.mark.long), "input"])
@pytest.mark.parametrize("size", [8, pytest.param(16, marks=pytest.mark.long)])
@pytest.mark.parametrize("model", [REFERENCE, CONV], ids=["98M", "conv"])
def test_a_step_of_the_score(model: dict[str, object], size: int, noise: str) -> None:
    values = {"train.component": "joint", "train.score_share": 1.0, "sde.noise": noise, "model.num_heads": 8}
    experiment = config.replace(config.Experiment(), **model, **values)
    torch.manual_seed(0)
    module = build_component("joint", experiment.model, 4, experiment.sde.noise)
    optimizer = torch.optim.SGD(module.parameters(), 1e-3)
    data = torch.randn(1, 6, 4, size, size, generator=torch.Generator().manual_seed(1))
    batch = TrainBatch(data, torch.zeros(1, dtype=torch.long), 1, 0, 0)
    scale = module.scale if noise == "input" else None
    task, losses = component_task(module, experiment, noise_scale=scale), []
    for _ in range(2):
        optimizer.zero_grad()
        loss = task.loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert sum(p.numel() for p in module.parameters()) == pytest.approx(98e6 if model is REFERENCE else 14e6, rel=0.1)
