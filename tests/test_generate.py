"""The predictor, on tiny random components; the verb that shows what it predicts."""

import json
import shutil
from dataclasses import asdict, replace

import av
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import raypipe
from raypipe import checkpoint, cli, config, generate
from raypipe.data.frames import to_float
from raypipe.data.shards import ShardWriter, open_shards
from raypipe.data.video.io import write_video
from raypipe.forecast.clip import read_clip
from raypipe.forecast.film import forecast_film
from raypipe.forecast.manifest import Manifest
from raypipe.forecast.predictor import load_predictor
from raypipe.models.autoencoder import build_autoencoder
from raypipe.models.components import build_component
from raypipe.sde.dynamics import ConstantDiffusion, evaluate
from tests.videotools import read_video

SIZE, GIVEN, CHANNELS = 32, 2, 4
MANIFEST = Manifest(
    flow="flow-00",
    denoiser="denoiser-01",
    diffusion="diffusion-02",
    alpha=1.0,
    beta=0.5,
    steps=2,
    num_input_frames=GIVEN,
    image_size=SIZE,
    frame_stride=1,
    dataset="demo",
)


def save_model(folder, **changes):
    """A best/ of random weights; `changes` are fields of its manifest."""
    manifest = asdict(MANIFEST) | changes
    torch.manual_seed(0)
    settings = config.Autoencoder(channels=CHANNELS, width=8)
    checkpoint.save_autoencoder(folder / "autoencoder", build_autoencoder(settings), settings)
    model = config.Model(num_input_frames=GIVEN, inner_dim=16)
    for component in config.REFERENCE_COMPONENTS:
        if manifest[component] not in (None, "constant", "joint"):
            module = build_component(component, model, CHANNELS)
            meta = checkpoint.Meta(CHANNELS, component=component, model=model)
            checkpoint.save_component(folder / component, module, meta)
    (folder / "manifest.json").write_text(json.dumps(manifest | {"fps": 5.0, "written_by": "another version"}))
    return folder


def moving(frames=12, height=SIZE, width=SIZE):
    """A bright square that wanders over a dark ground."""
    clip = np.full((frames, height, width, 3), 30, np.uint8)
    for t in range(frames):
        clip[t, 4 + t : 12 + t, 6 + t : 14 + t] = (220, 180, 40)
    return clip


def context(batch=2, frames=3):
    return to_float(torch.from_numpy(np.stack([moving(frames), moving(frames)[::-1].copy()])[:batch]))


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("experiment") / "best")


@pytest.fixture(scope="module")
def predictor(best):
    return raypipe.load_predictor(best)


def test_predicted_frames(predictor):
    predicted = predictor.predict(context(), 3, members=2, interpolate=2)
    assert predicted.shape == (2, 2, 6, 3, SIZE, SIZE)
    assert predicted.dtype == torch.float32
    assert predicted.min() >= -1
    assert predicted.max() <= 1


def test_the_seed_decides_and_only_the_last_frames_count(predictor):
    first = predictor.predict(context(), 2, members=2, seed=3)
    longer = torch.cat([torch.zeros_like(context()), context()], 1)
    torch.testing.assert_close(predictor.predict(longer, 2, members=2, seed=3), first)
    assert not torch.equal(predictor.predict(context(), 2, members=2, seed=4), first)
    assert not torch.equal(first[:, 0], first[:, 1])


def test_interpolation_leaves_whole_frames_as_they_are(predictor):
    whole = predictor.predict(context(), 3, seed=1)
    torch.testing.assert_close(predictor.predict(context(), 3, interpolate=4, seed=1)[:, :, 3::4], whole)


def test_steps_default_to_the_manifests(predictor):
    assert torch.equal(predictor.predict(context(), 2), predictor.predict(context(), 2, steps=2))
    assert not torch.equal(predictor.predict(context(), 2), predictor.predict(context(), 2, steps=1))


def test_a_predictor_compiles_its_components_if_asked_to(best, predictor, monkeypatch):
    calls = []

    def spy(fields, x, u, noise):
        calls.append(len(fields))
        return evaluate(fields, x, u, noise)

    monkeypatch.setattr("raypipe.forecast.predictor.compiled_evaluate", lambda: spy)
    compiled = load_predictor(best, compile=True)
    assert torch.equal(compiled.predict(context(), 2), predictor.predict(context(), 2))
    assert calls == [3] * 4  # flow, denoiser and diffusion together, at 2 steps of 2 frames
    assert torch.equal(load_predictor(best).predict(context(), 2), predictor.predict(context(), 2))
    assert len(calls) == 4


