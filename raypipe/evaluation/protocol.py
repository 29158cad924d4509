"""evaluation/protocol.json: what every forecast of an evaluation was asked, so that others can be compared with it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raypipe.common.errors import ConfigError, first_line
from raypipe.common.files import write_json
from raypipe.data.conversion.preprocessing import Preprocessing, every
from raypipe.evaluation.combinations import CHOICE_WINDOWS, HeldOutSplit
from raypipe.evaluation.perceptual.weights import check_weights, weights_hashes
from raypipe.evaluation.predictions import LAYOUT
from raypipe.evaluation.table import SPLIT_NAMES
from raypipe.forecast.windows import window_starts
from raypipe.metrics.variogram import DISTANCES, GRID
from raypipe.workspace.dataset import ExperimentData, dataset_preprocessing
from raypipe.workspace.layout import Workspace
from raypipe.workspace.manifest import dataset_hashes, manifest

Protocol = Mapping[str, Any]
METRICS = {
    "crps_ratio": "fair CRPS (Ferro 2014) of each value of the latents, over that of the last given frame repeated",
    "energy_ratio": "fair energy score (Gneiting and Raftery 2007) of whole latents, root mean square over their "
    "values, over that of the last given frame repeated",
    "variogram_ratio": "fair variogram score of order 1/2 (Scheuerer and Hamill 2015) of whole latents, over that of "
    f"the last given frame repeated; pairs start on a grid of every (size // {GRID})-th row and column, lie "
    f"{', '.join(map(str, DISTANCES))} apart along rows and columns with the weight 1 / distance, and between a "
    "channel and the next one with the weight 1",
    "spread_skill": "sqrt((M + 1) / M x variance of M members / squared error of their mean), of latents",
    "rank_histogram": "frequency of the number of members below each true value of the latents; ties are shared",
    "reliability_index": "sum over ranks of |frequency - 1 / (M + 1)| (Delle Monache et al. 2006); null if M = 1",
    "coverage_50, coverage_80, coverage_90": "frequency of true values within the central interval of the ranks; null "
    "where the interval reaches beyond the outermost members",
    "*_pixels": "the same of decoded frames, clipped to the range",
    "psnr": "10 log10(range^2 / mean squared error of a frame) of single members, dB",
    "ssim": "structural similarity (Wang et al. 2004) of single members: Gaussian window of 11 x 11 pixels, standard "
    "deviation 1.5, k1 = 0.01, k2 = 0.03, mean over channels",
    "bodies_kept": "of the demo: share of the bodies of the last given frame that single members show at the last "
    "predicted one with 0.4 to 2.5 times their area, found by hue",
    "efflite0_distance": "of frames of the first member, on test: mean over positions and over blocks 0, 2, 4 and 10 "
    "of EfficientNet-Lite0 of the squared distance between features scaled to length 1; not LPIPS",
    "efflite0_frechet": "Frechet distance between the predicted clips of the first member and the true ones, without "
    "given frames, on test; features: mean over time of block 10 of EfficientNet-Lite0, and 3 times the mean size of "
    "its change from frame to frame; not FVD",
    "fvd": "Frechet distance (Unterthiner et al. 2018) between the features of I3D of the predicted and of the true "
    "clips, with their given frames, on test: mean over members, each of which is a repeat",
    "lpips": "LPIPS (Zhang et al. 2018) of single members, on test",
    "jedi": "JEDi (Luo et al. 2024): 100 times the squared maximum mean discrepancy, with the kernel (a . b / D)^2, "
    "between the features of V-JEPA of the predicted and of the true clips, with their given frames, on test",
    "*_sd": "standard deviation over members, each of which is a repeat",
    "*_floor": "of as many clips of the training split, instead of predicted ones",
    "difference, behind_chosen": "crps_ratio minus that of the default and of the chosen combination, paired by window",
    "*_se": "standard error over windows, of ratios by the delta method",
    "mean, sd": "under evaluate --protocol: mean and standard deviation over repeats, of ensembles with members of "
    "their own; frames are rounded to 8 bits before they are scored",
}
"""Columns of combinations.parquet and scores.json. Each score is a mean over predicted frames and windows; given
frames enter FVD and JEDi alone, see `given_in_fvd`."""

NOT_COMPARED = ("versions", "metrics", "predictions", "root")
"""Entries in which two protocols of the same scores may differ: the code, its words, and where the dataset is."""


def protocol_of(data: ExperimentData) -> dict[str, Any]:
    """The protocol of an experiment's evaluation. `start` of a window: its first given frame, of those of its clip."""
    experiment, root = data.experiment, data.workspace.dataset(data.experiment)
    evaluation, dataset = experiment.evaluation, experiment.dataset
    made = dataset_preprocessing(root)
    counts: dict[HeldOutSplit, int] = {"val": evaluation.windows, "test": evaluation.test_windows}
    ran = manifest(experiment)
    return {
        "dataset": {
            "name": dataset.name,
            "root": dataset.root,
            "demo": asdict(experiment.demo) if experiment.dataset.simulated else None,
            "content": dataset_hashes(root),
            "preprocessing": made and asdict(made),
        },
        "frames": {
            "image_size": dataset.image_size,
            "channels": 3,
            "range": [-1, 1],
            "frame_stride": dataset.frame_stride,
            "given": experiment.model.num_input_frames,
            "predicted": evaluation.horizon,
            "given_in_fvd": True,
        },
        "members": {
            "validation": evaluation.members,
            "test": evaluation.test_members,
            "climatology": evaluation.climatology_members,
            "deterministic": 1,
        },
        "repeats": 1,
        "predictions": LAYOUT,
        "seed": evaluation.seed,
        "autoencoder": data.autoencoder_hash,
        "decoding": f"{evaluation.decoding}, chosen on at most {CHOICE_WINDOWS} validation windows",
        "metrics": METRICS,
        "weights": weights_hashes(evaluation),
        "versions": ran["versions"] | {"commit": ran["commit"]},
        "windows": {
            SPLIT_NAMES[split]: _windows(data, split, count) for split, count in counts.items() if split in data.splits
        },
    }


