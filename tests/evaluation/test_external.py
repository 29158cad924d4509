"""Scores under a written protocol: a model, and what other code wrote of the same frames; and all that is refused."""

import hashlib
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from raypipe import cli, config, evaluate
from raypipe.data.frames import to_float, to_uint8
from raypipe.data.shards import ShardWriter, open_shards
from raypipe.evaluation import external
from raypipe.evaluation.combinations import CombinationScorer
from raypipe.evaluation.perceptual.weights import load_network
from raypipe.evaluation.protocol import keep_protocol, protocol_of
from raypipe.evaluation.rules import names, open_task, read_rules
from raypipe.forecast.predictor import load_predictor
from raypipe.metrics.frechet import frechet_distance
from raypipe.workspace.dataset import prepare_dataset
from tests.evaluation.conftest import CHOSEN
from tests.perceptualtools import I3dScript, save_script
from tests.raytools import ROOT
from tests.videotools import save_frames, save_video


@pytest.fixture(scope="module")
def evaluated(data_with_best):
    """The experiment with a protocol, and the predictions of its best/ as shards."""
    keep_protocol(data_with_best)
    workspace = data_with_best.workspace
    flags = ("--model", workspace.folder, "--write-predictions", workspace.storage / "written")
    run(*flags, protocol=protocol_path(data_with_best))
    return data_with_best


def protocol_path(data):
    return data.workspace.evaluation / "protocol.json"


def run(*flags, protocol):
    """The command; `--storage` is that of the protocol's experiment."""
    storage = ["--storage", str(protocol.parents[2])] if hasattr(protocol, "parents") else []
    return cli.run(evaluate.main, "raypipe.evaluate", ["--protocol", str(protocol), *map(str, flags), *storage])


def written(data):
    """The members that the model predicted, by window and member."""
    shards = open_shards(data.workspace.storage / "written")
    return {name: shards.clip(i) for i, name in enumerate(shards.names)}


def windows(members):
    """The members of each window, stacked."""
    names = dict.fromkeys(name.rpartition("/")[0] for name in members)
    return {name: np.stack([members[f"{name}/{m}"] for m in range(4)]) for name in names}


def scores(path):
    found = json.loads(path.read_text())
    return found["scores"]


def as_videos(folder, members):
    for name, frames in members.items():
        save_video(folder / f"{name}.mkv", frames)


def as_mp4(folder, members):
    for name, frames in members.items():
        save_video(folder / f"{name}.mp4", frames, "libx264rgb", "rgb24", qp="0")


def as_images(folder, members):
    for name, frames in members.items():
        save_frames(folder / name, frames)


def as_arrays(folder, members):
    for name, frames in windows(members).items():
        folder.mkdir(exist_ok=True)
        np.savez_compressed(folder / f"{name}.npz", anything=frames)


def test_a_dry_run_reads_what_it_would_score_and_writes_nothing(evaluated, tmp_path, capsys):
    as_videos(tmp_path / "made", written(evaluated))
    before = sorted(tmp_path.rglob("*"))
    for flags in (("--predictions", tmp_path / "made"), ("--model", evaluated.workspace.folder)):
        assert run(*flags, "--out", tmp_path / "s", "--dry-run", protocol=protocol_path(evaluated)) == 0
        assert f"would score {flags[1]} on 5 windows" in capsys.readouterr().out
    assert run("--predictions", tmp_path / "nowhere", "--dry-run", protocol=protocol_path(evaluated)) == 2
    assert run("--out", tmp_path / "s", "--dry-run", protocol=protocol_path(evaluated)) == 0
    assert "would write" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("write", [as_videos, as_mp4, as_images, as_arrays])
