"""The predictor that a combination makes."""

from raypipe import checkpoint
from raypipe.evaluation.combinations import Combination
from raypipe.forecast.decoding import PLAIN
from raypipe.forecast.manifest import CONSTANT, JOINT, Manifest
from raypipe.forecast.predictor import Predictor
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


def joint_predictor(data: ExperimentData, combination: Combination) -> Predictor:
    """The predictor of a combination whose flow is a joint network or a rival's, with the models of the search."""
    assert combination.diffusion == JOINT
    flow, *more = (checkpoint.load_component(data.workspace.run(*model)) for model in combination.models)
    autoencoder = checkpoint.load_autoencoder(data.workspace.autoencoder)
    return Predictor(predictor_manifest(data, combination), autoencoder, flow, more_flows=more)