def _windows(data: ExperimentData, split: HeldOutSplit, count: int) -> list[dict[str, Any]]:
    shards = data.frames(split)
    clips, starts = window_starts(shards.lengths, data.experiment, count, data.experiment.evaluation.seed)
    return [{"clip": shards.names[clip], "start": start} for clip, start in zip(clips, starts, strict=True)]


def keep_protocol(data: ExperimentData) -> None:
    """Check the protocol, and write it. Its versions are those with which the first of the scores were made."""
    kept, found = check_protocol(data), protocol_of(data)
    if kept is not None:
        found |= {"versions": kept["versions"], "weights": found["weights"] | kept.get("weights", {})}
    write_json(_path(data.workspace), found)


def check_protocol(data: ExperimentData) -> Protocol | None:
    """The protocol of the scores that an experiment has; None if there are none, or no protocol of them.

    Raises ConfigError if it is not that of the present settings, as scores of two protocols cannot be compared, or if
    there is something wrong with the weights of a metric.
    """
    check_weights(data.experiment)
    path, kept = _path(data.workspace), read_protocol(data.workspace)
    if kept is None or not (path.parent / "combinations.parquet").is_file():
        return None
    for name, before, now in _differences(kept, protocol_of(data)):
        raise ConfigError(
            f"{path}: {name} was {before} when the forecasts were scored, and is {now} now; run python -m "
            "raypipe.evaluate --again with it to score all anew, or set it as before"
        )
    return kept


def read_protocol(workspace: Workspace) -> dict[str, Any] | None:
    """The protocol of an evaluation; None if there is none, as in those of earlier versions."""
    path = _path(workspace)
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: not a protocol ({first_line(error)}); delete it") from None


def _path(workspace: Workspace) -> Path:
    return workspace.evaluation / "protocol.json"


def _differences(kept: Protocol, found: Protocol, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, value before, value now) of what differs, of what both have, but for `NOT_COMPARED`."""
    for name in [name for name in kept if name in found and name not in NOT_COMPARED]:
        before, now = kept[name], found[name]
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            yield from _differences(before, now, f"{prefix}{name}.")
        elif isinstance(before, list) and isinstance(now, list) and len(before) != len(now):
            yield f"the number of {prefix}{name}", len(before), len(now)
        elif before != now:
            yield f"{prefix}{name}", before, now


OTHER_MEMBERS = {"climatology": "climatology", "deterministic": "without noise"}
"""Numbers of members, besides those of the splits, and their names."""


def in_words(protocol: Protocol, split: str, path: str = "evaluation/protocol.json") -> str:
    """The protocol of a split, `validation` or `test`, in one line. path: the file that has it."""
    frames, members, windows = protocol["frames"], protocol["members"], protocol["windows"].get(split, [])
    made = protocol["dataset"].get("preprocessing")
    treated = every(frames["frame_stride"]) if made is None else f"videos {Preprocessing(**made)}"
    if made is not None and frames["frame_stride"] > 1:
        treated += f", then {every(frames['frame_stride'])}"
    size, (low, high) = frames["image_size"], frames["range"]
    hashes = {name: digest for name, digest in protocol.get("weights", {}).items() if digest is not None}
    seen = "".join(f"; {name} weights {digest[:12]}" for name, digest in hashes.items() if split == "test")
    if hashes.keys() & {"i3d", "vjepa"} and seen:
        seen += ", given frames are part of the clips of FVD and JEDi"
    others = [f"{words} {members[name]}" for name, words in OTHER_MEMBERS.items() if name in members]
    ensemble = f"{members[split]} members" + (f" ({', '.join(others)})" if others else "")
    if protocol.get("repeats", 1) > 1:
        ensemble += f" in each of {protocol['repeats']} repeats (± is their standard deviation)"
    return (
        f"protocol: {len(windows)} windows of {len({window['clip'] for window in windows})} clips of "
        f"{protocol['dataset']['name']}'s {split} split; {frames['given']} frames given, {frames['predicted']} "
        f"predicted and scored; {size}x{size} pixels in [{low}, {high}], {treated}; {ensemble}, seed "
        f"{protocol['seed']}{seen}; clips by name, metrics and versions in {path}"
    )