def test_constant_diffusion(tmp_path):
    predictor = load_predictor(save_model(tmp_path, diffusion="constant", constant_std=[0.1, 0.2, 0.3, 0.4], beta=2.0))
    (dynamics,) = predictor.dynamics()
    assert isinstance(dynamics.diffusion, ConstantDiffusion)
    assert dynamics.diffusion.std.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert (dynamics.alpha, dynamics.beta) == (1.0, 2.0)
    assert not torch.equal(*predictor.predict(context(1), 1, members=2)[0])


def save_joints(folder, noise, count):
    """A best/ with `count` trainings of a joint network."""
    save_model(folder, flow="joint-00", denoiser=None, diffusion="joint", models=count)
    shutil.rmtree(folder / "flow")
    model = config.Model(num_input_frames=GIVEN, inner_dim=16, backbone="conv")
    for number in range(1, count + 1):
        torch.manual_seed(number)
        module = build_component("joint", model, CHANNELS, noise)
        meta = checkpoint.Meta(CHANNELS, component="joint", model=model, noise=noise)
        checkpoint.save_component(folder / ("joint" if number == 1 else f"joint-{number}"), module, meta)
    return folder


@pytest.mark.parametrize("noise", ["additive", "input"])
def test_a_joint_network_predicts_alone_and_with_those_of_other_seeds(noise, tmp_path):
    one, two = (load_predictor(save_joints(tmp_path / str(count), noise, count)) for count in (1, 2))
    alone, turns = (predictor.predict(context(), 3, members=3, interpolate=2) for predictor in (one, two))
    assert alone.shape == turns.shape == (len(context()), 3, 6, 3, SIZE, SIZE)
    assert not torch.equal(alone[:, 0], alone[:, 1])
    torch.testing.assert_close(turns[:, 0], alone[:, 0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(turns[:, 1], alone[:, 1], atol=1e-3)
    shutil.rmtree(tmp_path / "2" / "joint-2")
    with pytest.raises(ValueError, match="joint-2"):
        load_predictor(tmp_path / "2")


def test_without_noise_members_are_equal(tmp_path):
    predictor = load_predictor(save_model(tmp_path / "best", denoiser=None, diffusion=None))
    predicted = predictor.predict(context(), 2, members=3)
    assert predicted.shape[1] == 3
    assert torch.equal(predicted[:, 0], predicted[:, 2])


def test_an_experiments_folder_will_do(best, predictor):
    (best.parent / "manifest.json").write_text("{}")  # what ran: of another kind
    assert load_predictor(best.parent).manifest == predictor.manifest == MANIFEST


def test_the_solver_is_the_manifests_unless_another_is_asked_for(tmp_path):
    heun, plain = (
        load_predictor(save_model(tmp_path / name, solver=name)) for name in ("heun_drift", "euler_maruyama")
    )
    predicted = heun.predict(context(), 3, steps=1, seed=4)
    for name in ("heun_drift", "heun"):  # its name in earlier versions
        assert torch.equal(plain.predict(context(), 3, steps=1, seed=4, solver=name), predicted)
    assert load_predictor(save_model(tmp_path / "old", solver="heun")).manifest.solver == "heun_drift"
    assert not torch.equal(plain.predict(context(), 3, steps=1, seed=4), predicted)


def test_going_on_from_a_prediction_draws_new_noise(predictor):
    """The same frames once more, as the first predicted one and as the fourth."""
    first, fourth = (predictor.predict(context(), 1, first_frame=number) for number in (0, 3))
    assert not torch.equal(first, fourth)
    assert torch.equal(predictor.predict(context(), 1, first_frame=3), fourth)


@pytest.mark.parametrize(
    ("frames", "arguments", "message"),
    [
        (context(frames=1), {}, "needs at least 2 input frames, not 1"),
        (context()[..., :16], {}, "needs frames of 32x32 pixels, not 16x32; resize"),
        (context()[0], {}, r"must be floating point \[b, T, 3, H, W\]"),
        ((context() * 100).to(torch.uint8), {}, "not torch.uint8"),
        (context(), {"horizon": 0}, "horizon: must be at least 1, not 0"),
        (context(), {"members": 0}, "members: must be at least 1"),
        (context(), {"interpolate": 0}, "interpolate: must be at least 1"),
        (context(), {"steps": 0}, "steps: must be at least 1"),
        (context(), {"first_frame": -1}, "first_frame: must be at least 0, not -1"),
        (context(), {"solver": "euler"}, "solver: must be one of euler_maruyama, milstein, heun_drift, not 'euler'"),
    ],
)
def test_bad_frames(predictor, frames, arguments, message):
    with pytest.raises(ValueError, match=message):
        predictor.predict(frames, **{"horizon": 1, **arguments})


def _no_experiment(folder):
    (folder / "config.yaml").write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: None, "not a predictor's folder .no manifest.json.; give an experiment's folder"),
        (_no_experiment, "has no best/manifest.json; run python -m raypipe.evaluate"),
        (lambda folder: folder.rmdir(), "no such folder"),
        (lambda folder: (save_model(folder) / "manifest.json").write_text("{"), "not JSON"),
        (lambda folder: (save_model(folder) / "manifest.json").write_text("[]"), "manifest: Input should be"),
        (lambda folder: save_model(folder, beta="much"), "beta: Input should be a valid number"),
        (lambda folder: save_model(folder, solver="euler"), "solver: Input should be 'euler_maruyama'"),
        (lambda folder: save_model(folder, steps=0), "steps: must be at least 1, not 0"),
        (
            lambda folder: save_model(folder, diffusion="constant", constant_std=[1.0]),
            "constant_std: must be a list of 4",
        ),
        (lambda folder: save_model(folder, num_input_frames=3), "flow: made for 2 frames of 4 channels"),
        (lambda folder: (save_model(folder) / "denoiser" / "config.json").unlink(), "denoiser: not a model folder"),
        (lambda folder: (save_model(folder) / "flow").rename(folder / "x"), "flow: not a model folder"),
    ],
)
def test_bad_folders(tmp_path, spoil, message):
    folder = tmp_path / "best"
    folder.mkdir()
    spoil(folder)
    with pytest.raises(ValueError, match=message) as error:
        load_predictor(folder)
    assert "\n" not in str(error.value)


