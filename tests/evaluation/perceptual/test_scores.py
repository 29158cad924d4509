"""Perceptual scores of combinations: against networks and distances applied by hand to the same frames."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from raypipe import checkpoint, config
from raypipe.common.errors import UserError
from raypipe.data.frames import to_float
from raypipe.evaluation import protocol
from raypipe.evaluation.combinations import Combination, CombinationScorer
from raypipe.evaluation.perceptual import efflite0, scores
from raypipe.evaluation.perceptual.scores import read_real_clips
from raypipe.evaluation.table import Table
from raypipe.forecast.decoding import decode
from raypipe.forecast.windows import climatology, forecast_windows, read_window
from raypipe.search import records
from tests.perceptualtools import I3dScript, JepaScript, VggScript, save_script

PERSISTENCE = Combination(None, None, None, steps=0, baseline="persistence")
CLIMATOLOGY = dataclasses.replace(PERSISTENCE, baseline="climatology")
RECONSTRUCTION = dataclasses.replace(PERSISTENCE, baseline="reconstruction", decoding="plain")
WINDOWS = 5


@pytest.fixture(scope="module")
def given(tiny_data, tmp_path_factory):
    """The tiny experiment with weights for FVD, LPIPS and JEDi, of small networks."""
    folder = tmp_path_factory.mktemp("weights")
    scripts = {"i3d": I3dScript(), "lpips": VggScript(), "vjepa": JepaScript()}
    files = {f"evaluation.{k}_weights": str(save_script(s, folder / f"{k}.pt")) for k, s in scripts.items()}
    return dataclasses.replace(tiny_data, experiment=config.replace(tiny_data.experiment, **files))


@pytest.fixture(scope="module")
def real(given):
    return read_real_clips(given, "test", WINDOWS)


def scored(data, combination, real):
    return CombinationScorer(data, "test", WINDOWS).score(combination, decode=True, real=real).perceptual


def replaced(data, **settings):
    return dataclasses.replace(data, experiment=config.replace(data.experiment, **settings))


def true_clips(data, split):
    """Given and true frames of the windows, [n, K + H, 3, h, w]."""
    shards, experiment = data.frames(split), data.experiment
    windows = forecast_windows(data.latents(split), experiment, WINDOWS, experiment.evaluation.seed)
    found = [read_window(shards, c, s, 5, 1) for c, s in zip(windows.clips, windows.starts, strict=True)]
    return to_float(torch.from_numpy(np.stack(found)))


def frechet(x, y):
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)


def i3d_features(clips):
    """What `I3dScript` gives, but for the zeros, which change no distance."""
    x = 127.5 * (clips.double().numpy() + 1)
    return np.concatenate([x.mean((1, 3, 4)), np.abs(np.diff(x, axis=1)).mean((1, 3, 4))], 1)


def jepa_features(clips):
    """What `JepaScript` gives, but for the zeros."""
    sized = torch.nn.functional.interpolate(clips.flatten(0, 1), (224, 224), mode="bilinear").double()
    means = (sized.mean((2, 3)).unflatten(0, clips.shape[:2]).mean(1).numpy() + 1) / 2
    return (means - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]


def jedi(x, y):
    return 100 * sum(sign * ((a @ b.T / 1280) ** 2).mean() for sign, a, b in ((1, x, x), (1, y, y), (-2, x, y)))


def test_scores_of_persistence(given, real):
    """One member, whose clips are the given frames and the last of them repeated."""
    found, true = scored(given, PERSISTENCE, real), true_clips(given, "test")
    made = torch.cat([true[:, :2], true[:, 1:2].expand(-1, 3, -1, -1, -1)], 1)
    assert found["fvd"] == pytest.approx(frechet(i3d_features(made), i3d_features(true)), rel=1e-3)
    others = true_clips(given, "train")
    assert found["fvd_floor"] == pytest.approx(frechet(i3d_features(others), i3d_features(true)), rel=1e-3)
    assert "fvd_sd" not in found and "jedi_sd" not in found
    gap = torch.nn.functional.avg_pool2d(((made - true)[:, 2:] / 2).flatten(0, 1), 8).square().sum((1, 2, 3))
    assert found["lpips"] == pytest.approx(gap.mean().item(), rel=1e-4)
    network = efflite0.load_efflite0(efflite0.weights_file())
    with torch.no_grad():
        layers = [[network(clip[2:]) for clip in clips] for clips in (made, true)]
        distances = [efflite0.distance(*pair).mean().item() for pair in zip(*layers, strict=True)]
        features = [np.stack([efflite0.clip_features(clip).numpy() for clip in clips]) for clips in layers]
    assert found["efflite0_distance"] == pytest.approx(np.mean(distances), rel=1e-4)
    assert found["efflite0_frechet"] == pytest.approx(frechet(*(f.astype(np.float64) for f in features)), rel=1e-3)


def test_each_member_is_a_repeat_of_fvd(given, real):
    """Climatology has five members, of which as many count as test forecasts have."""
    found, true = scored(given, CLIMATOLOGY, real), true_clips(given, "test")
    windows = forecast_windows(given.latents("test"), given.experiment, WINDOWS, 0)
    drawn = climatology(given.latents("train"), windows, 5, 0)
    made = decode(checkpoint.load_autoencoder(given.workspace.autoencoder), drawn[:, :4])
    clips = torch.cat([true[:, None, :2].expand(-1, 4, -1, -1, -1, -1), made.clamp(-1, 1)], 2)
    repeats = [frechet(i3d_features(clips[:, member]), i3d_features(true)) for member in range(4)]
    assert found["fvd"] == pytest.approx(np.mean(repeats), rel=1e-3)
    assert found["fvd_sd"] == pytest.approx(np.std(repeats, ddof=1), rel=1e-2)
    kernels = [jedi(jepa_features(clips[:, member]), jepa_features(true)) for member in range(4)]
    assert found["jedi"] == pytest.approx(np.mean(kernels), rel=1e-3)
    assert found["jedi_sd"] == pytest.approx(np.std(kernels, ddof=1), rel=1e-2)


def test_the_reconstruction_has_perceptual_scores_and_the_same_floor(given, real):
    found, still = scored(given, RECONSTRUCTION, real), scored(given, PERSISTENCE, real)
    assert found.keys() == still.keys()
    for name in ("efflite0_frechet_floor", "fvd_floor", "jedi_floor"):
        assert found[name] == still[name] > 0


def test_without_as_many_windows_of_training_clips_there_is_no_floor(given):
    """Training clips have 10 frames, windows up to 11; and there are only as many windows as clips have room for."""
    longer = {"dataset.num_frames": 11, "evaluation.horizon": 9}
    assert scores._windows(replaced(given, **longer), "train", WINDOWS) == []
    assert len(scores._windows(given, "train", 100)) == 6 * 6
    real = dataclasses.replace(read_real_clips(given, "test", WINDOWS), others={})
    found = scored(given, PERSISTENCE, real)
    assert found["fvd"] > 0 and not any(name.endswith("floor") for name in found)


def test_without_weights_and_package_there_are_no_perceptual_scores(tiny_data, monkeypatch):
    monkeypatch.setattr(efflite0, "MODULE", "no_such_module")
    real = read_real_clips(tiny_data, "test", WINDOWS)
    assert scored(tiny_data, PERSISTENCE, real) == {}
    assert "efflite0" not in protocol.protocol_of(tiny_data)["weights"]


def test_the_columns_of_the_table(own_data, given, real):
    table = Table(own_data.workspace)
    result = CombinationScorer(given, "test", WINDOWS).score(CLIMATOLOGY, decode=True, real=real)
    table.add("test", result)
    row = table.row("test", CLIMATOLOGY)
    for name in ("efflite0_distance", "efflite0_frechet", "efflite0_frechet_floor", "fvd", "fvd_sd", "fvd_floor",
                 "lpips", "jedi", "jedi_sd", "jedi_floor"):  # fmt: skip
        assert getattr(row, name) == result.perceptual[name]


def test_scores_with_other_weights_are_not_mixed(own_data, given, tmp_path):
    """The protocol holds their hashes; where the file lies does not matter."""
    path = given.experiment.evaluation.i3d_weights
    protocol.keep_protocol(replaced(own_data, **{"evaluation.i3d_weights": path}))
    kept = json.loads((own_data.workspace.evaluation / "protocol.json").read_text())
    assert len(kept["weights"]["i3d"]) == 64 and kept["weights"]["lpips"] is None
    records.write_rows(own_data.workspace.evaluation / "combinations.parquet", [{"split": "test"}])
    copy = tmp_path / "copy.pt"
    shutil.copy(path, copy)
    protocol.keep_protocol(replaced(own_data, **{"evaluation.i3d_weights": str(copy)}))
    with pytest.raises(UserError, match=r"weights.i3d was [0-9a-f]{64} when .* and is None now; run .* --again"):
        protocol.keep_protocol(own_data)
    said = protocol.in_words(kept, "test")
    assert f"; i3d weights {kept['weights']['i3d'][:12]}" in said
    assert "given frames are part of the clips of FVD and JEDi" in said
    assert "weights" not in protocol.in_words(kept, "validation")


def test_bad_weights_are_refused_before_anything_is_scored(own_data, monkeypatch):
    monkeypatch.setattr(scores, "load_network", lambda *args: pytest.fail("scored"))
    bad = {"evaluation.i3d_weights": str(own_data.workspace.folder / "none.pt")}
    with pytest.raises(UserError, match=r"^evaluation.i3d_weights: .*none.pt: no such file; accepted: i3d_torchscript"):
        protocol.check_protocol(replaced(own_data, **bad))
    assert protocol.read_protocol(own_data.workspace) is None
