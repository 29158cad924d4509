"""The losses of a batch, worked out from what the networks were shown."""

import numpy as np
import pytest
import torch
from torch import nn

from raypipe import config
from raypipe.data.batches import TrainBatch
from raypipe.models.autoencoder import Reconstruction
from raypipe.training.autoencoder import AutoencoderTask
from raypipe.training.component_task import ComponentTask

K, C, SIDE = 2, 3, 2
PARTS = ("flow", "denoiser", "diffusion")
CHOICES = [(part, loss) for part in PARTS for loss in config.LOSSES[part] or (None,) if loss not in config.SCORES]
"""Joint networks, and scores as losses: test_forecast_task.py."""


def experiment(component="flow", loss=None, **more):
    values = {"train.component": component, "train.loss": loss, "train.noise_std": 0.3, "sde.sigma": 0.01}
    return config.replace(config.Experiment(), **{**values, "model.num_input_frames": K, **more})


class Network(nn.Module):
    """Answers with a fixed function of the state, and remembers what it was shown."""

    def __init__(self, component):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))
        self.all_frames, self.positive = component == "denoiser", component == "diffusion"

    def forward(self, x, u):
        self.x, self.u = x, u
        out = self.weight * (x if self.all_frames else x[:, -C:])
        self.out = out.exp() if self.positive else out
        return self.out


class Drift(nn.Module):
    """A frozen flow."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.2))

    def forward(self, x, u):
        return self.weight * x[:, :C] + u[:, None, None, None]


def windows(count, seed=0):
    return torch.randn(count, K + 1, C, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def batch(data, total=None, offset=0, step=4):
    return TrainBatch(data, torch.zeros(len(data), dtype=torch.long), total or len(data), offset, step)


def task_of(component, loss=None, **more):
    flow = Drift().requires_grad_(False) if component == "diffusion" else None
    return ComponentTask(Network(component), experiment(component, loss, **more), flow=flow)


def by_hand(component, loss, data, network, sigma=0.01, delta=1e-3):
    """The design's formulas in float64, from the point on the path that the network saw."""
    z, x, u, out = (t.detach().double().numpy() for t in (data, network.x, network.u, network.out))
    b = len(z)
    start, end = z[:, :-1].reshape(b, -1, SIDE, SIDE), z[:, 1:].reshape(b, -1, SIDE, SIDE)
    at = u.reshape(b, 1, 1, 1)
    path = (1 - (1 - sigma) * at) * start + at * end
    velocity = ((end - (1 - sigma) * path) / (1 - (1 - sigma) * at))[:, -C:]
    residual = velocity - (0.2 * x[:, :C] + at)
    return {
        ("flow", "nll"): lambda: np.mean(np.log((velocity - out) ** 2 + delta) - np.log(delta)),
        ("flow", "mse"): lambda: np.mean((velocity - out) ** 2),
        ("denoiser", None): lambda: np.mean((out + (x - path)) ** 2),
        ("diffusion", "regression"): lambda: (
            np.mean((out - abs(residual)) ** 2) + np.mean((np.log(out) - np.log(residual**2 + 1e-6) / 2) ** 2)
        ),
        ("diffusion", "nll"): lambda: np.mean(residual**2 / (2 * out**2) + np.log(out)),
    }[component, loss]()


@pytest.mark.parametrize(("component", "loss"), CHOICES)
def test_each_loss_is_its_formula(component, loss):
    task, data = task_of(component, loss), windows(9)
    found = task.loss(batch(data))
    assert found.shape == ()
    assert found.item() == pytest.approx(by_hand(component, loss, data, task.module), rel=1e-4)
    found.backward()
    assert task.module.weight.grad.abs() > 0


@pytest.mark.parametrize("component", PARTS)
def test_without_a_choice_the_loss_is_the_published_one(component):
    published = {"flow": "nll", "denoiser": None, "diffusion": "regression"}[component]
    task, data = task_of(component), windows(9)
    assert task.loss(batch(data)).item() == pytest.approx(by_hand(component, published, data, task.module), rel=1e-4)


def test_the_flow_under_a_diffusion_gets_no_gradient():
    flow = Drift()
    task = ComponentTask(Network("diffusion"), experiment("diffusion", "nll"), flow=flow)
    task.loss(batch(windows(4))).backward()
    assert flow.weight.grad is None


def shown(data, **more):
    """The noise and times that a network is shown of resting windows (the path stays where it is)."""
    task = task_of("flow", **{"sde.sigma": 0.0, **more})
    task.loss(batch(data))
    return task.module.x - data[:, :-1].flatten(1, 2), task.module.u


def test_noise_has_its_level_and_times_their_share_at_zero():
    resting = torch.ones(4000, K + 1, C, SIDE, SIDE)
    for level in (0.05, 0.4):
        noise, u = shown(resting, **{"train.noise_std": level})
        assert noise.std().item() == pytest.approx(level, rel=0.02)
        assert abs(noise.mean().item()) < 0.02 * level
        assert (u == 0).double().mean().item() == pytest.approx(0.3, abs=0.036)  # five standard errors
        assert u.min() >= 0 and u.max() < 1
        assert u[u > 0].mean().item() == pytest.approx(0.5, abs=0.03)
    noise, _ = shown(resting[:8], **{"train.noise_std": 0.0})
    assert noise.abs().max() < 1e-6
    _, u = shown(resting, **{"model.time_input": False})
    assert (u == 0).sum() == 0


