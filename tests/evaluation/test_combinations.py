"""The combinations of what the stages hand on, and their scores on the tiny experiment."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from raypipe import checkpoint, config
from raypipe.data.frames import to_float
from raypipe.evaluation.combinations import (
    Combination,
    CombinationScorer,
    combinations,
    default_combination,
    distinct,
    spread,
)
from raypipe.forecast import scoring
from raypipe.forecast.ceiling import measure_ceiling
from raypipe.forecast.decoding import DECODINGS, decode
from raypipe.forecast.manifest import CONSTANT, JOINT
from raypipe.forecast.windows import forecast_windows, true_frames
from raypipe.metrics import ensemble
from raypipe.models.components import build_component
from raypipe.sde.dynamics import ConstantDiffusion, Dynamics
from raypipe.sde.rollout import rollout
from raypipe.search.finalists import NO_DENOISER, Finalist
from raypipe.workspace.dataset import ExperimentData

STD = (0.3, 0.4, 0.5, 0.6)
PERSISTENCE = Combination(None, None, None, baseline="persistence")
CLIMATOLOGY = Combination(None, None, None, baseline="climatology")
RECONSTRUCTION = Combination(None, None, None, baseline="reconstruction", decoding="plain")


def finalist(name, flow=None, **more):
    """A finalist whose model is told from its trial by a seed's number."""
    return Finalist(name, f"{name}-s1", 0.5, (0.5,), 1.0, STD, 0.1, None, flow=flow, **more)


FLOWS = [finalist("f1"), finalist("f4", handed_on=False, published=True), finalist("f2"), finalist("f3")]
DENOISERS = [
    finalist("d3", handed_on=False, published=True),
    finalist("d1"),
    finalist(NO_DENOISER),
    finalist("d2"),
]
DIFFUSIONS = [
    finalist("g5", flow="f2-s1", handed_on=False),
    finalist("g1", flow="f1-s1"),
    finalist("g2", flow="f2-s1"),
    finalist("g3", flow="f1-s1"),
    finalist("g4", flow="f1-s1"),
    finalist("g6", flow="f4-s1", handed_on=False, published=True),
]


def settings(**values):
    return config.replace(
        config.Experiment(), **{"evaluation.alphas": [1.0, 1.5], "evaluation.steps": [1, 2], **values}
    )


def parts(found):
    return [(c.flow, c.denoiser, c.diffusion, c.alpha, c.steps) for c in found]


def test_combinations_of_the_top_two():
    found = combinations(FLOWS, DENOISERS, DIFFUSIONS, [], settings(), 2)
    expected = {
        (f, d, g, alpha, steps)
        for f, own in (("f1", ("g1", "g3")), ("f2", ("g2",)))
        for g in (CONSTANT, *own)
        for d, alphas in ((None, (1.0,)), ("d1", (1.0, 1.5)))
        for alpha in alphas
        for steps in (1, 2)
    }
    assert len(found) == len(expected) == (3 + 2) * 3 * 2
    assert set(parts(found)) == expected
    for c in found:
        assert c.flow_model == f"{c.flow}-s1" and c.residual_std == STD
        assert c.denoiser_model == (f"{c.denoiser}-s1" if c.denoiser else None)
        assert c.diffusion_model == (None if c.diffusion == CONSTANT else f"{c.diffusion}-s1")
        assert c.beta is None and c.baseline is None


def test_every_solver_that_is_asked_for():
    solvers = ["heun_drift", "euler_maruyama"]
    found = combinations(FLOWS, DENOISERS, DIFFUSIONS, [], settings(**{"evaluation.solvers": solvers}), 2)
    plain = combinations(FLOWS, DENOISERS, DIFFUSIONS, [], settings(), 2)
    assert {c for c in found if c.solver == "euler_maruyama"} == set(plain)
    assert {replace(c, solver="euler_maruyama") for c in found if c.solver == "heun_drift"} == set(plain)
    assert len(found) == 2 * len(plain) == len({c.key for c in found})


def test_more_than_two_denoisers_are_tried_where_k_allows():
    denoisers = {c.denoiser for c in combinations(FLOWS, DENOISERS, DIFFUSIONS, [], settings(), 3)}
    assert denoisers == {None, "d1", "d2"}  # "no denoiser" is one of the three


def test_the_best_alone():
    found = combinations(FLOWS, DENOISERS, DIFFUSIONS, [], settings(**{"evaluation.steps": [3]}), 1)
    assert set(parts(found)) == {
        ("f1", d, g, alpha, 3)
        for d, alphas in ((None, (1.0,)), ("d1", (1.0, 1.5)))
        for alpha in alphas
        for g in (CONSTANT, "g1")
    }