def test_films_show_truth_then_members():
    clip = moving(6, 48, 48)
    members = np.stack([clip[2:].repeat(2, 0), 255 - clip[2:].repeat(2, 0)])
    film = forecast_film(clip[:2], members, 2, clip[2:])
    assert len(film) == 1 * 2 + 1 + 4 * 2
    small = film[:, ::4, ::4]  # panels of 48 pixels are shown fourfold; a rim is 1 pixel, gaps are 2
    panels = [small[:, 3:51, left : left + 48] for left in (3, 55, 107)]
    whole = np.arange(0, len(film), 2)
    np.testing.assert_array_equal(panels[0][whole], clip)
    np.testing.assert_array_equal(panels[0][1::2], clip[:-1])
    np.testing.assert_array_equal(panels[1][:3:2], clip[:2])
    np.testing.assert_array_equal(panels[1][3:], members[0])
    np.testing.assert_array_equal(panels[2][3:], members[1])
    rims = small[:, 2, [2, 54]]
    assert (rims[:, 0] == rims[0, 0]).all()
    assert (rims[:3, 1] == rims[0, 0]).all()
    assert (rims[3:, 1] != rims[0, 0]).any(-1).all()


def run(*flags):
    """The command's exit code."""
    try:
        return cli.run(generate.main, generate.PROG, [str(flag) for flag in flags])
    except SystemExit as stop:
        return stop.code


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, moving(12, 40, 64), fps=12)
    return path


def rate(path):
    with av.open(str(path)) as container:
        return float(container.streams.video[0].average_rate)


def test_a_video_is_continued(best, video, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ("--model", best, "--input", video, "--interpolate", 4)
    assert run(*flags, "--frames", 3, "--members", 2) == 0
    film = read_video(tmp_path / "clip-prediction.mp4")
    assert len(film) == (GIVEN - 1) * 4 + 1 + 3 * 4
    assert film.shape[2] > 3 * 192  # truth and two members
    assert rate(tmp_path / "clip-prediction.mp4") == 48
    with Image.open(tmp_path / "clip-prediction.gif") as image:
        assert image.n_frames > 3 * 4
    out = capsys.readouterr().out
    assert "\nframes cropped to 32x32, color, every frame (assumed, as the model does not say" in out
    assert "wrote  clip-prediction.mp4\nwrote  clip-prediction.gif\nnext   python -m raypipe.generate" in out
    assert run(*flags, "--frames", 20, "--output", "far.gif") == 0
    assert not (tmp_path / "far.mp4").exists()
    with Image.open("far.gif") as image:
        assert image.width < 2 * 192
    assert "the truth is not shown: the input has only 10 frames after the given ones" in capsys.readouterr().out


def test_a_model_that_the_last_frame_beats_says_so(best, video, tmp_path, capsys):
    worse = shutil.copytree(best, tmp_path / "best")
    path = worse / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "last_frame_won": True}))
    for model, said in ((best, ""), (worse, "note: on validation, repeating the last frame is better than this model")):
        assert run("--model", model, "--input", video, "--frames", 1, "--output", tmp_path / "one.gif") == 0
        assert ("note: on validation" in (err := capsys.readouterr().err)) == bool(said) and said in err


