"""Translation of the reference code's configs: `--config kth_f-01-nll.yaml` trains what the reference code trains.

Keys that do not affect the result are accepted and dropped (`IGNORED`). Settings that the reference code fixes in
its source (number of heads, dropout, no time input, no clipping) are filled in. Any other key is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from raypipe.common.errors import ConfigError, nearest

COMPONENTS: Mapping[str, tuple[str, str | None]] = {
    "f_nll": ("flow", "nll"),
    "f_mse": ("flow", "mse"),
    "d": ("denoiser", None),
    "g": ("diffusion", "regression"),
}
"""Component and loss for each value of `model.func`."""
RATES: Mapping[str, float] = {"flow": 1e-5, "denoiser": 1e-4, "diffusion": 1e-4}
"""The reference code's learning rates. A config has that of its own component; the search needs the others too."""
AUTOENCODERS: Mapping[str, str] = {"ours": "vqvae", "ldm-vq": "vqgan", "sd-vae-ft-mse": "kl"}
"""`autoencoder.type` for each value of `model.autoencoder.type`."""
VQGANS: Mapping[str, int] = {"f8_small": 8, "f8": 8, "f16": 16}
"""Downsampling factor for each value of `model.autoencoder.config`; the checkpoint determines everything else."""
STABLE_DIFFUSION = "stabilityai/sd-vae-ft-mse"
"""Folder from which the reference code loads `type: sd-vae-ft-mse`, relative to the working directory."""
IGNORED: Mapping[str, Sequence[str]] = {
    "data": ("type", "albumentations", "total_videos"),
    "model": ("d_ckpt_path",),  # only for previews: a diffusion is trained on its flow alone
    # num_training_steps ends a training; the other three are only for previews
    "training": ("num_epochs", "num_observations", "condition_frames", "frames_to_generate"),
    "training.batching": ("num_workers",),
    "evaluation": ("batching", "condition_frames", "steps"),
}
KNOWN: Mapping[str, Sequence[str]] = {
    "": ("name", "data", "model", "training", "evaluation"),
    "data": ("data_root", "input_size", "crop_size", "frames_per_sample", "skip_frames", "random_horizontal_flip",
             "aug"),
    "model": ("sigma", "func", "noise_std", "num_input_frames", "logit_range", "f_ckpt_path", "vector_field_regressor",
              "autoencoder"),
    "model.vector_field_regressor": ("state_size", "state_res", "inner_dim", "depth", "mid_depth", "out_norm", "type"),
    "model.autoencoder": ("type", "config", "ckpt_path", "encoder", "decoder", "vector_quantizer"),
    "model.autoencoder.encoder": ("in_channels", "out_channels"),
    "model.autoencoder.decoder": ("in_channels", "out_channels"),
    "model.autoencoder.vector_quantizer": ("num_embeddings", "embedding_dimension"),
    "training": ("batching", "optimizer", "loss_weights"),
    "training.batching": ("batch_size",),
    "training.optimizer": ("learning_rate", "weight_decay", "num_warmup_steps", "num_training_steps"),
    "training.loss_weights": ("flow_matching_loss",),
    "evaluation": ("num_observations", "frames_to_generate"),
}  # fmt: skip
"""The keys of each section that are translated, by the dotted name of the section."""


def is_published(tree: Mapping[str, Any]) -> bool:
    """Whether a config is one of the reference code, whose `model` section contains `vector_field_regressor`."""
    model = tree.get("model")
    return isinstance(model, Mapping) and "vector_field_regressor" in model


