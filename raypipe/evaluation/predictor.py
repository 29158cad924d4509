"""The predictor that a combination makes."""

import torch
from torch import nn

from raypipe import checkpoint
from raypipe.config import Component
from raypipe.evaluation.combinations import Combination
from raypipe.forecast.decoding import PLAIN
from raypipe.forecast.manifest import CONSTANT, Manifest
from raypipe.forecast.predictor import Predictor
from raypipe.sde.dynamics import ConstantDiffusion
from raypipe.workspace.dataset import ExperimentData, dataset_preprocessing


def predictor_manifest(data: ExperimentData, combination: Combination) -> Manifest:
    """The manifest of the predictor of a combination whose beta is fitted."""
    experiment, beta = data.experiment, combination.beta
    assert beta is not None
    constant = [s * beta for s in combination.residual_std] if combination.diffusion == CONSTANT else None
    return Manifest(
        flow=combination.flow,
        denoiser=combination.denoiser,
        diffusion=combination.diffusion,
        alpha=combination.alpha,
        beta=1.0 if constant else beta,
        steps=combination.steps,
        solver=combination.solver,
        constant_std=constant,
        num_input_frames=experiment.model.num_input_frames,
        image_size=experiment.dataset.image_size,
        frame_stride=experiment.dataset.frame_stride,
        dataset=experiment.dataset.name,
        preprocessing=dataset_preprocessing(data.workspace.dataset(experiment)),
        models=1 + len(combination.more_models),
        decoding=combination.decoding or PLAIN,
    )


def combination_predictor(data: ExperimentData, combination: Combination) -> Predictor:
    """The predictor of a combination whose beta is fitted, with the models of the search."""
    manifest = predictor_manifest(data, combination)

    def load(component: Component, name: str | None) -> nn.Module | None:
        return None if name is None else checkpoint.load_component(data.workspace.run(component, name))

    flows = [load(combination.flow_component, name) for name in (combination.flow_model, *combination.more_models)]
    first, *more = (flow for flow in flows if flow is not None)
    constant, diffusion = manifest.constant_std, load("diffusion", combination.diffusion_model)
    return Predictor(
        manifest,
        checkpoint.load_autoencoder(data.workspace.autoencoder),
        first,
        load("denoiser", combination.denoiser_model),
        diffusion if constant is None else ConstantDiffusion(torch.tensor(constant)),
        more_flows=more,
    )
