"""Forecasts of fixed windows, on toys whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from raypipe import config
from raypipe.data.shards import ShardWriter, open_shards
from raypipe.forecast import scoring
from raypipe.forecast.scoring import fit_magnitude, residual_std
from raypipe.forecast.windows import Forecasts, choose_windows, climatology, forecast_windows
from raypipe.sde.dynamics import ConstantDiffusion, Dynamics, evaluate

EVALUATION = config.Evaluation(members=4, horizon=3, seed=5)


class Flow(nn.Module):
    """A flow made of a function of the state's last and last but one frame, of C channels."""

    def __init__(self, function, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))  # what the device is read from
        self.function, self.channels = function, channels

    def forward(self, x, u):
        return self.function(x[:, -self.channels :], x[:, -2 * self.channels : -self.channels])


def still(channels=2):
    return Flow(lambda last, before: torch.zeros_like(last), channels)


def toy(frames, given=2):
    """Forecasts of [n, T, C, h, w]: the first `given` frames are known."""
    n = len(frames)
    return Forecasts(frames[:, :given], frames[:, given:], tuple(range(n)), (0,) * n)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def write(folder, clips):
    with ShardWriter(folder, clips_per_shard=2) as writer:
        for i, frames in enumerate(clips):
            writer.add(f"clip{i}", frames.astype(np.float16))
    return open_shards(folder)


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    span=st.integers(1, 6),
    count=st.integers(1, 30),
    seed=st.integers(0, 5),
)
def test_windows_are_distinct_in_range_and_spread_over_clips(lengths, span, count, seed):
    room = [max(0, length - span + 1) for length in lengths]
    if sum(room) == 0:
        with pytest.raises(ValueError, match="lengths"):
            choose_windows(lengths, span, count, seed)
        return
    clips, starts = choose_windows(lengths, span, count, seed)
    chosen = list(zip(clips, starts, strict=True))
    assert len(chosen) == len(set(chosen)) == min(count, sum(room))
    assert chosen == sorted(chosen)
    assert all(0 <= start < room[clip] for clip, start in chosen)
    taken = [clips.count(clip) for clip in range(len(lengths))]
    for mine, my_room in zip(taken, room, strict=True):
        assert mine == my_room or max(taken) <= mine + 1  # no clip gives one more while another still could
    assert choose_windows(lengths, span, count, seed) == (clips, starts)


def test_windows_come_from_the_seed():
    chosen = {tuple(choose_windows([40] * 5, 4, 5, seed)[1]) for seed in range(6)}
    assert len(chosen) == 6
    first = [choose_windows([40] * 5, 4, 1, seed)[0][0] for seed in range(40)]
    assert set(first) == set(range(5))  # not always the first clip


def test_forecast_windows_lie_where_they_say(tmp_path):
    clips = [np.arange(n, dtype=float).reshape(-1, 1, 1, 1) + 100 * i for i, n in enumerate((13, 9, 11))]
    shards = write(tmp_path, clips)
    experiment = config.replace(
        config.Experiment(),
        **{"model.num_input_frames": 2, "evaluation.horizon": 3, "dataset.num_frames": 5, "dataset.frame_stride": 2},
    )
    windows = forecast_windows(shards, experiment, 6, seed=0)
    assert windows.context.shape == (6, 2, 1, 1, 1) and windows.truth.shape == (6, 3, 1, 1, 1)
    assert set(windows.clips) == {0, 1, 2}
    for i, (clip, start) in enumerate(zip(windows.clips, windows.starts, strict=True)):
        expected = [100 * clip + start + 2 * k for k in range(5)]
        assert [*windows.context[i].flatten().tolist(), *windows.truth[i].flatten().tolist()] == expected
        assert windows.last[i].item() == expected[1]


def test_residual_std_is_that_of_what_the_flow_leaves_over():
    drift, left = torch.tensor([0.3, -0.2, 0.0]), torch.tensor([0.5, 0.05, 2.0])
    signs = noise(4, 7, 3, 2, 2).sign()
    frames = (drift.view(3, 1, 1) + left.view(3, 1, 1) * signs).cumsum(1)
    flow = Flow(lambda last, before: drift.view(3, 1, 1).expand_as(last), 3)
    assert residual_std(flow, toy(frames), 0.0).tolist() == pytest.approx(left.tolist(), rel=1e-4)
    exact = Flow(lambda last, before: drift.view(3, 1, 1) - 0.25 * last, 3)
    sigma = residual_std(exact, toy(torch.cat([frames[:, :1], 0.75 * frames[:, :1] + drift.view(3, 1, 1)], 1), 1), 0.0)
    assert sigma.abs().max() < 1e-5


def test_residual_std_takes_every_step_and_the_paths_width():
    frames = torch.zeros(2, 5, 1, 1, 1)
    frames[:, 4] = 3.0  # moves in the last of three steps only
    assert residual_std(still(1), toy(frames), 0.0).item() == pytest.approx(np.sqrt(9 / 3))
    rests = torch.full((2, 3, 1, 1, 1), 2.0)  # v = z' - (1 - sigma) z = sigma z
    assert residual_std(still(1), toy(rests), 0.1).item() == pytest.approx(0.2, rel=1e-5)