def test_noise_does_not_depend_on_the_ranks():
    data = windows(10)
    task = task_of("flow")
    task.loss(batch(data))
    x, u = task.module.x, task.module.u
    parts = []
    for begin, end in ((0, 3), (3, 4), (4, 10)):  # in unequal parts, as at the end of an epoch
        task.loss(batch(data[begin:end], total=10, offset=begin))
        parts.append((task.module.x, task.module.u))
    assert torch.equal(torch.cat([p[0] for p in parts]), x)
    assert torch.equal(torch.cat([p[1] for p in parts]), u)


def test_noise_is_new_every_step_and_every_seed():
    data = windows(4)

    def seen(step, seed=0):
        task = task_of("flow", **{"train.random_seed": seed})
        task.loss(batch(data, step=step))
        return task.module.x

    assert torch.equal(seen(3), seen(3))
    assert not torch.equal(seen(3), seen(4))
    assert not torch.equal(seen(3), seen(3, seed=1))


def test_frames_are_encoded_first():
    latents = windows(5)
    frames = torch.zeros(5, K + 1, 8, 8, 3, dtype=torch.uint8)
    given = []
    cached, encoded = (
        task_of("flow"),
        ComponentTask(Network("flow"), experiment(), encode=lambda b: given.append(b) or latents),
    )
    assert encoded.loss(batch(frames)).item() == cached.loss(batch(latents)).item()
    assert given[0].data is frames


class Fixed(nn.Module):
    """An autoencoder that answers every frame with one grey."""

    def __init__(self, level=-1.0, auxiliary=0.0):
        super().__init__()
        self.level, self.auxiliary = level, auxiliary

    def forward(self, frames):
        self.seen = frames
        return Reconstruction(torch.full_like(frames, self.level), torch.tensor(self.auxiliary))


def frame_batch(frames, clips=None, total=None, offset=0):
    clips = torch.zeros(len(frames), dtype=torch.long) if clips is None else torch.tensor(clips)
    return TrainBatch(frames[:, None], clips, total or len(frames), offset, 7)


def settings(weight=3.0, symmetries=False):
    return config.Autoencoder(foreground_weight=weight, symmetries=symmetries)


def dot(color=(255, 255, 255)):
    """A black frame of 2 x 2 with one coloured pixel."""
    frame = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
    frame[0, 0, 1] = torch.tensor(color, dtype=torch.uint8)
    return frame


BLACK = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("frames", "background", "weight", "expected"),
    [
        (dot(), BLACK, 3.0, 3 * 4 / (3 + 1 + 1 + 1)),  # the answer is off by 2 at one pixel of four, which weighs 3
        (dot(), BLACK, 1.0, 4 / 4),
        (dot(), None, 3.0, 4 / 4),
        (dot(), dot(), 3.0, 4 / 4),  # what never moves is background, however bright
        (dot((255, 0, 0)), BLACK, 3.0, 3 * 4 / 3 / 6),  # off in one colour of three, and that is enough to move
        (dot((12, 0, 0)), BLACK, 3.0, (24 / 255) ** 2 / 3 / 4),  # less than 0.1 on [-1, 1] is no motion
        (dot((13, 0, 0)), BLACK, 3.0, 3 * (26 / 255) ** 2 / 3 / 6),
    ],
)
def test_foreground_weighs_more(frames, background, weight, expected):
    for auxiliary in (0.0, 0.5):
        task = AutoencoderTask(Fixed(auxiliary=auxiliary), settings(weight), 0, background)
        assert task.loss(frame_batch(frames)).item() == pytest.approx(expected + auxiliary, rel=1e-5)


def test_each_clip_has_its_own_background():
    frames = torch.cat([dot(), dot()])
    task = AutoencoderTask(Fixed(), settings(), 0, torch.cat([BLACK, dot()]))
    assert task.loss(frame_batch(frames, [1, 1])).item() == pytest.approx(1.0)
    assert task.loss(frame_batch(frames, [0, 0])).item() == pytest.approx(2.0)
    assert task.loss(frame_batch(frames, [0, 1])).item() == pytest.approx((2.0 + 1.0) / 2)


def dihedral(frame):
    """The eight symmetries of a square image [3, n, n]."""
    turned = [np.rot90(frame, k, axes=(1, 2)) for k in range(4)]
    return [*turned, *(image[:, :, ::-1] for image in turned)]


def test_symmetries_are_the_squares_eight_and_weights_turn_along():
    rng = np.random.default_rng(0)
    one = rng.integers(0, 256, (1, 4, 4, 3), np.uint8)
    frames = torch.from_numpy(one).expand(96, -1, -1, -1)
    module = Fixed()
    background = torch.from_numpy(one.copy())
    background[0, :2] = 255 - background[0, :2]  # the upper half moves
    loss = AutoencoderTask(module, settings(5.0, symmetries=True), 0, background).loss(frame_batch(frames)).item()
    counts = np.zeros(8, int)
    images = [image.copy() for image in dihedral(one[0].transpose(2, 0, 1) / 127.5 - 1)]
    for seen in module.seen.numpy():
        matches = [np.allclose(seen, image, atol=1e-5) for image in images]
        assert sum(matches) == 1
        counts += matches
    assert counts.min() >= 3, counts  # 12 each on average
    assert loss == pytest.approx(
        AutoencoderTask(Fixed(), settings(5.0), 0, background).loss(frame_batch(frames)).item(), rel=1e-5
    )


def test_symmetries_do_not_depend_on_the_ranks():
    frames = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (10, 4, 4, 3), np.uint8))
    module = Fixed()
    task = AutoencoderTask(module, settings(symmetries=True), 0, None)
    task.loss(frame_batch(frames))
    together, parts = module.seen, []
    for begin, end in ((0, 6), (6, 10)):
        task.loss(frame_batch(frames[begin:end], total=10, offset=begin))
        parts.append(module.seen)
    assert torch.equal(torch.cat(parts), together)