def test_predictions_as_shards_are_those_of_the_predictor(best, predictor, tmp_path):
    with ShardWriter(tmp_path / "test") as writer:
        writer.add("a/b", moving(9))
        writer.add("c", 255 - moving(9))
    flags = ("--model", best, "--input", tmp_path / "test", "--clip", 1, "--format", "shards", "--members", 2)
    assert (
        run(*flags, "--frames", 2, "--seed", 5, "--steps", 1, "--solver", "heun_drift", "--output", tmp_path / "out")
        == 0
    )
    shards = open_shards(tmp_path / "out")
    assert shards.names == ["c-000", "c-001"]
    frames = to_float(torch.from_numpy(255 - moving(GIVEN)))[None]
    expected = predictor.predict(frames, 2, steps=1, members=2, seed=5, solver="heun_drift")
    for i in range(2):
        torch.testing.assert_close(to_float(torch.from_numpy(shards.clip(i))), expected[0, i], atol=0.005, rtol=0)


def test_frames_are_taken_as_far_apart_as_the_model_was_trained_on(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for t, image in enumerate(moving(7, 40, 40)):
        Image.fromarray(image).save(folder / f"{t}.jpg", quality=95)
    manifest = replace(MANIFEST, frame_stride=3)
    clip = read_clip(folder, manifest, None)
    assert (clip.frames.shape, clip.fps, clip.name) == ((3, SIZE, SIZE, 3), 8.0, "frames")
    assert len(read_clip(folder, manifest, 1).frames) == 3
    write_video(tmp_path / "v.mp4", moving(7), fps=30)
    assert read_clip(tmp_path / "v.mp4", manifest, None).fps == 10


def test_no_arguments_take_the_latest_experiment(tmp_path, capsys):
    experiment = tmp_path / "storage" / "demo"
    save_model(experiment / "best")
    tree = {"name": "demo", "dataset": {"root": str(tmp_path / "data"), "image_size": SIZE}}
    (experiment / "config.yaml").write_text(yaml.safe_dump(tree))
    with ShardWriter(tmp_path / "data" / "test") as writer:
        writer.add("test_00000", moving(6))
    assert run("--storage", tmp_path / "storage") == 0
    assert sorted(path.name for path in (experiment / "samples").iterdir()) == [
        "test_00000-prediction.gif",
        "test_00000-prediction.mp4",
    ]
    assert "predicted 4 frames from 2" in capsys.readouterr().out


def _text(path):
    path.write_text("no video")
    return path


def _empty(path):
    path.mkdir()
    return path


def _short(path):
    write_video(path, moving(1), fps=8)
    return path


@pytest.mark.parametrize(
    ("make", "flags", "message"),
    [
        (lambda p: p / "none.mp4", [], "none.mp4: no such video file or folder"),
        (lambda p: _text(p / "x.mp4"), [], "x.mp4: not a readable video"),
        (lambda p: _short(p / "x.mp4"), [], "x.mp4: too short: it has 1 frames, but the model needs 2 to start from"),
        (lambda p: _empty(p / "x"), [], "x: has neither shards nor images nor videos"),
        (lambda p: p / "clip.mp4", ["--clip", "1"], "--clip: only for a folder of shards"),
        (lambda p: p / "clip.mp4", ["--frames", "0"], "--frames: must be a positive integer, not 0"),
        (lambda p: p / "clip.mp4", ["--seed", "-1"], "--seed: must be an integer of at least 0"),
        (lambda p: p / "clip.mp4", ["--model", "/none"], "/none: no such folder; give an experiment's folder"),
        (lambda p: p / "clip.mp4", ["--model", "."], "not a predictor's folder"),
        (
            lambda p: p / "clip.mp4",
            ["--output", "x.gif", "--format", "mp4"],
            "the suffix of x.gif contradicts --format mp4",
        ),
        (lambda p: p / "clip.mp4", ["--output", "clip.mp4/x"], "clip.mp4"),
        (lambda p: p / "clip.mp4", ["--frame", "3"], "--frame"),
    ],
)
def test_bad_input_is_one_line(best, video, tmp_path, monkeypatch, capsys, make, flags, message):
    monkeypatch.chdir(tmp_path)
    assert run("--model", best, "--input", make(tmp_path), *flags) == 2
    err = capsys.readouterr().err
    assert err.startswith("raypipe.generate: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_no_model_is_one_line(video, best, tmp_path, capsys):
    assert run("--input", video, "--storage", tmp_path) == 2
    assert run("--model", best) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "has a best/manifest.json; run experiments/pipeline.py first" in errors[0]
    assert "--input: required, because" in errors[1]


def test_a_finished_folder_of_shards_is_kept(best, video, tmp_path, capsys):
    flags = ("--model", best, "--input", video, "--frames", 1, "--format", "shards", "--output", tmp_path / "out")
    assert run(*flags) == 0
    assert run(*flags) == 2
    assert "already contains a finished dataset" in capsys.readouterr().err
