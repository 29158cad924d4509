"""One component in training, and its score, on the tiny experiment's real latents."""

import hashlib
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from raypipe import checkpoint, config
from raypipe.config import LOSSES
from raypipe.forecast.component import ComponentScorer
from raypipe.models.components import build_component
from raypipe.training.component import ComponentTraining
from raypipe.workspace.layout import ParentModels

CPU = torch.device("cpu")


def with_settings(sources, **values):
    return replace(sources, experiment=config.replace(sources.experiment, **values))


def training(sources, parents=None, **more):
    return ComponentTraining(sources.experiment, sources, parents or ParentModels(), device=CPU, **more)


def losses(trainee, stop):
    found = []
    trainee.advance(stop, found.append, every=1)
    return [progress.loss for progress in found]


def weights(trainee):
    return {name: tensor.clone() for name, tensor in trainee.module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def save_random(sources, folder, component, seed=0, **meta):
    """A saved component of random weights."""
    torch.manual_seed(seed)
    module = build_component(component, sources.experiment.model, sources.channels)
    meta = checkpoint.Meta(sources.channels, component=component, model=sources.experiment.model, **meta)
    checkpoint.save_component(folder, module, meta)
    return folder


@pytest.fixture
def flow(tiny_data, tmp_path):
    return save_random(tiny_data, tmp_path / "flow-07", "flow")


@pytest.mark.parametrize("component", config.COMPONENTS)
def test_training_is_the_seeds(tiny_data, flow, component):
    sources = with_settings(tiny_data, **{"train.component": component})
    parents = ParentModels(flow=flow) if component == "diffusion" else ParentModels()
    torch.manual_seed(123)
    first = losses(training(sources, parents), 4)
    torch.manual_seed(456)  # what was drawn elsewhere does not matter
    assert losses(training(sources, parents), 4) == first
    assert len(set(first)) == 4
    other = with_settings(sources, **{"train.random_seed": 1})
    assert all(a != b for a, b in zip(losses(training(other, parents), 4), first, strict=True))


def test_a_training_lowers_its_loss(tiny_data):
    sources = with_settings(tiny_data, **{"train.steps": 60, "train.loss": "mse", "train.learning_rate": 5e-3})
    found = losses(training(sources), 60)
    assert np.mean(found[-10:]) < 0.8 * np.mean(found[:5])


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("component", config.COMPONENTS)
def test_two_halves_are_the_whole_bit_for_bit(tiny_data, flow, tmp_path, component, dropout):
    sources = with_settings(tiny_data, **{"train.component": component, "model.dropout": dropout})
    parents = ParentModels(flow=flow) if component == "diffusion" else ParentModels()
    whole = training(sources, parents)
    expected = losses(whole, 20)
    first = training(sources, parents)
    assert losses(first, 10) == expected[:10]
    first.save(tmp_path / "half")
    second = training(sources, parents)
    second.restore(tmp_path / "half")
    assert second.step == 10
    assert losses(second, 20) == expected[10:]
    assert same(weights(second), weights(whole))
    assert not same(weights(first), weights(whole))
    moments = [trainee.optimizer.state_dict()["state"] for trainee in (second, whole)]
    for mine, theirs in zip(*(moment.values() for moment in moments), strict=True):
        assert all(torch.equal(torch.as_tensor(mine[name]), torch.as_tensor(theirs[name])) for name in theirs)


@pytest.mark.parametrize("threads", [1, 2])
def test_every_fresh_training_of_a_seed_has_the_same_losses(tiny_data, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        sources = with_settings(tiny_data, **{"model.inner_dim": 64, "model.dropout": 0.1})
        runs = {tuple(losses(training(sources), 4)) for _ in range(3)}
    finally:
        torch.set_num_threads(before)
    assert len(runs) == 1


@pytest.mark.parametrize("out_norm", ["ln", "bn"])
def test_the_average_is_the_model_and_resumes_bit_for_bit(tiny_data, tmp_path, out_norm):
    sources = with_settings(tiny_data, **{"train.ema": 0.9, "model.out_norm": out_norm})
    whole = training(sources)
    expected = losses(whole, 20)
    plain = training(with_settings(tiny_data, **{"train.ema": 0.0, "model.out_norm": out_norm}))
    assert losses(plain, 20) == expected  # it follows and does not lead
    assert same(weights(plain), weights(whole))

    first = training(sources)
    losses(first, 10)
    first.save(tmp_path / "half")
    second = training(sources)
    second.restore(tmp_path / "half")
    assert losses(second, 20) == expected[10:]
    assert same(weights(second), weights(whole))
    assert same(second.model.state_dict(), whole.model.state_dict())
    assert not same(whole.model.state_dict(), weights(whole))

    whole.save(tmp_path / "whole")
    assert same(checkpoint.load_component(tmp_path / "whole").state_dict(), whole.model.state_dict())
    plain.save(tmp_path / "plain")
    beside = {path.name for path in (tmp_path / "whole").iterdir()}
    assert beside - {path.name for path in (tmp_path / "plain").iterdir()} == {"live.safetensors"}


def test_parts_of_a_batch_train_as_the_batch(tiny_data):
    """Noise and windows included; one window a part."""
    expected = losses(training(with_settings(tiny_data, **{"train.loss": "mse"})), 6)
    parts = with_settings(tiny_data, **{"train.loss": "mse", "train.accumulate": 4})
    assert losses(training(parts), 6) == pytest.approx(expected, rel=1e-4)


def test_a_training_stops_where_it_is_told_and_reports_on_multiples(tiny_data):
    trainee, seen = training(with_settings(tiny_data, **{"train.checkpoint_every": 3})), []
    trainee.advance(7, lambda progress: seen.append((progress.step, trainee.step)))
    assert seen == [(3, 3), (6, 6), (7, 7)]
    trainee.advance(7, lambda progress: seen.append(None))
    assert len(seen) == 3


@pytest.mark.parametrize("component", config.COMPONENTS)
def test_ranks_together_make_the_whole_gradient(tiny_data, flow, component):
    """DDP averages what the ranks have; noise, windows and weights must fit together for that to be the whole."""
    sources = with_settings(
        tiny_data, **{"train.component": component, "train.clip_norm": 1e9, "train.learning_rate": 1e-12}
    )
    parents = ParentModels(flow=flow) if component == "diffusion" else ParentModels()
    epoch = 6 * 8 // 4  # six clips of ten frames have eight windows of three each

    def gradients(step, **ranks):
        trainee = training(sources, parents, **ranks)
        trainee.step = step
        trainee.advance(step + 1, lambda progress: None)
        return torch.cat([p.grad.flatten() for p in trainee.module.parameters()])

    for step in (0, epoch - 1):
        alone = gradients(step)
        halves = [gradients(step, rank=rank, world_size=2) for rank in range(2)]
        torch.testing.assert_close((halves[0] + halves[1]) / 2, alone, rtol=1e-3, atol=1e-5 * alone.abs().max().item())
        assert not torch.allclose(halves[0], halves[1], rtol=0.1)


def test_ranks_share_unequal_parts(tiny_data):
    """With stride 2 a clip has six windows: 36 windows in batches of 8 end an epoch with a part too many."""
    sources = with_settings(
        tiny_data, **{"dataset.frame_stride": 2, "train.batch_size": 8, "train.clip_norm": 1e9, "train.loss": "mse"}
    )

    def gradients(**ranks):
        trainee = training(sources, **ranks)
        trainee.step = 3
        trainee.advance(4, lambda progress: None)
        return torch.cat([p.grad.flatten() for p in trainee.module.parameters()])

    alone, halves = gradients(), [gradients(rank=rank, world_size=2) for rank in range(2)]
    torch.testing.assert_close(sum(halves) / 2, alone, rtol=1e-3, atol=1e-5 * alone.abs().max().item())


def test_what_a_launcher_wraps_is_what_trains(tiny_data):
    class Wrapped(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module, self.calls = module, 0

        def forward(self, *inputs):
            self.calls += 1
            return self.module(*inputs)

    made = []
    trainee = training(tiny_data, wrap=lambda module: made.append(Wrapped(module)) or made[0])
    assert losses(trainee, 3) == losses(training(tiny_data), 3)
    assert made[0].calls == 3 and made[0].module is trainee.module


def test_a_diffusion_needs_its_flow(tiny_data, flow):
    sources = with_settings(tiny_data, **{"train.component": "diffusion"})
    with pytest.raises(AssertionError):
        training(sources)
    before = flow.joinpath("model.safetensors").read_bytes()
    losses(training(sources, ParentModels(flow=flow)), 2)
    assert flow.joinpath("model.safetensors").read_bytes() == before


def test_a_diffusion_learns_from_its_own_flow(tiny_data, flow, tmp_path):
    sources = with_settings(tiny_data, **{"train.component": "diffusion"})
    other = save_random(tiny_data, tmp_path / "flow-08", "flow", seed=1)
    assert losses(training(sources, ParentModels(flow=flow)), 1) != losses(
        training(sources, ParentModels(flow=other)), 1
    )


@pytest.mark.parametrize(
    ("component", "loss", "expected"),
    [
        ("flow", None, "nll"),
        ("flow", "mse", "mse"),
        ("denoiser", None, None),
        ("diffusion", None, "regression"),
        ("diffusion", "nll", "nll"),
    ],
)
def test_a_saved_folder_says_what_it_is(tiny_data, flow, tmp_path, component, loss, expected):
    sources = with_settings(
        tiny_data,
        **{"train.component": component, "train.loss": loss, "train.noise_std": 0.2, "train.random_seed": 3},
    )
    trainee = training(sources, ParentModels(flow=flow) if component == "diffusion" else ParentModels())
    losses(trainee, 2)
    trainee.save(tmp_path / "out", residual_std=[0.5, 1.0, 1.5, 2.0])
    meta = checkpoint.read_meta(tmp_path / "out")
    assert (meta.component, meta.loss, meta.noise_std, meta.seed, meta.step) == (component, expected, 0.2, 3, 2)
    assert meta.loss in (*LOSSES[component], None)
    assert meta.model == sources.experiment.model
    assert meta.latent_channels == 4
    assert meta.residual_std == [0.5, 1.0, 1.5, 2.0]
    autoencoder = (sources.workspace.autoencoder / "model.safetensors").read_bytes()
    assert meta.autoencoder_hash == hashlib.sha256(autoencoder).hexdigest()
    if component == "diffusion":
        assert meta.flow == "flow-07"
        assert meta.flow_hash == hashlib.sha256((flow / "model.safetensors").read_bytes()).hexdigest()
    else:
        assert meta.flow is None and meta.flow_hash is None
    assert same(checkpoint.load_component(tmp_path / "out").state_dict(), trainee.model.state_dict())


def test_frames_encoded_on_the_fly_train_as_the_cache_does(tiny_data):
    cached = losses(training(with_settings(tiny_data, **{"train.loss": "mse"})), 3)
    off = losses(training(with_settings(tiny_data, **{"train.loss": "mse", "latents": {"mode": "off"}})), 3)
    assert off == pytest.approx(cached, rel=0.02)  # the cache is in float16
    assert off != cached


def module_of(sources, component, seed=0):
    torch.manual_seed(seed)
    return build_component(component, sources.experiment.model, sources.channels).eval()


def test_every_trial_is_scored_on_the_same_windows_and_noise(tiny_data):
    module = module_of(tiny_data, "flow")
    scored = {}
    for level, loss in ((0.0, "nll"), (0.4, "mse")):
        values = {"train.noise_std": level, "train.loss": loss, "train.random_seed": int(10 * level)}
        sources = with_settings(tiny_data, **values)
        scored[level] = ComponentScorer(sources.experiment, sources, ParentModels())("flow", module)
    assert np.array_equal(scored[0.0].score.crps, scored[0.4].score.crps)
    assert scored[0.0].magnitude == scored[0.4].magnitude
    scorer = ComponentScorer(tiny_data.experiment, tiny_data, ParentModels())
    other = scorer("flow", module_of(tiny_data, "flow", seed=1))
    assert np.array_equal(other.score.reference, scored[0.0].score.reference)
    assert not np.array_equal(other.score.crps, scored[0.0].score.crps)
    elsewhere = with_settings(tiny_data, **{"evaluation.seed": 1})
    moved = ComponentScorer(elsewhere.experiment, elsewhere, ParentModels())("flow", module)
    assert not np.array_equal(moved.score.reference, other.score.reference)


def test_a_score_is_of_held_out_windows_and_its_magnitude_of_the_lists(tiny_data, flow):
    evaluation = {"evaluation.multipliers": [0.2, 0.9], "evaluation.betas": [0.35, 0.6]}
    sources = with_settings(tiny_data, **evaluation)
    scorer = ComponentScorer(sources.experiment, sources, ParentModels(flow=flow))
    for component, choices in (("flow", (0.2, 0.9)), ("denoiser", (0.2, 0.9)), ("diffusion", (0.35, 0.6))):
        found = scorer(component, module_of(sources, component, seed=2))
        assert found.magnitude in choices
        assert len(found.residual_std) == 4 and min(found.residual_std) > 0
        assert found.score.crps.shape == found.score.reference.shape == (6, 3)
        assert np.isfinite([found.score.crps, found.score.reference]).all()
    # the reference is persistence on validation clips, the first of which is at most a float16 away from the cache
    latents = sources.latents("val")
    steps = [np.abs(np.diff(latents.clip(i).astype(np.float64), axis=0)).mean((1, 2, 3)) for i in range(len(latents))]
    reference = found.score.reference[:, 0]
    assert all(np.isclose(value, np.concatenate(steps), rtol=1e-3).any() for value in reference)


def test_no_denoiser_scores_as_the_flow_alone(tiny_data, flow):
    scorer = ComponentScorer(tiny_data.experiment, tiny_data, ParentModels(flow=flow))
    alone = scorer("flow", checkpoint.load_component(flow))
    none = scorer("denoiser", None)
    assert np.array_equal(none.score.crps, alone.score.crps)
    assert (none.magnitude, none.residual_std) == (alone.magnitude, alone.residual_std)
    some = scorer("denoiser", module_of(tiny_data, "denoiser"))
    assert not np.array_equal(some.score.crps, alone.score.crps)
    assert some.residual_std == alone.residual_std


def test_a_diffusion_is_scored_with_the_denoiser_it_is_given(tiny_data, flow, tmp_path):
    denoiser = save_random(tiny_data, tmp_path / "denoiser-01", "denoiser")
    module = module_of(tiny_data, "diffusion")
    found = [
        ComponentScorer(tiny_data.experiment, tiny_data, parents)("diffusion", module).score.crps
        for parents in (ParentModels(flow=flow), ParentModels(flow=flow, denoiser=denoiser))
    ]
    assert not np.array_equal(*found)


def test_scoring_leaves_the_module_in_its_mode(tiny_data):
    scorer = ComponentScorer(tiny_data.experiment, tiny_data, ParentModels())
    sources = with_settings(tiny_data, **{"model.dropout": 0.5})
    module = module_of(sources, "flow").train()
    crps = [scorer("flow", module).score.crps for _ in range(2)]
    assert module.training
    assert np.array_equal(*crps)  # scored in eval mode, without dropout
    scorer("flow", module.eval())
    assert not module.training


def test_sources_travel(tiny_data):
    there = pickle.loads(pickle.dumps(tiny_data))
    assert there.cache_key("train") == tiny_data.cache_key("train")
    assert len({tiny_data.cache_key(split) for split in ("train", "val", "test")}) == 3
    assert there.training_shards().lengths.tolist() == [10] * 6


def test_the_training_loss_ranks_noise_levels_otherwise_than_the_objective(tiny_data):
    """Of flows alike but for the noise that they were trained with; the losses are of different quantities."""
    losses, scores = [], []
    training_of = {"train.loss": "mse", "train.steps": 400, "train.learning_rate": 3e-3}
    forecasts = {"dataset.num_frames": 9, "evaluation.horizon": 7, "evaluation.windows": 40}
    for noise in (0.0, 0.3):
        values = {"train.noise_std": noise, **training_of, **forecasts}
        experiment = config.replace(tiny_data.experiment, **values)
        training, seen = ComponentTraining(experiment, tiny_data, ParentModels()), []
        training.advance(400, lambda progress, seen=seen: seen.append(progress.loss), every=100)
        losses.append(seen[-1])
        scores.append(ComponentScorer(experiment, tiny_data, ParentModels())("flow", training.model).score)
    assert losses[0] < 0.9 * losses[1]  # without noise the task is easier
    gap = scores[1].minus(scores[0])
    assert gap.value < -gap.se  # and the forecast is worse