def test_frames_that_other_code_wrote_score_as_those_of_the_model(evaluated, tmp_path, write, capsys):
    write(tmp_path / "made", written(evaluated))
    assert run("--predictions", tmp_path / "made", protocol=protocol_path(evaluated)) == 0
    said = capsys.readouterr().out
    assert "5 windows of 3 clips of demo's test split" in said and str(tmp_path / "made" / "scores.json") in said
    first = (tmp_path / "made" / "scores.json").read_bytes()
    assert scores(tmp_path / "made" / "scores.json") == scores(evaluated.workspace.storage / "written" / "scores.json")
    assert run("--predictions", tmp_path / "made", protocol=protocol_path(evaluated)) == 0
    assert (tmp_path / "made" / "scores.json").read_bytes() == first


def test_the_model_scores_as_in_its_own_evaluation(evaluated, tmp_path, monkeypatch):
    """The same windows and noise, in any batches; but here frames have 8 bits, and exact latents of the given ones."""
    settings = evaluated.experiment.evaluation
    own = CombinationScorer(evaluated, "test", settings.test_windows).score(CHOSEN, decode=True).pixels
    monkeypatch.setattr(external, "FRAMES", 2 * 4 * 3)
    assert run("--model", evaluated.workspace.folder, "--out", tmp_path / "s", protocol=protocol_path(evaluated)) == 0
    found = scores(tmp_path / "s")
    assert found["crps_ratio_pixels"]["mean"] == pytest.approx(own.crps_ratio, rel=0.01)
    assert found["psnr"]["mean"] == pytest.approx(own.psnr, abs=0.02)
    task = open_task(read_rules(str(protocol_path(evaluated))), evaluated.workspace.storage, {})
    given = torch.stack([task.frames(i)[0] for i in range(len(task.windows))])
    at_once = load_predictor(evaluated.workspace.best).predict(given, 3, members=4, seed=settings.seed)
    batched = np.stack([*windows(written(evaluated)).values()])
    assert np.abs(batched.astype(int) - to_uint8(at_once).numpy()).max() <= 1
    kept = json.loads((tmp_path / "s").read_text())
    assert kept["protocol"]["windows"]["test"] == protocol_of(evaluated)["windows"]["test"]
    assert set(kept["model"]) == {"autoencoder/model.safetensors", "flow/model.safetensors"}