def test_without_denoisers_or_diffusions_the_flow_goes_alone():
    found = combinations(FLOWS[:1], DENOISERS[2:3], [], [], settings(**{"evaluation.steps": [1]}), 2)
    assert parts(found) == [("f1", None, CONSTANT, 1.0, 1)]


def test_keys_tell_combinations_apart_but_not_their_betas():
    found = combinations(FLOWS, DENOISERS, DIFFUSIONS, [], settings(), 3)
    everything = [
        *found,
        default_combination(FLOWS, DENOISERS, DIFFUSIONS, 1),
        default_combination(FLOWS, DENOISERS, DIFFUSIONS, 2),
        PERSISTENCE,
        CLIMATOLOGY,
        replace(found[0], baseline="flow", diffusion=None),
    ]
    assert len({c.key for c in everything}) == len(everything)
    assert replace(found[0], beta=0.3).key == found[0].key


def test_the_published_default():
    found = default_combination(FLOWS, DENOISERS, DIFFUSIONS, 2)
    assert parts([found]) == [("f4", "d3", "g6", 1.0, 2)]
    assert (found.beta, found.baseline) == (1.0, "published")
    assert (found.flow_model, found.denoiser_model, found.diffusion_model) == ("f4-s1", "d3-s1", "g6-s1")


@pytest.fixture(scope="module")
def data(tiny_data, tmp_path_factory):
    """The tiny experiment with two flows, a denoiser and a diffusion of random weights."""
    storage = tmp_path_factory.mktemp("combination") / "storage"
    shutil.copytree(tiny_data.workspace.storage, storage)
    experiment = config.replace(
        tiny_data.experiment, **{"evaluation.multipliers": [0.2, 0.7], "evaluation.betas": [0.1, 0.3]}
    )
    found = ExperimentData(experiment, replace(tiny_data.workspace, storage=storage))
    for seed, (component, name) in enumerate(
        [("flow", "f1-s1"), ("flow", "f2-s1"), ("denoiser", "d1-s1"), ("diffusion", "g1-s1")]
    ):
        torch.manual_seed(seed)
        module = build_component(component, experiment.model, found.channels)
        meta = checkpoint.Meta(found.channels, component=component, model=experiment.model)
        checkpoint.save_component(found.workspace.run(component, name), module, meta)
    return found


@pytest.fixture(scope="module")
def scorer(data):
    return CombinationScorer(data, "val", 6)


def made(flow="f1", denoiser=None, diffusion=CONSTANT, **more):
    given = Combination(
        flow,
        denoiser,
        diffusion,
        flow_model=f"{flow}-s1",
        denoiser_model=f"{denoiser}-s1" if denoiser else None,
        diffusion_model=None if diffusion in (None, CONSTANT) else f"{diffusion}-s1",
        residual_std=STD,
    )
    return replace(given, **more)


def test_persistence_has_ratio_1(data, scorer):
    result = scorer.score(PERSISTENCE, decode=True)
    assert result.score.ratio.value == 1.0
    assert result.score.members == 1
    assert result.pixels.crps_ratio == pytest.approx(1.0, abs=1e-6)
    assert (result.nfe_per_frame, result.seconds_per_frame) == (0, 0.0)
    for found in (result.fields, result.pixels):
        assert (found.energy_ratio, found.variogram_ratio) == pytest.approx((1.0, 1.0))
    # PSNR by hand, from the frames in the shards: the last given one, K = 2, against the three that follow
    windows = forecast_windows(data.latents("val"), data.experiment, 6, data.experiment.evaluation.seed)
    by_hand = []
    for clip, start in zip(windows.clips, windows.starts, strict=True):
        frames = data.frames("val").clip(clip).astype(np.float64)
        for t in range(start + 2, start + 5):
            by_hand.append(10 * np.log10(255**2 / np.mean((frames[t] - frames[start + 1]) ** 2)))
    assert result.pixels.psnr == pytest.approx(np.mean(by_hand), rel=1e-4)
    assert 0 < result.pixels.ssim < 1


def test_perfect_latents_score_what_the_autoencoder_loses(data, scorer):
    result = scorer.score(RECONSTRUCTION, decode=True)
    assert (result.score.ratio.value, result.score.spread_skill, result.nfe_per_frame) == (0, 0, 0)
    bound = measure_ceiling(data).perfect["plain"]
    found = (result.pixels.crps_ratio, result.pixels.psnr, result.pixels.ssim)
    assert found == pytest.approx((bound.crps_ratio_pixels, bound.psnr, bound.ssim), rel=1e-5)
    assert scorer.score(replace(RECONSTRUCTION, decoding="copied-0.2"), decode=True).pixels != result.pixels