def test_the_multiplier_that_matches_the_noise_is_found():
    truth = toy((0.5 * noise(64, 5, 2, 2, 2)).cumsum(1))
    for base, best in ((0.5, 1.0), (0.25, 2.0), (2.0, 0.25)):
        fitted = fit_magnitude(
            lambda m, base=base: Dynamics(still(), diffusion=ConstantDiffusion(torch.full((2,), base)), beta=m),
            [0.25, 0.5, 1.0, 2.0],
            truth,
            EVALUATION,
            1,
        )
        assert fitted.value == best
        assert 0 < fitted.ratio < 0.9


def test_a_candidate_that_explodes_is_not_taken():
    truth = toy((0.5 * noise(8, 5, 2, 2, 2)).cumsum(1))

    def make(m):
        std = torch.full((2,), float("nan") if m < 1 else 0.5)
        return Dynamics(still(), diffusion=ConstantDiffusion(std))

    assert fit_magnitude(make, [0.5, 3.0], truth, EVALUATION, 1).value == 3.0


@pytest.mark.parametrize("steps", [1, 3])
def test_a_perfect_flow_scores_0_and_persistence_1(steps):
    start, speed = noise(6, 1, 2, 2, 2), noise(6, 1, 2, 2, 2, seed=1)
    windows = toy(start + speed * torch.arange(5).view(1, 5, 1, 1, 1))
    perfect = Dynamics(Flow(lambda last, before: windows_speed(last, speed), 2))
    assert scoring.score(perfect, windows, EVALUATION, steps).ratio.value < 1e-5
    persistence = scoring.score(Dynamics(still()), windows, EVALUATION, steps)
    assert persistence.ratio.value == 1.0
    half = Dynamics(Flow(lambda last, before: windows_speed(last, speed) / 2, 2))
    assert scoring.score(half, windows, EVALUATION, steps).ratio.value == pytest.approx(0.5, rel=1e-5)


def windows_speed(last, speed):
    return speed[:, 0].to(last.device)


def test_forecasts_depend_on_the_seed_and_the_windows_place_alone():
    windows = toy(noise(5, 5, 2, 2, 2))
    dynamics = Dynamics(still(), diffusion=ConstantDiffusion(torch.ones(2)))
    whole = scoring.forecast(dynamics, windows, EVALUATION, 1)
    assert whole.shape == (5, 4, 3, 2, 2, 2)
    small = scoring.forecast(dynamics, windows, replace(EVALUATION, batch_size=4), 1)
    torch.testing.assert_close(small, whole)
    torch.testing.assert_close(scoring.forecast(dynamics, windows, EVALUATION, 1, members=2), whole[:, :2])
    assert not torch.equal(scoring.forecast(dynamics, windows, replace(EVALUATION, seed=6), 1), whole)


def test_the_first_solver_is_taken_unless_another_is_given():
    windows = toy(noise(5, 5, 2, 2, 2))
    dynamics = Dynamics(Flow(lambda last, before: last.sin(), 2))
    heun = scoring.forecast(dynamics, windows, replace(EVALUATION, solvers=["heun_drift", "milstein"]), 1)
    assert torch.equal(scoring.forecast(dynamics, windows, EVALUATION, 1, solver="heun_drift"), heun)
    assert not torch.equal(scoring.forecast(dynamics, windows, EVALUATION, 1), heun)


def test_networks_are_compiled_where_the_config_says_so(monkeypatch):
    calls = []

    def spy(fields, x, u, noise):
        calls.append(len(fields))
        return evaluate(fields, x, u, noise)

    monkeypatch.setattr(scoring, "compiled_evaluate", lambda: spy)
    windows = toy(noise(5, 5, 2, 2, 2))
    dynamics = Dynamics(still(), diffusion=ConstantDiffusion(torch.ones(2)))
    plain = scoring.forecast(dynamics, windows, EVALUATION, 1)
    assert not calls
    assert torch.equal(scoring.forecast(dynamics, windows, replace(EVALUATION, compile=True), 1), plain)
    assert calls == [2] * 3


def test_climatology_is_training_frames(tmp_path):
    clips = [noise(n, 2, 2, 2, seed=n).numpy() for n in (3, 9, 6)]
    train = write(tmp_path, clips)
    windows = toy(noise(40, 5, 2, 2, 2))
    drawn = climatology(train, windows, 6, seed=0)
    assert drawn.shape == (40, 6, 3, 2, 2, 2)
    assert torch.equal(drawn[:, :, 0], drawn[:, :, 2])
    pool = torch.from_numpy(np.concatenate(clips).astype(np.float16)).float()
    equal = (drawn[:, :, 0].reshape(240, 1, -1) == pool.reshape(1, 18, -1)).all(-1)
    assert (equal.sum(1) == 1).all()
    counts = equal.sum(0)
    assert counts.min() >= 2 and counts.max() <= 35  # 13.3 each on average
    assert 20 < counts[:3].sum() < 60  # the clip of 3 frames gives 40 on average, not a third of all
    assert torch.equal(climatology(train, windows, 6, seed=0), drawn)
    assert not torch.equal(climatology(train, windows, 6, seed=1), drawn)
