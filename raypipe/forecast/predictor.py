"""Predict video with the result of a search: `load_predictor(folder).predict(frames, horizon)`."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from raypipe import checkpoint
from raypipe.common.device import autocast, choose_device
from raypipe.common.errors import UserError
from raypipe.common.places import to_place
from raypipe.config import SOLVERS, Component, Solver
from raypipe.config.sections import solver_name
from raypipe.forecast.decoding import PLAIN, LastFrame, decode, frames_of
from raypipe.forecast.manifest import CONSTANT, JOINT, MANIFEST, Manifest, find_best, model_folder, read_manifest
from raypipe.models.autoencoder import Autoencoder
from raypipe.models.components import Joint
from raypipe.sde.compiled import compiled_evaluate
from raypipe.sde.dynamics import ConstantDiffusion, Dynamics, Field, evaluate
from raypipe.sde.rollout import rollout

FRAME_BATCH = 64
"""Number of frames that the autoencoder encodes at once."""


class Predictor:
    """Predicts video with an autoencoder and the SDE's components, on the device chosen by `choose_device`.

    flow: may be a joint network; then there is no diffusion. more_flows: further ones, with which it takes turns,
    member by member. compile: compile the components with torch.compile at the first prediction.
    """

    def __init__(
        self,
        manifest: Manifest,
        autoencoder: Autoencoder,
        flow: nn.Module,
        denoiser: nn.Module | None = None,
        diffusion: nn.Module | ConstantDiffusion | None = None,
        compile: bool = False,
        more_flows: Sequence[nn.Module] = (),
    ) -> None:
        self.manifest = manifest
        self.device = choose_device()
        self.autoencoder = autoencoder.to(self.device)
        self._flows = [module.to(self.device) for module in (flow, *more_flows)]
        self._denoiser = None if denoiser is None else denoiser.to(self.device)
        self._diffusion: Field | None = diffusion.to(self.device) if isinstance(diffusion, nn.Module) else diffusion
        self._evaluate = compiled_evaluate() if compile else evaluate

    def dynamics(self) -> list[Dynamics]:
        """The SDE, with alpha and beta of the manifest, once for each flow."""
        alpha, beta = self.manifest.alpha, self.manifest.beta
        return [
            flow.dynamics(self._denoiser, alpha=alpha, beta=beta, evaluate=self._evaluate)
            if isinstance(flow, Joint)
            else Dynamics(flow, self._denoiser, self._diffusion, alpha, beta, evaluate=self._evaluate)
            for flow in self._flows
        ]

    @property
    def stochastic(self) -> bool:
        """Whether the members of a forecast differ."""
        dynamics = self.dynamics()
        return len(dynamics) > 1 or dynamics[0].stochastic

    @torch.no_grad()
    def predict(
        self,
        frames: Tensor,
        horizon: int,
        steps: int | None = None,
        members: int = 1,
        interpolate: int = 1,
        seed: int = 0,
        solver: Solver | None = None,
        first_frame: int = 0,
        first_window: int = 0,
    ) -> Tensor:
        """Predict the frames that follow each clip, as an ensemble of forecasts.

        frames: [b, T, 3, H, W] in [-1, 1], one frame interval apart, with T at least K = manifest.num_input_frames;
        the last K are used. horizon: number of frames to predict. steps: integration steps per frame interval (None:
        as in the manifest). interpolate = k: also return the frames at 1/k, ..., (k-1)/k of every interval, before the
        frame at its end; they need no extra steps and do not change the other frames. solver: euler_maruyama, milstein
        or heun_drift (None: as in the manifest). first_frame: index of the first predicted frame, which determines its
        noise; to continue an earlier forecast, give the number of frames predicted so far, as 0 would repeat its noise.
        first_window: index of the first clip, which determines the noise of each: clips that are predicted in several
        calls have the noise of a single call if their indices go on.

        Returns [b, members, horizon * interpolate, 3, H, W] in [-1, 1], on the CPU. All members of a model without
        noise are equal. Raises UserError for frames of the wrong shape or size, counts below 1 or an unknown solver.
        """
        steps = self.manifest.steps if steps is None else steps
        for name, count in (("horizon", horizon), ("steps", steps), ("members", members), ("interpolate", interpolate)):
            if count < 1:
                raise UserError(f"{name}: must be at least 1, not {count}")
        for name, index in (("first_frame", first_frame), ("first_window", first_window)):
            if index < 0:
                raise UserError(f"{name}: must be at least 0, not {index}")
        solver = solver_name(solver or self.manifest.solver)
        if solver not in SOLVERS:
            raise UserError(f"solver: must be one of {', '.join(SOLVERS)}, not {solver!r}")
        self._check(frames)
        given = frames[:, -self.manifest.num_input_frames :].float()
        context = self._encode(given)
        with autocast(self.device):
            latents = rollout(
                self.dynamics(),
                context,
                horizon,
                steps=steps,
                members=members,
                seed=seed,
                solver=solver,
                windows=range(first_window, first_window + len(context)),
                interpolate=interpolate,
                first_frame=first_frame,
                device=self.device,
            )
        different = members if self.stochastic else 1
        made = self._frames(latents[:, :different], given[:, -1].cpu(), context[:, -1], interpolate)
        return made.expand(-1, members, -1, -1, -1, -1)

    def _check(self, frames: Tensor) -> None:
        size, given = self.manifest.image_size, self.manifest.num_input_frames
        if frames.ndim != 5 or frames.shape[2] != 3 or len(frames) == 0 or not frames.is_floating_point():
            raise UserError(
                f"frames: must be floating point [b, T, 3, H, W] in [-1, 1], not {frames.dtype} {list(frames.shape)}"
            )
        if frames.shape[1] < given:
            raise UserError(f"frames: this model needs at least {given} input frames, not {frames.shape[1]}")
        if frames.shape[3:] != (size, size):
            raise UserError(
                f"frames: this model needs frames of {size}x{size} pixels, not {frames.shape[4]}x{frames.shape[3]}; "
                "resize them with raypipe.data.video.io.resize"
            )

    def _encode(self, frames: Tensor) -> Tensor:
        """Frames [..., 3, H, W] to latents [..., C, h, w], float32 on the CPU."""
        parts = frames.flatten(0, -4).split(FRAME_BATCH)
        with autocast(self.device):
            made = torch.cat([self.autoencoder.encode(part.to(self.device)).float().cpu() for part in parts])
        return made.view(*frames.shape[:-3], *made.shape[1:])

    def _frames(self, latents: Tensor, last: Tensor, last_latents: Tensor, interpolate: int) -> Tensor:
        """Decode forecasts, [b, M, T, C, h, w], given the last frames, [b, 3, H, W], and their latents."""
        decoded = decode(self.autoencoder, latents)
        if self.manifest.decoding == PLAIN:
            return decoded
        before = LastFrame(last, decode(self.autoencoder, last_latents))
        return frames_of(self.manifest.decoding, decoded, before, interpolate)


def load_predictor(folder: str | Path, *, compile: bool = False) -> Predictor:
    """Load the predictor from an experiment's folder or its `best/`, by path or by URI (s3://bucket/experiment,
    hf://USER/NAME).

    compile: compile the components with torch.compile at the first prediction, which can take minutes; later
    predictions are faster, and equal up to rounding. If compilation fails, the components run uncompiled.

    Raises UserError if the folder is neither of the two, or if models are missing, damaged or do not fit together.
    """
    found = folder if isinstance(folder, Path) else to_place(folder)
    place = find_best(found.expanduser() if isinstance(found, Path) else found)
    manifest = read_manifest(place)
    autoencoder = checkpoint.load_autoencoder(place / "autoencoder")
    channels = autoencoder.latent_channels
    kind: Component = "joint" if manifest.diffusion == JOINT else "flow"
    flow, *more = (_load(place, kind, manifest, channels, number) for number in range(1, manifest.models + 1))
    denoiser = None if manifest.denoiser is None else _load(place, "denoiser", manifest, channels)
    diffusion: nn.Module | ConstantDiffusion | None = None
    if manifest.diffusion == CONSTANT:
        if manifest.constant_std is None or len(manifest.constant_std) != channels:
            raise UserError(
                f"{place / MANIFEST}: constant_std: must be a list of {channels} numbers, not {manifest.constant_std}"
            )
        diffusion = ConstantDiffusion(torch.tensor(manifest.constant_std))
    elif manifest.diffusion not in (None, JOINT):
        diffusion = _load(place, "diffusion", manifest, channels)
    return Predictor(manifest, autoencoder, flow, denoiser, diffusion, compile, more)


def _load(place: Path, component: Component, manifest: Manifest, channels: int, number: int = 1) -> nn.Module:
    folder = place / model_folder(component, number)
    module, meta = checkpoint.load_component(folder), checkpoint.read_meta(folder)
    given = None if meta.model is None else meta.model.num_input_frames
    if meta.component != component:
        raise UserError(f"{folder}: contains a {meta.component}, not a {component}")
    if (meta.latent_channels, given) != (channels, manifest.num_input_frames):
        raise UserError(
            f"{folder}: made for {given} frames of {meta.latent_channels} channels, but {MANIFEST} and the autoencoder "
            f"next to it for {manifest.num_input_frames} frames of {channels}; run python -m raypipe.evaluate again"
        )
    return module
