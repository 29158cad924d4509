"""The training of joint networks on the score of their forecasts."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from raypipe import config
from raypipe.config import RIVALS
from raypipe.data.batches import TrainBatch
from raypipe.metrics.ensemble import energy_score, fair_crps
from raypipe.models.components import Joint, build_component
from raypipe.sde.brownian import forecast_keys
from raypipe.sde.rollout import integrate, rollout
from raypipe.sde.solvers import SOLVERS
from raypipe.training.component_task import ComponentTask, component_task
from raypipe.training.loop import Task
from tests.models.small import awake

K, T, C, H, W = 2, 3, 2, 4, 4
NOISES = pytest.mark.parametrize("noise", ["additive", "input", *RIVALS])


def settings(noise: str, **values: object) -> config.Experiment:
    base = {
        "train.component": "joint",
        "train.steps": 10,
        "train.warmup_steps": 0,
        "train.forecast_frames": T,
        "model.num_input_frames": K,
        "model.inner_dim": 16,
        "model.backbone": "conv",
        "sde.noise": noise,
    }
    return config.replace(config.Experiment(), **base | values)


def network(experiment: config.Experiment) -> Joint:
    torch.manual_seed(0)
    module = build_component("joint", experiment.model, C, experiment.sde.noise)
    assert isinstance(module, Joint)
    return awake(module)  # type: ignore[return-value]


def task_of(module: Joint, experiment: config.Experiment) -> Task:
    return component_task(module, experiment, noise_scale=module.scale if module.interpolates else None)


def batch(step: int, count: int = 6, offset: int = 0, total: int = 6) -> TrainBatch:
    data = torch.randn(total, K + T, C, H, W, generator=torch.Generator().manual_seed(step))
    return TrainBatch(data[offset : offset + count], torch.zeros(count, dtype=torch.long), total, offset, step)


@NOISES
def test_the_score_takes_over_when_its_share_begins(noise: str) -> None:
    experiment = settings(noise, **{"train.score_share": 0.5})
    module = network(experiment)
    losses = {}
    for loss in ("crps", "energy", "crps_energy"):
        task = task_of(module, config.replace(experiment, **{"train.loss": loss}))
        losses[loss] = [task.loss(batch(step)).item() for step in (4, 5)]
    assert losses["crps"][0] == losses["energy"][0] == losses["crps_energy"][0]  # the velocity
    assert losses["crps_energy"][1] == pytest.approx(losses["crps"][1] + losses["energy"][1], rel=1e-5)
    assert losses["crps"][1] != losses["energy"][1]


@NOISES
@pytest.mark.parametrize("steps", [1, 2])
def test_what_is_scored_are_the_forecasts_of_the_solver(noise: str, steps: int) -> None:
    """Their gradient is that of finite differences."""
    experiment = settings(noise, **{"train.score_share": 1.0, "evaluation.steps": [steps]})
    module = network(experiment).double()
    task = task_of(module, experiment)
    given = batch(9)
    given = replace(given, data=given.data.double())
    task.loss(given).backward()
    weight = module.network.conv_in.weight
    assert weight.grad is not None
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    slope, small = (weight.grad * direction).sum().item(), 1e-4
    found = []
    with torch.no_grad():
        for sign in (1, -1):
            weight.add_(sign * small * direction)
            found.append(task.loss(given).item())
            weight.sub_(sign * small * direction)
    # The loss is computed in single precision.
    assert (found[0] - found[1]) / (2 * small) == pytest.approx(slope, rel=0.02, abs=1e-3)


@NOISES
def test_ranks_draw_the_noise_of_the_global_batch(noise: str) -> None:
    experiment = settings(noise, **{"train.score_share": 0.5})
    task = task_of(network(experiment), experiment)
    for step in (0, 9):
        whole = task.loss(batch(step)).item()
        parts = [task.loss(batch(step, count, offset)).item() for count, offset in ((4, 0), (2, 4))]
        assert (4 * parts[0] + 2 * parts[1]) / 6 == pytest.approx(whole, rel=1e-5)


@NOISES
def test_a_forecast_is_that_of_rollout(noise: str) -> None:
    module = network(settings(noise)).eval()
    context = batch(0).data[:, :K]
    made = rollout(module.dynamics(), context, T, steps=2, members=1, seed=3)
    keys = forecast_keys(3, torch.arange(6), torch.zeros(6, dtype=torch.long))
    step = SOLVERS["euler_maruyama"].step
    torch.testing.assert_close(integrate(module.dynamics(), context, keys, range(T), step, 2), made[:, 0])


def test_with_noise_as_input_members_differ_and_beta_scales_it() -> None:
    module = network(settings("input")).eval()
    context = batch(0).data[:, :K]

    def members(beta: float) -> torch.Tensor:
        return rollout(module.dynamics(beta=beta), context, T, steps=1, members=4, seed=0)

    assert not torch.equal(members(1.0)[:, 0], members(1.0)[:, 1])
    assert torch.equal(members(0.0)[:, 0], members(0.0)[:, 1])
    assert 0 < members(0.1).std(1).mean() < members(1.0).std(1).mean()


@NOISES
@pytest.mark.parametrize("solver", list(SOLVERS))
def test_in_between_frames_do_not_change_the_others(noise: str, solver: str) -> None:
    dynamics = network(settings(noise)).eval().dynamics()
    context = batch(0).data[:, :K]
    whole = rollout(dynamics, context, T, steps=2, members=2, seed=0, solver=solver)
    finer = rollout(dynamics, context, T, steps=2, members=2, seed=0, solver=solver, interpolate=4)
    assert torch.equal(finer[:, :, 3::4], whole)


def test_one_step_of_an_additive_joint_network_is_one_evaluation() -> None:
    counts = {}
    for noise in ("additive", "input"):
        dynamics = network(settings(noise)).dynamics()
        counts[noise] = {name: dynamics.evaluations(solver) for name, solver in SOLVERS.items()}
    assert counts["additive"] == {"euler_maruyama": 1, "milstein": 2, "heun_drift": 2}
    assert counts["input"] == {"euler_maruyama": 1, "milstein": 1, "heun_drift": 2}


def test_the_velocity_teaches_many_steps_and_the_score_teaches_one() -> None:
    """All elements of the next frame are those of the last one plus the same standard normal number."""
    values = {"train.forecast_frames": 1, "train.forecast_members": 4, "train.score_share": 0.5, "train.steps": 300}
    experiment = settings("input", **values)
    module = network(experiment)
    task, optimizer = task_of(module, experiment), torch.optim.Adam(module.parameters(), 3e-3)

    def train(steps: range) -> None:
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            context = 0.1 * torch.randn(32, K, C, H, W, generator=generator)
            move = torch.randn(32, 1, 1, 1, generator=generator)
            data = torch.cat([context, (context[:, -1] + move)[:, None]], dim=1)
            given = TrainBatch(data, torch.zeros(32, dtype=torch.long), 32, 0, step)
            optimizer.zero_grad()
            task.loss(given).backward()
            optimizer.step()

    def spread(steps: int) -> float:
        context = 0.1 * torch.randn(64, K, C, H, W, generator=torch.Generator().manual_seed(9))
        made = rollout(module.eval().dynamics(), context, 1, steps=steps, members=8, seed=0)
        return made[:, :, 0].std(1).mean().item()

    train(range(150))
    velocity = {steps: spread(steps) for steps in (1, 8)}
    train(range(150, 300))
    assert velocity[1] < 0.75 < velocity[8]
    assert 0.8 < spread(1) < 1.2


def diffusion_task(share: float, still: bool) -> tuple[Task, Task, nn.Module]:
    """The score of a diffusion as its loss, its nll, and its frozen flow. still: the flow is zero everywhere."""
    values = {"train.component": "diffusion", "train.loss": "crps", "train.noise_std": 0.0, "train.score_share": share}
    experiment = settings("additive", **values, **{"train.forecast_frames": 1, "model.time_input": False})
    torch.manual_seed(0)
    flow = awake(build_component("flow", experiment.model, C)).requires_grad_(False)
    for parameter in flow.parameters() if still else ():
        parameter.zero_()
    module = awake(build_component("diffusion", experiment.model, C))
    nll = ComponentTask(module, config.replace(experiment, **{"train.loss": "nll"}), flow=flow)
    return component_task(module, experiment, flow=flow), nll, flow


def test_before_its_score_a_diffusion_is_trained_on_its_likelihood() -> None:
    task, nll, _ = diffusion_task(share=0.5, still=False)
    given = batch(4)
    windows = replace(given, data=given.data[:, : K + 1])
    assert task.loss(windows).item() == nll.loss(windows).item()
    scored = replace(windows, step=5)
    assert task.loss(scored).item() != nll.loss(scored).item()


def test_the_score_of_forecasts_with_a_frozen_flow_finds_the_deviation_of_its_residual() -> None:
    """The flow predicts no movement, and successive frames differ by normal noise."""
    task, _, flow = diffusion_task(share=1.0, still=True)
    module = task.module
    optimizer = torch.optim.Adam(module.parameters(), 5e-3)
    for step in range(200):
        data = torch.randn(32, K + 1, C, H, W, generator=torch.Generator().manual_seed(step))
        data[:, K] = data[:, K - 1] + 0.3 * data[:, K]
        loss = task.loss(TrainBatch(data, torch.zeros(32, dtype=torch.long), 32, 0, 9))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(parameter.grad is None for parameter in flow.parameters())
    state = torch.randn(64, K * C, H, W, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert module(state).mean().item() == pytest.approx(0.3, rel=0.1)


@pytest.mark.parametrize("fairness", [0.0, 0.5, 1.0])
def test_almost_fair_scores_lie_between_the_plain_and_the_fair_one(fairness: float) -> None:
    generator = torch.Generator().manual_seed(0)
    members, truth = (torch.randn(5, *size, C, H, W, generator=generator) for size in ((3,), ()))
    pairs = (members[:, :, None] - members[:, None]).abs().sum((1, 2))
    plain = (members - truth[:, None]).abs().mean(1) - pairs / (2 * 9)
    expected = fairness * fair_crps(members, truth) + (1 - fairness) * plain
    torch.testing.assert_close(fair_crps(members, truth, fairness), expected)


def test_the_energy_score_is_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    members, truth = (torch.randn(5, *size, C, H, W, generator=generator) for size in ((3,), ()))

    def norm(x: torch.Tensor) -> torch.Tensor:
        return x.norm() / math.sqrt(x.numel())

    for i in range(5):
        error = sum(norm(m - truth[i]) for m in members[i]) / 3
        spread = sum(norm(members[i, a] - members[i, b]) for a, b in ((0, 1), (0, 2), (1, 2))) / 6
        torch.testing.assert_close(energy_score(members, truth)[i], error - spread)
    same = members[:, :1].expand(-1, 2, -1, -1, -1).clone().requires_grad_()
    energy_score(same, truth).sum().backward()
    assert same.grad is not None and same.grad.isfinite().all()
