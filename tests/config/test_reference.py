"""Configs of the published code: taken as they are, and meaning what they meant."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from raypipe import checkpoint, config, train
from raypipe.config import Axis, ConfigError
from raypipe.data.shards import ShardWriter
from raypipe.data.splits import SPLITS
from raypipe.models.autoencoder import build_network
from tests.raytools import flags, outcome

KTH = """
name: "kth"
data:
  data_root:  ./data/kth/hd5 # path to the dataset folder
  input_size: 64
  crop_size: 64
  frames_per_sample: 40
  skip_frames: 0
  random_horizontal_flip: False
  aug: False
  albumentations: True
model:
  sigma: 0.0000001
  func: "f_nll"
  noise_std: 0.1
  num_input_frames: 4
  vector_field_regressor:
    state_size: 4
    state_res: [8, 8]
    inner_dim: 768
    depth: 4
    mid_depth: 5
    out_norm: "ln"
    type: "vit"
  autoencoder:
    type: "ldm-vq"
    config: "f8_small"
    ckpt_path:  "./model/ae/vqvae_kth.ckpt"
training:
  num_epochs: 100000
  batching: {batch_size: 16, num_workers: 7}
  optimizer: {learning_rate: 1.0e-5, weight_decay: 0.000005, num_warmup_steps: 5000, num_training_steps: 300000}
  num_observations: 40
  condition_frames: 4
  frames_to_generate: 36
  loss_weights: {flow_matching_loss: 1.0}
evaluation:
  batching: {batch_size: 4, num_workers: 7}
  num_observations: 40
  condition_frames: 4
  frames_to_generate: 36
"""
CLEVRER = """
name: "clevrer"
data:
  type: "clevrer"
  data_root:  "./data/clever/hd5"
  input_size: 128
  crop_size: 128
  frames_per_sample: 16
  skip_frames: 4
  random_horizontal_flip: False
  aug: True
  albumentations: False
model:
  sigma: 0.0000001
  func: "g"
  logit_range: [-8.0, 0.5]
  noise_std: 0.2
  num_input_frames: 4
  f_ckpt_path: "./runs/clevrer_run-f-01-nll/checkpoints/final_step_300000.pth"
  d_ckpt_path: "./runs/clevrer_run-d-01/checkpoints/final_step_300000.pth"
  vector_field_regressor: {state_size: 4, state_res: [16, 16], inner_dim: 512, depth: 3, mid_depth: 2, out_norm: "bn"}
  autoencoder:
      type: "ours"
      ckpt_path:  "./model/ae/vqvae_clevrer.pth"
      encoder: {in_channels: 3, out_channels: 4}
      vector_quantizer: {num_embeddings: 8192, embedding_dimension: 4}
      decoder: {in_channels: 4, out_channels: 3}
training:
  num_epochs: 100
  batching: {batch_size: 16, num_workers: 7}
  optimizer: {learning_rate: 1.0e-4, weight_decay: 0.000005, num_warmup_steps: 5000, num_training_steps: 300000}
  num_observations: 16
  condition_frames: 4
  frames_to_generate: 12
  loss_weights: {flow_matching_loss: 1.0}
evaluation:
  batching: {batch_size: 4, num_workers: 8}
  num_observations: 16
  condition_frames: 4
  frames_to_generate: 12
  steps: 100