def translate(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a config of the reference code to the nested dict that `raypipe.config.from_dict` takes.

    Raises ConfigError for unknown or missing keys, and for values that raypipe does not support.
    """
    _check_keys(tree, "")
    get = _Reader(tree)
    component, loss = get.choice("model.func", COMPONENTS)
    size = get("data.crop_size")
    optimizer = "training.optimizer"
    steps, rate = get(f"{optimizer}.num_training_steps"), get(f"{optimizer}.learning_rate")
    augmented = bool(get("data.random_horizontal_flip", False) or get("data.aug", False))
    get.expect("data.input_size", size, f"equal to data.crop_size ({size}; videos are cropped when converted)")
    get.expect("model.vector_field_regressor.type", "vit", "'vit', the only supported network", missing=True)
    get.expect("training.loss_weights.flow_matching_loss", 1, "1", missing=True)
    return {
        "name": get("name"),
        "dataset": {
            "name": get("name"),
            "root": get("data.data_root"),
            "image_size": size,
            "frame_stride": get("data.skip_frames", 0) + 1,
            "num_frames": get("evaluation.num_observations"),
            "horizontal_flip": get("data.random_horizontal_flip", False),
            "color_jitter": get("data.aug", False),
        },
        "latents": {"mode": "off" if augmented else "cache"},
        "autoencoder": _autoencoder(get, size),
        "model": {
            "num_input_frames": get("model.num_input_frames"),
            "inner_dim": get("model.vector_field_regressor.inner_dim"),
            "depth": get("model.vector_field_regressor.depth"),
            "mid_depth": get("model.vector_field_regressor.mid_depth"),
            "num_heads": 8,
            "out_norm": get("model.vector_field_regressor.out_norm"),
            "dropout": 0.05,
            "time_input": False,
            "logit_range": get("model.logit_range", [-9.0, 1.0]),
        },
        "sde": {"sigma": get("model.sigma"), "delta": 1e-3},
        "train": {
            "component": component,
            "loss": loss,
            "noise_std": get("model.noise_std"),
            "steps": steps,
            "batch_size": get("training.batching.batch_size"),
            "learning_rate": rate,
            "weight_decay": get(f"{optimizer}.weight_decay"),
            "schedule": "sqrt",
            "warmup_steps": get(f"{optimizer}.num_warmup_steps"),
            "clip_norm": None,
            "ema": 0.0,
            "checkpoint_every": 5000,
            "validate_every": 0,
            "flow": _flow(get("model.f_ckpt_path", None)) if component == "diffusion" else None,
        },
        "search": _search(steps, {**RATES, component: rate}),
        "evaluation": {"horizon": get("evaluation.frames_to_generate")},
    }


def _search(steps: int, rates: Mapping[str, float]) -> dict[str, Any]:
    """A `search` section for the config, since the reference code has none, without a joint stage.

    Trials take a tenth of the training steps; learning rates are searched around those of the reference code.
    """
    found: dict[str, Any] = {"rungs": 3, "joint": {"trials": 0}}
    noise = {"low": 0.01, "high": 0.4, "log": True, "zero": True}
    for component, rate in rates.items():
        axes: dict[str, Any] = {"train.noise_std": noise}
        if component != "denoiser":
            losses = [loss for kind, loss in COMPONENTS.values() if kind == component]
            axes["train.loss"] = {"choices": losses if component == "flow" else [*losses, "nll"]}
            axes["model.time_input"] = {"choices": [False, True]}
        axes["train.learning_rate"] = {"low": rate / 3, "high": rate * 10, "log": True}
        found[component] = {"steps": max(1, steps // 10), "refit_steps": steps, "axes": axes}
    return found


def _autoencoder(get: _Reader, size: int) -> dict[str, Any]:
    kind = get.choice("model.autoencoder.type", AUTOENCODERS)
    channels = get("model.vector_field_regressor.state_size")
    factor = get.choice("model.autoencoder.config", VQGANS) if kind == "vqgan" else 8
    resolution = [size // factor] * 2
    get.expect("model.vector_field_regressor.state_res", resolution, f"{resolution} (data.crop_size / {factor})")
    found = {"type": kind, "channels": channels, "path": get("model.autoencoder.ckpt_path", None)}
    if kind == "kl":
        found["path"] = found["path"] or STABLE_DIFFUSION
    if kind == "vqvae":
        for name in ("encoder.out_channels", "decoder.in_channels", "vector_quantizer.embedding_dimension"):
            get.expect(
                f"model.autoencoder.{name}", channels, f"equal to vector_field_regressor.state_size ({channels})"
            )
        found["num_embeddings"] = get("model.autoencoder.vector_quantizer.num_embeddings")
    return found


def _flow(path: str | None) -> str | None:
    """The run name in the path of a flow checkpoint: f-01-nll for `./runs/kth_run-f-01-nll/checkpoints/...`."""
    match = re.search(r"(?:^|[/_-])(f-\d+(?:-[a-z]+)?)(?=[/.]|$)", path or "")
    return match[1] if match else path


class _Reader:
    """Reads values of a nested dict by dotted name. Raises ConfigError for a missing or unsupported value."""

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self._tree = tree

    def __call__(self, name: str, *default: Any) -> Any:
        """The value, else the default if one is given."""
        node: Any = self._tree
        for part in name.split("."):
            if not isinstance(node, Mapping) or part not in node:
                if default:
                    return default[0]
                raise ConfigError(f"{name}: missing; every config of the reference code has it")
            node = node[part]
        return node

    def choice(self, name: str, choices: Mapping[str, Any]) -> Any:
        """The entry of `choices` for the value."""
        value = self(name)
        if value not in choices:
            raise ConfigError(f"{name}: must be one of {', '.join(choices)}, not {value!r}")
        return choices[value]

    def expect(self, name: str, value: Any, rule: str, *, missing: bool = False) -> None:
        """Check that the value equals `value`; with `missing`, it may also be absent."""
        found = self(name, value) if missing else self(name)
        if found != value:
            raise ConfigError(f"{name}: must be {rule}, not {found!r}")


def _check_keys(node: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError for an unknown key in the section named `where` or below it."""
    known = [*KNOWN[where], *IGNORED.get(where, ())]
    for key, value in node.items():
        name = f"{where}.{key}".lstrip(".")
        if key not in known:
            raise ConfigError(f"unknown key {name!r} in a config of the reference code{nearest(str(key), known)}")
        if name in KNOWN and key in KNOWN[where]:
            if not isinstance(value, Mapping):
                raise ConfigError(f"{name}: must be a mapping, not {value!r}")
            _check_keys(value, name)