def test_true_frames_are_those_of_the_windows(data):
    windows = forecast_windows(data.latents("val"), data.experiment, 6, 0)
    truth, last = true_frames(data, "val", windows)
    assert truth.shape == (6, 3, 32, 32, 3) and last.shape == (6, 32, 32, 3)
    autoencoder = checkpoint.load_autoencoder(data.workspace.autoencoder)
    with torch.no_grad():
        encoded = autoencoder.encode(to_float(truth).flatten(0, 1)).view_as(windows.truth)
        torch.testing.assert_close(encoded, windows.truth, atol=0.06, rtol=0.02)  # the cache is in float16
        torch.testing.assert_close(autoencoder.encode(to_float(last)), windows.last, atol=0.06, rtol=0.02)


def test_climatology(data, scorer):
    result = scorer.score(CLIMATOLOGY, decode=True)
    assert result.score.members == 5
    assert np.isfinite([result.score.ratio.value, result.score.spread_skill]).all()
    assert np.isfinite([result.pixels.crps_ratio, result.pixels.psnr, result.pixels.ssim]).all()
    assert result.nfe_per_frame == 0
    assert len(result.fields.ranks.frequencies) == len(result.pixels.ranks.frequencies) == 6
    assert (result.score.variance[:, :1] == result.score.variance).all()  # the same frames at every step