"""


def load(folder: Path, text: str, **values: Any) -> config.Experiment:
    """The experiment of a YAML text with some values replaced or, as None, removed."""
    tree = config.override(yaml.safe_load(text), {k: v for k, v in values.items() if v is not None})
    for name in [k for k, v in values.items() if v is None]:
        node = tree
        *parents, leaf = name.split(".")
        for parent in parents:
            node = node[parent]
        del node[leaf]
    path = folder / "published.yaml"
    path.write_text(yaml.safe_dump(tree))
    return config.load(path)


def test_kth_means_the_same(tmp_path: Path) -> None:
    (tmp_path / "kth.yaml").write_text(KTH)
    found = config.load(tmp_path / "kth.yaml", {"train.num_workers": 2})
    assert found.name == "kth"
    wanted = {"image_size": 64, "frame_stride": 1, "num_frames": 40}
    assert found.dataset == config.Dataset("kth", "./data/kth/hd5", **wanted)
    assert found.latents.mode == "cache"
    assert (found.autoencoder.type, found.autoencoder.path) == ("vqgan", "./model/ae/vqvae_kth.ckpt")
    assert found.model == config.Model(4, 768, 4, 5, 8, "ln", 0.05, False, (-9.0, 1.0))
    assert found.sde.sigma == 1e-7 and found.sde.delta == 1e-3
    assert found.train == config.Train(
        component="flow",
        noise_std=0.1,
        loss="nll",
        steps=300_000,
        batch_size=16,
        learning_rate=1e-5,
        weight_decay=5e-6,
        schedule="sqrt",
        warmup_steps=5000,
        clip_norm=None,
        ema=0.0,
        checkpoint_every=5000,
        validate_every=0,
        num_workers=2,
    )
    assert found.evaluation.horizon == 36


def test_clevrer_means_the_same(tmp_path: Path) -> None:
    """A diffusion, whose file is called g-01-nll after its flow and whose own loss is the regression."""
    found = load(tmp_path, CLEVRER)
    wanted = {"image_size": 128, "frame_stride": 5, "num_frames": 16, "color_jitter": True}
    assert found.dataset == config.Dataset("clevrer", "./data/clever/hd5", **wanted)
    assert found.latents.mode == "off"  # colours differ every time
    assert found.autoencoder.type == "vqvae" and found.autoencoder.num_embeddings == 8192
    assert found.model == config.Model(4, 512, 3, 2, 8, "bn", 0.05, False, (-8.0, 0.5))
    train = found.train
    assert (train.component, train.loss, train.noise_std) == ("diffusion", "regression", 0.2)
    assert (train.learning_rate, train.flow) == (1e-4, "f-01-nll")
    assert found.evaluation.horizon == 12


@pytest.mark.parametrize(
    ("func", "component", "loss"), [("f_mse", "flow", "mse"), ("d", "denoiser", None), ("f_nll", "flow", "nll")]
)
def test_func_says_what_is_trained(func: str, component: str, loss: str | None, tmp_path: Path) -> None:
    found = load(tmp_path, KTH, **{"model.func": func}).train
    assert (found.component, found.loss, found.flow) == (component, loss, None)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"type": "sd-vae-ft-mse", "config": None, "ckpt_path": None}, ("kl", "stabilityai/sd-vae-ft-mse")),
        ({"config": "f8"}, ("vqgan", "./model/ae/vqvae_kth.ckpt")),
    ],
)
def test_autoencoders(values: dict[str, Any], expected: tuple[str, str], tmp_path: Path) -> None:
    found = load(tmp_path, KTH, **{f"model.autoencoder.{name}": value for name, value in values.items()}).autoencoder
    assert (found.type, found.path) == expected


def test_a_vqvae_without_a_checkpoint_is_trained(tmp_path: Path) -> None:
    found = load(tmp_path, CLEVRER, **{"model.autoencoder.ckpt_path": None}).autoencoder
    assert (found.type, found.path) == ("vqvae", None)


def test_a_search_looks_about_the_published_rates(tmp_path: Path) -> None:
    """The defaults are for the demo's small networks, and would clamp 1e-5 to 1e-3."""
    search = load(tmp_path, KTH).search
    assert search.flow.axes["train.learning_rate"] == Axis(low=1e-5 / 3, high=1e-4, log=True)
    assert search.diffusion.axes["train.learning_rate"].high == 1e-3
    assert search.diffusion.axes["train.loss"].choices == ["regression", "nll"]
    assert search.flow.axes["train.loss"].choices == ["nll", "mse"]
    assert (search.flow.steps, search.flow.refit_steps) == (30_000, 300_000)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modell": {}}, "unknown key 'modell' in a config of the reference code; did you mean 'model'?"),
        ({"data.skip_frame": 1}, "unknown key 'data.skip_frame' .*did you mean 'skip_frames'"),
        ({"training.optimizer.learning_rat": 1}, "unknown key 'training.optimizer.learning_rat' .*'learning_rate'"),
        ({"model.time_input": True}, "unknown key 'model.time_input'"),
        ({"train": {}}, "unknown key 'train'.*did you mean 'training'"),
        ({"model.func": "f"}, "model.func: must be one of f_nll, f_mse, d, g, not 'f'"),
        ({"model.func": None}, "model.func: missing; every config of the reference code has it"),
        ({"data": 3}, "data: must be a mapping, not 3"),
        ({"data.input_size": 80}, r"data.input_size: must be equal to data.crop_size \(64; .*\), not 80"),
        ({"model.vector_field_regressor.type": "unet"}, "vector_field_regressor.type: must be 'vit'"),
        ({"model.vector_field_regressor.state_res": [4, 4]}, r"state_res: must be \[8, 8\] \(data.crop_size / 8\)"),
        ({"model.autoencoder.type": "ldm-kl"}, "autoencoder.type: must be one of ours, ldm-vq, sd-vae-ft-mse"),
        ({"model.autoencoder.config": "f4"}, "autoencoder.config: must be one of f8_small, f8, f16"),
        ({"model.autoencoder.ckpt_path": None}, "autoencoder.path: must be the path of a trained vqgan"),
        ({"training.loss_weights.flow_matching_loss": 2.0}, "flow_matching_loss: must be 1, not 2.0"),
        ({"training.batching.batch_size": "many"}, "train.batch_size: input should be a valid integer"),
        ({"training.batching.batch_size": 0}, "train.batch_size: must be at least 1, not 0"),
    ],
)
def test_what_it_cannot_follow_is_refused(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, KTH, **values)
    assert str(caught.value).startswith(str(tmp_path / "published.yaml")) and "\n" not in str(caught.value)


