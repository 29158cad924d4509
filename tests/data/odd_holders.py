"""Odd inputs that hold several clips: tar files, NumPy arrays, zarr stores, and tables of Hugging Face `datasets`."""

import io
import json
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from PIL import Image

from tests.data import odd_inputs as make
from tests.data.odd_cases import Case

CLIPS = np.stack([np.roll(make.clip(6), i, 2) for i in range(3)])
"""Three clips, [3, 6, 64, 64, 3]."""
LUMA = CLIPS[..., 0]


class Evil:
    """Leaves a file behind if it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch unpickled",)


def video(codec="libx264", pix="yuv420p", n=16):
    """The bytes of a video file."""
    file = io.BytesIO()
    with make.av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 64, pix
        for frame in make.clip(n):
            container.mux(stream.encode(make.av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def gif():
    file = io.BytesIO()
    pages = [Image.fromarray(frame) for frame in make.clip(6)]
    pages[0].save(file, "GIF", save_all=True, append_images=pages[1:])
    return file.getvalue()


def tar(path, members, **more):
    """An uncompressed tar file with these members, bytes by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **more) as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "a.mp4"
            info.size = len(content or b"")
            file.addfile(info, io.BytesIO(content or b""))
    return path


def cut(path, size):
    """Keep the first `size` bytes of a file, or all but the last ones."""
    path.write_bytes(path.read_bytes()[:size])


def save(path, array, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array, **more)
    return path


def savez(path, how=np.savez, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    how(path, **arrays)
    return path


def store(path, array, **more):
    """A zarr array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    zarr.create_array(str(path), data=array, chunks=(1, 2, *array.shape[2:]), **more)
    return path


def table(path, rows, features=None, kind=None, column="video"):
    """A Parquet file, or with the suffix .arrow a stream. rows: values of the column of videos."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = kind or pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({column: kind, "label": pa.int64()})
    if features:
        schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    content = pa.table({column: pa.array(rows, kind), "label": list(range(len(rows)))}, schema=schema)
    if path.suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            writer.write_table(content)
    else:
        pq.write_table(content, path, row_group_size=2)
    return path


def beside(write, frames=None, says=(), left=(), code=1, ignored=()):
    """Something beside a video. frames: of what is read besides."""

    def both(root):
        make.video(root / "train/v/v.mp4")
        write(root / "train")

    return Case(both, {"v/v.mp4": 16, **(frames or {})}, tuple(says), code, left=tuple(left) + tuple(ignored))


def named(count, name, frames=6):
    return {f"{name}/{i}": frames for i in range(count)}


def _cut_tar(train):
    cut(tar(train / "b.tar", {"a.mp4": video(), "b.mp4": video()}), 512 + len(video()) + 1500)


def _tar_without_end(train):
    path = tar(train / "b.tar", {"a.mp4": video()})
    with tarfile.open(path) as file:
        file.next(), file.next()
        end = file.offset
    cut(path, end)


def _damaged_header(train):
    path = tar(train / "b.tar", {"a.mp4": video(), "b.mp4": video()})
    with tarfile.open(path) as file:
        file.next()
        second = file.next().offset
    content = bytearray(path.read_bytes())
    content[second : second + 100] = b"\xff" * 100
    path.write_bytes(content)


def _missing_chunk(train):
    path = store(train / "b.zarr", CLIPS)
    next(p for p in sorted(path.rglob("*")) if p.is_file() and p.name != "zarr.json").unlink()


def _damaged_chunk(train):
    path = store(train / "b.zarr", CLIPS)
    next(p for p in sorted((path / "c/1").rglob("*")) if p.is_file()).write_bytes(b"no chunk")


def _pickled_zarr(train):
    folder = train / "b.zarr"
    folder.mkdir(parents=True)
    shape = [1, 1, 64, 64]
    meta = {"zarr_format": 2, "shape": shape, "chunks": shape, "dtype": "|u1", "compressor": None, "fill_value": 0,
            "order": "C", "filters": [{"id": "pickle", "protocol": 5}]}  # fmt: skip
    (folder / ".zarray").write_text(json.dumps(meta))
    (folder / "0.0.0.0").write_bytes(pickle.dumps(Evil()))


def _group(root):
    group = zarr.create_group(str(root / "train/b.zarr"))
    group.create_array("clips/videos", data=CLIPS, chunks=(1, 6, 64, 64, 3))
    group.create_array("labels", data=np.arange(3))


def _objects(train):
    array = np.empty(2, object)
    array[:] = [Evil(), Evil()]
    savez(train / "b.npz", videos=array)


def _zip_member(train):
    noise = np.random.default_rng(0).integers(0, 255, CLIPS.shape, "u1")
    path = savez(train / "b.npz", np.savez_compressed, videos=noise)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)  # which only the checksum at the end shows
    path.write_bytes(content)