def test_decoding_a_frame_that_is_shown_at_every_step(data):
    autoencoder = checkpoint.load_autoencoder(data.workspace.autoencoder)
    one = torch.randn(3, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    shown = decode(autoencoder, distinct(one.expand(-1, 5, -1, -1, -1)))
    assert shown.shape == (3, 1, 3, 32, 32)
    every = one.repeat(1, 5, 1, 1, 1)
    torch.testing.assert_close(shown.expand(-1, 5, -1, -1, -1), decode(autoencoder, distinct(every)))


def test_the_decoding_is_chosen_for_each_combination_and_then_kept(data, scorer):
    found = scorer.score(made(beta=0.5), decode=True)
    names = {"plain", "anchored", "copied-0.2", found.combination.decoding}
    ratios = {d: scorer.score(made(beta=0.5, decoding=d), decode=True).pixels for d in names}
    assert found.pixels == ratios[found.combination.decoding]  # all six windows are those of the choice
    assert found.combination.decoding in DECODINGS
    assert found.pixels.energy_ratio <= 1.01 * min(p.energy_ratio for p in ratios.values())
    assert found.pixels.crps_ratio <= ratios["plain"].crps_ratio
    only = config.replace(data.experiment, **{"evaluation.decoding": "anchored"})
    fixed = CombinationScorer(replace(data, experiment=only), "val", 6).score(made(beta=0.5), decode=True)
    assert fixed.combination.decoding == "anchored" and fixed.pixels == ratios["anchored"]
    assert scorer.score(CLIMATOLOGY, decode=True).combination.decoding == "plain"
    assert scorer.score(PERSISTENCE, decode=True).combination.decoding is None


def test_windows_of_the_choice_are_spread_over_all():
    assert list(spread(6, 32)) == list(range(6))
    assert list(spread(64, 32)) == list(range(0, 64, 2))
    assert list(spread(65, 32)) == list(range(0, 65, 3))


def test_magnitudes_come_from_their_lists(scorer):
    assert scorer.fit(made()).beta in (0.2, 0.7)
    assert scorer.fit(made(diffusion="g1")).beta in (0.1, 0.3)
    assert scorer.fit(made(beta=0.55)).beta == 0.55
    for fixed in (PERSISTENCE, CLIMATOLOGY, made(diffusion=None)):
        assert scorer.fit(fixed) == fixed


def test_the_magnitude_is_fitted_on_training_windows(data, monkeypatch):
    """The best of the list, by its score on the windows that the fit is said to use."""
    experiment = data.experiment
    evaluation = experiment.evaluation
    windows = forecast_windows(data.latents("train"), experiment, evaluation.fit_windows, evaluation.seed + 1)
    flow = checkpoint.load_component(data.workspace.run("flow", "f1-s1"))
    ratios = {}
    for beta in (0.2, 0.7):
        dynamics = Dynamics(flow, diffusion=ConstantDiffusion(beta * torch.tensor(STD)))
        members = rollout(dynamics, windows.context, 3, steps=2, members=3, seed=evaluation.seed)
        ratios[beta] = ensemble.score(members, windows.truth, windows.last).ratio.value
    used, fit_magnitude = [], scoring.fit_magnitude
    monkeypatch.setattr(scoring, "fit_magnitude", lambda *given: used.append(given[2]) or fit_magnitude(*given))
    assert CombinationScorer(data, "test", 2).fit(made(steps=2)).beta == min(ratios, key=ratios.get)
    assert torch.equal(used[0].truth, windows.truth)


@pytest.mark.parametrize(
    ("combination", "calls"),
    [
        (made(diffusion=None), 1),
        (made(beta=0.5), 1),  # a constant costs no call
        (made(denoiser="d1", beta=0.5), 2),
        (made(denoiser="d1", diffusion="g1", beta=0.5), 3),
        (made(denoiser="d1", diffusion="g1", beta=0.5, alpha=0.0), 2),
    ],
)
def test_evaluations_a_frame(scorer, combination, calls):
    for steps in (1, 2):
        result = scorer.score(replace(combination, steps=steps), decode=False)
        assert result.nfe_per_frame == calls * steps
        assert result.seconds_per_frame > 0
        assert result.pixels is None
        assert np.isfinite(result.score.crps).all()


def test_solvers_cost_what_they_evaluate(scorer):
    full = made(denoiser="d1", diffusion="g1", beta=0.5, steps=2)
    for solver, calls in (("euler_maruyama", 3), ("milstein", 4), ("heun_drift", 5)):
        assert scorer.score(replace(full, solver=solver), decode=False).nfe_per_frame == 2 * calls
    assert scorer.score(made(diffusion=None, solver="heun_drift"), decode=False).nfe_per_frame == 2


def test_every_part_of_a_combination_counts(scorer):
    base = made(denoiser="d1", diffusion="g1", beta=0.5)
    changes = [{}, {"flow_model": "f2-s1"}, {"denoiser_model": None}, {"alpha": 2.0}, {"beta": 0.6}, {"steps": 2}]
    changes += [{"solver": "milstein"}, {"solver": "heun_drift"}]
    changes += [{"diffusion": CONSTANT, "diffusion_model": None}]
    ratios = {scorer.score(replace(base, **change), decode=False).score.ratio.value for change in changes}
    assert len(ratios) == len(changes)
    assert scorer.score(base, decode=False).score.ratio.value in ratios  # and nothing else does


def test_members(data, scorer):
    assert scorer.score(made(beta=0.5), decode=False).score.members == 3
    assert scorer.score(made(diffusion=None), decode=False).score.members == 1
    test = CombinationScorer(data, "test", 5)
    found = test.score(made(beta=0.5), decode=True)
    assert found.score.members == 4
    assert found.score.crps.shape == (5, 3)
    assert np.isfinite([found.pixels.crps_ratio, found.pixels.psnr, found.pixels.ssim]).all()
    assert found.pixels.crps_ratio != pytest.approx(1.0, abs=1e-3)


def test_a_joint_network_takes_the_place_of_a_flow_and_its_diffusion():
    joints = [finalist("j1"), finalist("j2", handed_on=False), finalist("j3")]
    found = combinations(FLOWS[:1], DENOISERS[1:3], [], joints, settings(**{"evaluation.steps": [1]}), 2)
    rows = [(c.flow_model, c.denoiser, c.diffusion, c.flow_component) for c in found if c.diffusion == JOINT]
    assert [row for row in rows if row[1] is None] == [(f"{j}-s1", None, JOINT, "joint") for j in ("j1", "j3")]
    assert {row[1] for row in rows} == {None, "d1"}
    assert {c.flow_component for c in found if c.diffusion != JOINT} == {"flow"}


def test_trainings_of_a_joint_network_with_several_seeds_are_tried_alone_and_in_turns():
    joints = [finalist("j1", models=("j1-s1", "j1-s0"))]
    both = combinations(FLOWS[:1], [], [], joints, settings(**{"evaluation.steps": [1]}), 1)
    found = [(c.flow_model, c.more_models) for c in both if c.diffusion == JOINT]
    assert found == [("j1-s1", ()), ("j1-s1", ("j1-s0",))]
    assert len({c.key for c in both}) == len(both)
    one = combinations(FLOWS[:1], [], [], joints, settings(**{"evaluation.models": "best"}), 1)
    assert all(c.more_models == () for c in one)