@pytest.mark.cluster
@pytest.mark.slow
def test_it_trains(
    two_cpus: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The published way, in small: an autoencoder's file, a flow's config, then a diffusion's, by their names."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split in SPLITS:
        with ShardWriter(Path("shards") / split) as writer:
            for i in range(3):
                writer.add(str(i), rng.integers(0, 256, (8, 32, 32, 3), np.uint8))
    torch.manual_seed(0)
    vqvae = build_network("vqvae", {"num_embeddings": 16, "channels": 4})
    torch.save({"model": {f"module.{name}": tensor for name, tensor in vqvae.state_dict().items()}}, "vqvae.pth")
    tree = config.override(
        yaml.safe_load(CLEVRER),
        {
            "name": "mini",
            "data": {"data_root": "shards", "input_size": 32, "crop_size": 32, "aug": True},
            "model.vector_field_regressor": {
                **{"state_size": 4, "state_res": [4, 4], "inner_dim": 16},
                **{"depth": 1, "mid_depth": 1, "out_norm": "ln"},
            },
            "model.autoencoder.ckpt_path": "vqvae.pth",
            "model.f_ckpt_path": "./runs/mini_run-f-01-nll/checkpoints/final_step_4.pth",
            "training.optimizer.num_training_steps": 4,
            "training.optimizer.num_warmup_steps": 1,
            "training.batching.batch_size": 4,
            "evaluation.num_observations": 8,
            "evaluation.frames_to_generate": 2,
        },
    )
    flow = config.override(tree, {"model.func": "f_nll", "model.noise_std": 0.1})
    Path("mini_f-01-nll.yaml").write_text(yaml.safe_dump(flow))
    Path("mini_g-01-nll.yaml").write_text(yaml.safe_dump(tree))
    few = flags({"evaluation.windows": 2, "evaluation.test_windows": 2, "evaluation.fit_windows": 2})
    for name in ("f-01-nll", "g-01-nll"):
        argv = ["--config", f"mini_{name}.yaml", "--run-name", name, "--storage", tmp_path / "storage", *few]
        assert outcome(train.main, train.PROG, argv) == 0, capfd.readouterr().err
    folder = tmp_path / "storage" / "mini"
    found = {name: checkpoint.read_meta(folder / name) for name in ("flow/f-01-nll", "diffusion/g-01-nll")}
    assert [(meta.component, meta.loss, meta.noise_std, meta.step) for meta in found.values()] == [
        ("flow", "nll", 0.1, 4),
        ("diffusion", "regression", 0.2, 4),
    ]
    assert found["diffusion/g-01-nll"].flow_hash == checkpoint.weights_hash(folder / "flow" / "f-01-nll")
    autoencoder = checkpoint.load_autoencoder(folder / "autoencoder").network
    assert all(torch.equal(autoencoder.state_dict()[name], tensor) for name, tensor in vqvae.state_dict().items())