def test_perceptual_scores_with_weights_that_the_user_gives(evaluated, tmp_path, capsys):
    weights = save_script(I3dScript(), tmp_path / "i3d.pt")
    as_videos(tmp_path / "made", written(evaluated))
    flags = ("--i3d-weights", weights, "--predictions", tmp_path / "made")
    assert run(*flags, protocol=protocol_path(evaluated)) == 0
    assert "FVD" in capsys.readouterr().out
    found = json.loads((tmp_path / "made" / "scores.json").read_text())
    assert found["weights"]["i3d"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    task = open_task(read_rules(str(protocol_path(evaluated))), evaluated.workspace.storage, {})
    network = load_network("i3d", weights)
    clips = [torch.cat(task.frames(i)) for i in range(len(task.windows))]
    given = len(task.frames(0)[0])
    made = [to_float(torch.from_numpy(frames)) for frames in windows(written(evaluated)).values()]
    with torch.no_grad():
        true = torch.cat([network(clip[None]) for clip in clips]).numpy()
        repeats = []
        for member in range(len(made[0])):
            ours = [torch.cat([clip[:given], one[member]]) for clip, one in zip(clips, made, strict=True)]
            repeats.append(frechet_distance(torch.cat([network(clip[None]) for clip in ours]).numpy(), true))
    assert found["scores"]["fvd"]["mean"] == pytest.approx(np.mean(repeats), rel=1e-4)
    assert found["scores"]["fvd"]["sd"] == pytest.approx(np.std(repeats, ddof=1), rel=1e-3)
    weights.write_bytes(b"no network")
    assert run(*flags, "--out", tmp_path / "other", protocol=protocol_path(evaluated)) == 2
    assert "i3d_torchscript.pt" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_repeats_are_scored_on_their_own(evaluated, tmp_path, capsys):
    protocol = protocol_of(evaluated) | {"repeats": 2}
    protocol["members"]["test"] = 2
    (tmp_path / "a" / "b").mkdir(parents=True)
    path = tmp_path / "a" / "b" / "protocol.json"
    path.write_text(json.dumps(protocol))
    members = written(evaluated)
    root = ("--dataset.root", evaluated.workspace.dataset(evaluated.experiment))
    all_members = evaluated.workspace.storage / "written"
    assert run("--predictions", all_members, "--out", tmp_path / "both", *root, protocol=path) == 0
    assert "in each of 2 repeats" in capsys.readouterr().out
    protocol["repeats"] = 1
    path.write_text(json.dumps(protocol))
    alone = []
    for half in range(2):
        part = {f"{name}/{m}": frames[2 * half + m] for name, frames in windows(members).items() for m in range(2)}
        as_videos(tmp_path / str(half), part)
        assert run("--predictions", tmp_path / str(half), *root, protocol=path) == 0
        alone.append(scores(tmp_path / str(half) / "scores.json")["psnr"]["mean"])
    both = scores(tmp_path / "both")["psnr"]
    assert both["mean"] == pytest.approx(np.mean(alone)) and both["sd"] == pytest.approx(np.std(alone, ddof=1))


def test_the_last_frame_repeated_scores_as_persistence(evaluated, tmp_path):
    """One member for each window is a forecast without noise; it may lie beside the others, without a folder."""
    shards = evaluated.frames("test")
    for window in protocol_of(evaluated)["windows"]["test"]:
        clip = shards.clip(shards.names.index(window["clip"]))
        last = clip[window["start"] + 1]
        save_video(tmp_path / "still" / f"{window['clip']}-{window['start']}.mkv", last[None].repeat(3, 0))
    assert run("--predictions", tmp_path / "still", protocol=protocol_path(evaluated)) == 0
    found = json.loads((tmp_path / "still" / "scores.json").read_text())
    assert {name: found["scores"][name] for name in found["persistence"]} == found["persistence"]
    assert found["members"] == 1
    assert found["scores"]["crps_ratio_pixels"]["mean"] == pytest.approx(1)


def drop_one(folder, first):
    shutil.rmtree(folder / first)


def add_one(folder, first):
    save_video(folder / "stranger" / "0.mkv", np.zeros((3, 32, 32, 3), np.uint8))


def no_last_member(folder, first):
    (folder / first / "3.mkv").unlink()


def no_first_member(folder, first):
    (folder / first / "0.mkv").unlink()


def twice(folder, first):
    shutil.copy(folder / first / "1.mkv", folder / first / "01.mkv")


def with_given(folder, first):
    save_video(folder / first / "2.mkv", np.zeros((5, 32, 32, 3), np.uint8))


def larger(folder, first):
    save_video(folder / first / "2.mkv", np.zeros((3, 64, 64, 3), np.uint8))


def truncated(folder, first):
    path = folder / first / "2.mkv"
    path.write_bytes(path.read_bytes()[:200])


def of_floats(folder, first):
    """All windows as arrays, one of them of floats."""
    for window in sorted(path.name for path in folder.iterdir()):
        shutil.rmtree(folder / window)
        np.savez(folder / f"{window}.npz", np.zeros((4, 3, 32, 32, 3), np.float32 if window == first else np.uint8))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (drop_one, r"made: has no prediction of {first}, a window of the protocol \(4 of 5 are there\)"),
        (add_one, r"stranger/0.mkv: is of no window of the protocol, which has {first}/0.mp4 to {first}/3.mp4, or"),
        (no_last_member, "made: {first} has 3 members, but must have 4"),
        (no_first_member, "made: {first} has no member 0, but 3 others; members count from 0"),
        (twice, r"{first}/1.mkv: .*{first}/01.mkv is the same member of {first}; remove one of them"),
        (with_given, "{first}/2.mkv: has 5 frames, but the protocol predicts 3; leave out the 2 given ones"),
        (larger, "{first}/2.mkv: has frames of 64x64 pixels, not 32x32; write predictions at the size"),
        (truncated, "{first}/2.mkv: "),
        (of_floats, r"{first}.npz: must hold uint8, not float32; write values x of \[-1, 1\] as round"),
    ],
)
def test_what_does_not_fit_is_named(evaluated, tmp_path, capsys, spoil, said):
    members = written(evaluated)
    as_videos(tmp_path / "made", members)
    first = next(iter(members)).rpartition("/")[0]
    spoil(tmp_path / "made", first)
    assert run("--predictions", tmp_path / "made", protocol=protocol_path(evaluated)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("raypipe.evaluate: error: ")
    assert re.search(said.format(first=first), error), error
    assert not (tmp_path / "made" / "scores.json").exists()


def test_levels_of_0_and_1_are_no_frames(evaluated, tmp_path, capsys):
    as_arrays(tmp_path / "made", {name: frames // 255 for name, frames in written(evaluated).items()})
    assert run("--predictions", tmp_path / "made", protocol=protocol_path(evaluated)) == 2
    assert "all values are 0 or 1 of 255" in capsys.readouterr().err


def other_clips(data, tmp_path):
    experiment = config.replace(data.experiment, **{"demo.seed": 1})
    return prepare_dataset(replace(data.workspace, storage=tmp_path), experiment, lambda done, total: None)


def shorter_clips(data, tmp_path):
    experiment = config.replace(data.experiment, **{"demo.clip_frames": 6})
    return prepare_dataset(replace(data.workspace, storage=tmp_path), experiment, lambda done, total: None)


def larger_frames(data, tmp_path):
    experiment = config.replace(data.experiment, **{"dataset.image_size": 40})
    return prepare_dataset(replace(data.workspace, storage=tmp_path), experiment, lambda done, total: None)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (other_clips, "has other frames than the protocol's clips of these names"),
        (shorter_clips, "a window of 5 frames from frame . of clip .* but here is only 6 frames"),
        (larger_frames, r"has frames of \[40, 40, 3\], but those of the protocol are \[32, 32, 3\]"),
        (lambda data, tmp_path: tmp_path, "test: no shards here, on which the protocol scores forecasts"),
    ],
)
def test_another_dataset_is_refused(evaluated, tmp_path, capsys, make, said):
    root = make(evaluated, tmp_path)
    flags = ("--predictions", evaluated.workspace.storage / "written", "--dataset.root", root)
    assert run(*flags, protocol=protocol_path(evaluated)) == 2
    error = capsys.readouterr().err
    assert re.search(said, error) and error.count("\n") == 1, error


def test_protocols_of_earlier_versions(evaluated, tmp_path, capsys):
    """They name neither repeats nor the place of the dataset."""
    protocol = protocol_of(evaluated)
    for name in ("root", "demo"):
        del protocol["dataset"][name]
    del protocol["repeats"], protocol["predictions"], protocol["frames"]["given_in_fvd"]
    path = tmp_path / "a" / "b" / "protocol.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(protocol))
    flags = ("--predictions", evaluated.workspace.storage / "written", "--out", tmp_path / "s")
    assert run(*flags, protocol=path) == 2
    assert "does not say where its dataset is, demo; add --dataset.root SHARDS" in capsys.readouterr().err
    assert run(*flags, "--dataset.root", evaluated.workspace.dataset(evaluated.experiment), protocol=path) == 0
    assert scores(tmp_path / "s") == scores(evaluated.workspace.storage / "written" / "scores.json")


@pytest.mark.parametrize("name", names())
def test_named_protocols_are_those_of_the_configs(name):
    rules = read_rules(name).rules
    dataset, given, predicted = name.split("-")
    assert (rules.dataset.name, rules.frames.given, rules.frames.predicted) == (dataset, int(given), int(predicted))
    trained = config.load(ROOT / "experiments" / "configs" / f"{dataset}.yaml")
    assert rules.frames.image_size == trained.dataset.image_size == rules.dataset.preprocessing.size
    if name != "kth-10-30" and name != "bair-1-15":
        assert (trained.model.num_input_frames, trained.evaluation.horizon) == (int(given), int(predicted))
    assert "Not comparable" in read_rules(name).text["note"]


def test_a_named_protocol_draws_its_windows_from_the_dataset(tmp_path, capsys):
    """One window of each clip that is long enough; the file with them by name is a protocol too."""
    pattern = np.random.default_rng(0).integers(0, 50, (64, 64, 3))
    clips = {f"clip{i}": np.stack([pattern + 20 + t * (i + 3) for t in range(n)]) for i, n in enumerate((18, 16, 12))}
    with ShardWriter(tmp_path / "bair" / "test") as writer:
        for name, clip in clips.items():
            writer.add(name, clip.astype(np.uint8))
    root, written = ("--dataset.root", tmp_path / "bair"), tmp_path / "protocol.json"
    assert run(*root, "--out", written, protocol="bair-1-15") == 0
    assert "Not comparable with bair-4-12" in capsys.readouterr().out
    drawn = json.loads(written.read_text())["windows"]["test"]
    assert [window["clip"] for window in drawn] == ["clip0", "clip1"]
    errors, still = [], []
    for window in drawn:
        frames = np.full((15, 64, 64, 3), 25, np.uint8)
        save_video(tmp_path / "made" / f"{window['clip']}-{window['start']}.mkv", frames)
        last, *true = clips[window["clip"]][window["start"] :][:16]
        errors.append(np.abs(np.array(true) - 25))
        still.append(np.abs(np.array(true) - last))
    placed = json.loads(written.read_text())
    placed["dataset"]["root"] = str(tmp_path / "bair")  # as the protocol of an experiment says where its dataset is
    (tmp_path / "placed.json").write_text(json.dumps(placed))
    for protocol, place in (("bair-1-15", root), (written, root), (tmp_path / "placed.json", ())):
        flags = ("--predictions", tmp_path / "made", *place, "--out", tmp_path / "scores")
        assert run(*flags, protocol=protocol) == 0
        found = scores(tmp_path / "scores")["crps_ratio_pixels"]["mean"]
        assert found == pytest.approx(np.mean(errors) / np.mean(still), rel=1e-5)
    made = {"size": 64, "fit": "pad", "grey": False, "frame_stride": 1}
    (tmp_path / "bair" / "test" / "conversion.json").write_text(json.dumps({"preprocessing": made}))
    assert run(*flags, *root, protocol="bair-1-15") == 2
    assert "test: made from videos padded to 64x64, color, every frame, but those of the protocol cropped" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--protocol", "kth-10-31"], "neither a file nor a named protocol: 'kth-10-31'; did you mean 'kth-10-30'"),
        (["--protocol", "kth-10-30"], "does not say where its dataset is, kth; add --dataset.root SHARDS"),
        (["--protocol", "kth-10-30", "--evaluation.horizon", "3"], "--evaluation.horizon: does not apply with"),
        (["--protocol", "kth-10-30", "--model", "a", "--predictions", "b"], "--predictions: contradicts --model"),
        (["--protocol", "kth-10-30", "--write-predictions", "a"], "--write-predictions: needs --model"),
        (["--predictions", "a"], "--predictions: needs --protocol"),
    ],
)
def test_wrong_flags(tmp_path, capsys, flags, said):
    assert cli.run(evaluate.main, "raypipe.evaluate", [*flags, "--storage", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_a_model_that_cannot_predict_it(evaluated, tmp_path, capsys):
    protocol = protocol_of(evaluated)
    path = tmp_path / "a" / "b" / "protocol.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(protocol | {"frames": protocol["frames"] | {"given": 1}}))
    root = ("--dataset.root", evaluated.workspace.dataset(evaluated.experiment))
    assert run("--model", evaluated.workspace.folder, *root, protocol=path) == 2
    assert "needs 2 given frames, but the protocol gives 1" in capsys.readouterr().err