def _saved_to_disk(root):
    folder = root / "train"
    rows = [{"bytes": video(), "path": "x/one.mp4"}, {"bytes": video(), "path": "two.mp4"}]
    features = {"video": {"_type": "Video"}, "label": {"dtype": "int64", "_type": "Value"}}
    table(folder / "data-00000-of-00001.arrow", rows, features)
    table(folder / "cache-1.arrow", [{"bytes": video(), "path": "one.mp4"}])
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")


def _paths(root):
    far = make.video(root.parent / "far" / "far.mp4")
    near = make.video(root / "train/near.mp4")
    rows = [{"bytes": None, "path": str(far)}, {"bytes": None, "path": near.name}, {"bytes": None, "path": "gone.mp4"}]
    table(root / "train/b.parquet", [*rows, {"bytes": None, "path": None}])


def _inner(write):
    """A case whose files lie directly in train/."""
    return lambda root: write(root / "train")


HOLDER_CASES = {
    "tar of videos": Case(
        _inner(
            lambda t: tar(t / "b.tar", {"x/one.mp4": video(), "x/one.json": b"{}", "two.gif": gif(), "two.cls": b"3"})
        ),
        {"b.tar/x/one": 16, "b.tar/two": 6},
        left=("b.tar/two.cls", "b.tar/x/one.json"),
    ),
    "tar without a suffix": Case(_inner(lambda t: tar(t / "b", {"a": video()})), {"b/a": 16}),
    "tar of another format": Case(
        _inner(lambda t: tar(t / "b.tar", {f"{'n' * 120}.mp4": video()}, format=tarfile.PAX_FORMAT)),
        {f"b.tar/{'n' * 120}": 16},
    ),
    "keys with several videos": Case(
        _inner(lambda t: tar(t / "b.tar", {"0.left.mp4": video(), "0.right.mp4": video(n=9)})),
        {"b.tar/0.left": 16, "b.tar/0.right": 9},
    ),
    "the same key twice": beside(
        lambda t: tar(t / "b.tar", {"a.mp4": video(), "a.mkv": video()}),
        {"b.tar/a": 16},
        ["duplicate of"],
        ["b.tar/a.mkv"],
    ),
    "a damaged member": beside(
        lambda t: tar(
            t / "b.tar", {"a.mp4": video(), "bad.mp4": video()[:900], "none.mp4": b"", "bad.bin": bytes(range(99))}
        ),
        {"b.tar/a": 16},
        ["not a readable video"],
        ["b.tar/bad.mp4", "b.tar/none.mp4", "b.tar/bad.bin"],
    ),
    "a link in a tar": beside(
        lambda t: tar(t / "b.tar", {"a.mp4": video(), "b.mp4": None}), {"b.tar/a": 16}, ["a link"], ["b.tar/b.mp4"]
    ),
    "images in a tar": beside(
        lambda t: tar(t / "b.tar", {"a.mp4": video(), "x/0.png": b"?", "x/1.png": b"?"}),
        {"b.tar/a": 16},
        ["single images in a tar file"],
        ["b.tar/x/1.png"],
    ),
    "truncated tar": beside(_cut_tar, {"b.tar/a": 16}, ["truncated, as the tar file is"], ["b.tar/b.mp4"]),
    "tar without an end": beside(
        _tar_without_end, {"b.tar/a": 16}, ["truncated or damaged after 1 members"], ["b.tar"]
    ),
    "a damaged header in a tar": beside(_damaged_header, {"b.tar/a": 16}, ["damaged after 1 members"], ["b.tar"]),
    "empty tar": beside(lambda t: tar(t / "b.tar", {}), says=["no videos in this tar file"], left=["b.tar"]),
    "tar of no bytes": beside(lambda t: make_raw(t / "b.tar", b""), says=["not a readable tar file"], left=["b.tar"]),
    "compressed tar": beside(
        lambda t: make_raw(t / "b.tar.gz", b"\x1f\x8b" + bytes(99)), says=["once it is decompressed"], left=["b.tar.gz"]
    ),
    # arrays
    "npy": Case(_inner(lambda t: save(t / "b.npy", CLIPS)), named(3, "b.npy"), pixel=(30, 30, 30)),
    "npy of grey": Case(_inner(lambda t: save(t / "b.npy", LUMA)), named(3, "b.npy"), pixel=(30, 30, 30)),
    "npy of one channel": Case(
        _inner(lambda t: save(t / "b.npy", LUMA[..., None])), named(3, "b.npy"), pixel=(30,) * 3
    ),
    "npy of floats": Case(
        _inner(lambda t: save(t / "b.npy", (CLIPS / 255).astype(np.float32))), named(3, "b.npy"), pixel=(30, 30, 30)
    ),
    "npy of halves": Case(
        _inner(lambda t: save(t / "b.npy", (CLIPS / 255).astype(">f2"))), named(3, "b.npy"), pixel=(30, 30, 30)
    ),
    "npz": Case(_inner(lambda t: savez(t / "b.npz", videos=CLIPS)), named(3, "b.npz/videos"), pixel=(30, 30, 30)),
    "compressed npz of two lengths": Case(
        _inner(lambda t: savez(t / "b.npz", np.savez_compressed, a=CLIPS, b=LUMA[:2, :4])),
        named(3, "b.npz/a") | named(2, "b.npz/b", 4),
    ),
    "npz with labels": Case(
        _inner(lambda t: savez(t / "b.npz", videos=CLIPS, labels=np.arange(3))),
        named(3, "b.npz/videos"),
        left=("b.npz/labels",),
    ),
    "npz of labels": beside(
        lambda t: savez(t / "b.npz", labels=np.arange(3)), says=["is int64 [3]; must be"], left=["b.npz/labels"]
    ),
    "floats of another range": beside(
        lambda t: save(t / "b.npy", np.concatenate([CLIPS[:1] / 255, CLIPS[1:2].astype(float), CLIPS[2:] / 255])),
        {"b.npy/0": 6, "b.npy/2": 6},
        ["values from 30 to 220; floating point must be in [0, 1]"],
        ["b.npy/1"],
    ),
    "not a number": beside(
        lambda t: save(t / "b.npy", np.full((1, 2, 64, 64), np.nan)), says=["has values from nan"], left=["b.npy/0"]
    ),
    "integers": beside(
        lambda t: save(t / "b.npy", LUMA.astype(np.uint16)), says=["is uint16 [3, 6, 64, 64]; must be"], left=["b.npy"]
    ),
    "one clip": beside(lambda t: save(t / "b.npy", CLIPS[0]), says=["looks like one clip"], left=["b.npy"]),
    "channels first": beside(
        lambda t: save(t / "b.npy", np.moveaxis(CLIPS, -1, 2)), says=["move the channels to the end"], left=["b.npy"]
    ),
    "no clips": beside(lambda t: save(t / "b.npy", CLIPS[:0]), says=["which is empty"], left=["b.npy"]),
    "objects": beside(_objects, says=["holds Python objects, which are not unpickled"], left=["b.npz/videos"]),
    "Fortran's order": beside(
        lambda t: save(t / "b.npy", np.asfortranarray(LUMA)), says=["ascontiguous"], left=["b.npy"]
    ),
    "truncated npy": beside(
        lambda t: cut(save(t / "b.npy", CLIPS), 9999), says=["truncated: it has 9999"], left=["b.npy"]
    ),
    "truncated npz": beside(lambda t: cut(savez(t / "b.npz", a=CLIPS), 9999), says=["damaged"], left=["b.npz"]),
    "damaged npz": beside(_zip_member, says=["videos: damaged, or no array"], left=["b.npz/videos"]),
    "empty npy": beside(lambda t: make_raw(t / "b.npy", b""), says=["damaged, or no array"], left=["b.npy"]),
    "empty npz": beside(lambda t: savez(t / "b.npz"), says=["holds no arrays"], left=["b.npz"]),
    "npz of other files": beside(lambda t: _zip(t / "b.npz"), says=["holds no arrays"], left=["b.npz"]),
    # zarr
    "zarr": Case(_inner(lambda t: store(t / "b.zarr", CLIPS)), named(3, "b.zarr"), pixel=(30, 30, 30)),
    "zarr of version 2": Case(
        _inner(lambda t: store(t / "b", (LUMA / 255).astype("f4"), zarr_format=2)), named(3, "b"), pixel=(30,) * 3
    ),
    "zarr group": Case(_group, named(3, "b.zarr/clips/videos"), left=("b.zarr/labels",)),
    "zarr of integers": beside(lambda t: store(t / "b.zarr", LUMA.astype("i4")), says=["is int32"], left=["b.zarr"]),
    "zarr by pickle": beside(_pickled_zarr, says=["pickle"], left=["b.zarr"]),
    "zarr without a chunk": Case(_inner(_missing_chunk), named(3, "b.zarr"), ("1 of its 9 chunks are not stored",)),
    "zarr with a damaged chunk": beside(_damaged_chunk, {"b.zarr/0": 6, "b.zarr/2": 6}, ["damaged ("], ["b.zarr/1"]),
    "damaged zarr": beside(
        lambda t: make_raw(t / "b.zarr/zarr.json", b"{"), says=["not a readable zarr"], left=["b.zarr"]
    ),
    # tables
    "parquet": Case(
        _inner(lambda t: table(t / "b.parquet", [{"bytes": video(), "path": f"{n}.mp4"} for n in "abc"])),
        {f"b.parquet/{n}": 16 for n in "abc"},
    ),
    "parquet of bytes": Case(
        _inner(lambda t: table(t / "b.parquet", [video(), gif()], kind=pa.binary())),
        {"b.parquet/0": 16, "b.parquet/1": 6},
    ),
    "parquet of equal names": Case(
        _inner(lambda t: table(t / "b.parquet", [{"bytes": video(n=n), "path": "v.mp4"} for n in (5, 7, 9)])),
        {"b.parquet/0": 5, "b.parquet/1": 7, "b.parquet/2": 9},
    ),
    "saved to disk": Case(
        _saved_to_disk,
        {"data-00000-of-00001.arrow/one": 16, "data-00000-of-00001.arrow/two": 16},
        left=("cache-1.arrow", "dataset_info.json"),
    ),
    "paths in a table": Case(
        _paths,
        {"b.parquet/0": 16, "near.mp4": 16},
        ("1 of its rows name files", "which does not exist", "neither bytes nor"),
        1,
        left=("b.parquet/2", "b.parquet/3"),
    ),
    "a damaged row": beside(
        lambda t: table(
            t / "b.parquet", [{"bytes": b"no video", "path": "a.mp4"}, {"bytes": video(), "path": "b.mp4"}]
        ),
        {"b.parquet/b": 16},
        ["not a readable video"],
        ["b.parquet/a"],
    ),
    "a table of numbers": beside(
        lambda t: table(t / "b.parquet", [1, 2], kind=pa.int64(), column="x"),
        says=["its columns are x (int64)"],
        left=["b.parquet"],
    ),
    "a table of images": beside(
        lambda t: table(t / "b.parquet", [{"bytes": b"", "path": ""}], {"image": {"_type": "Image"}}, column="image"),
        says=["must have one column of the feature Video"],
        left=["b.parquet"],
    ),
    "no rows": beside(lambda t: table(t / "b.parquet", []), says=["has no rows"], left=["b.parquet"]),
    "truncated parquet": beside(
        lambda t: cut(table(t / "b.parquet", [video()], kind=pa.binary()), 999),
        says=["not a readable table"],
        left=["b.parquet"],
    ),
    "truncated arrow": beside(
        lambda t: cut(table(t / "b.arrow", [video()], kind=pa.binary()), 999),
        says=["not a readable table"],
        left=["b.arrow"],
    ),
    "empty parquet": beside(
        lambda t: make_raw(t / "b.parquet", b""), says=["not a readable table"], left=["b.parquet"]
    ),
}


def make_raw(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _zip(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "text")
