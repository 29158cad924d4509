"""Inputs as people have them: each is read, or named with the reason; none is lost in silence.

Every case is converted, and what is in it is also read by `generate`. What became of it is decided from what was
written and printed alone, see `verdict`.
"""

import io
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raypipe import convert_to_h5
from raypipe.common.errors import UserError
from raypipe.data.conversion import find
from raypipe.data.conversion.find import find_clips
from raypipe.data.conversion.reader import SourceReader
from raypipe.data.shards import Shards, open_shards
from raypipe.forecast.clip import read_clip
from raypipe.forecast.manifest import Manifest
from tests.data import odd_inputs as make
from tests.data.odd_cases import CASES as SINGLE
from tests.data.odd_cases import Case
from tests.data.odd_holders import HOLDER_CASES

CASES = SINGLE | HOLDER_CASES
MANIFEST = Manifest("f", 1.0, 1.0, 1, 1, 64, 1, "x")


def convert(root, out, flags):
    return convert_to_h5.main(
        ["--data_dir", str(root), "--out_dir", str(out), "--image_size", "64", "--num-workers", "1", *flags]
    )


@dataclass(frozen=True)
class Converted:
    """What a conversion left. packed: number of frames of each clip of train/. said: what it printed on stderr."""

    root: Path
    code: int
    packed: dict[str, int]
    shards: Shards | None
    said: str


def converted(case, folder):
    root, out, said = folder / "in", folder / "out", io.StringIO()
    case.make(root)
    with redirect_stderr(said), redirect_stdout(io.StringIO()):
        code = convert(root, out, case.flags)
    shards = open_shards(out / "train") if (out / "train").exists() else None
    packed = dict(zip(shards.names, shards.lengths.tolist(), strict=True)) if shards else {}
    return Converted(root, code, packed, shards, said.getvalue())


def verdict(case, packed, said):
    """What became of an input: `read` if all its frames were packed, `named` if a line names everything that was not
    and says why, otherwise `lost`."""
    missing = [name for name, frames in case.frames.items() if packed.get(name) != frames] + list(case.left)
    if not missing:
        return "read"
    return "named" if all(any(_gives_reason(line, name) for line in said.splitlines()) for name in missing) else "lost"


def _gives_reason(line, name):
    """Whether a line names a file or folder, perhaps among others of its folder, and then a reason."""
    ends = re.escape(Path(name).name) + r"(?:, [^:]+)?: \S"
    return re.search(rf"[/ ]{ends}", line) is not None and Path(name).parent.name in line


def generated(case, result):
    """What became of the same input in `generate`, given clip by clip; the frames must be those of the shards."""
    train = next(path for path in result.root.iterdir() if path.name.lower() == "train")
    verdicts = set()
    for i, name in enumerate(result.packed):
        path, number = train if name == "train" else train / name, None
        if name.startswith("shard_"):
            path, number = train, i
        elif not path.exists():
            path, number = in_holder(train, name)
        clip = read_clip(path, MANIFEST, 200, number)
        verdicts.add("read" if np.array_equal(clip.frames, result.shards.clip(i)) else "lost")
    for name in case.left:
        path, number = train / name, None
        if not path.exists() and "/" in name:
            path, number = in_holder(train, name)
        try:
            read_clip(path, MANIFEST, None, number)
            verdicts.add("read")  # a clip by itself, such as a folder of thumbnails
        except UserError as error:
            verdicts.add("named" if _gives_reason(f" {error}", name) or path.name in str(error) else "lost")
    return next(kind for kind in ("lost", "named", "read") if kind in verdicts)


def in_holder(train, name):
    """The file or store that holds a clip of several, and the clip's number in it (-1: it is not among them)."""
    holder = next(place for place in (train / name).parents if place.exists())
    names = [source.place.rpartition(": clip ")[2] for source in find_clips(holder).sources]
    inside = (train / name).relative_to(holder).as_posix()
    keys = [source.name.partition("/")[2] for source in find_clips(holder).sources]
    return holder, next((i for i, known in enumerate(zip(names, keys, strict=True)) if inside in known), -1)


@pytest.fixture(scope="module", autouse=True)
def no_cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "local")
        yield


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """A function that converts a case, once for all tests."""
    known = {}

    def of(name):
        if name not in known:
            known[name] = converted(CASES[name], tmp_path_factory.mktemp("odd"))
        return known[name]

    return of


@pytest.mark.parametrize("name", CASES)
def test_conversion(outcomes, name):
    case, result = CASES[name], outcomes(name)
    assert verdict(case, result.packed, result.said) == ("named" if case.left else "read"), result.said
    assert result.packed == case.frames
    assert result.shards.frame_shape == (64, 64, 3)
    for part in case.says:
        assert part in result.said
    assert result.code == case.code
    if case.code == 0 and not case.says:
        assert "left out:" not in result.said and "kept despite" not in result.said
    if case.pixel:
        assert np.abs(result.shards.clip(0)[0, 0, 63].astype(int) - case.pixel).max() <= 3


@pytest.mark.parametrize("name", CASES)
def test_generate(outcomes, name):
    case, result = CASES[name], outcomes(name)
    if not case.flags:  # which `generate` lacks; it knows them from the model, see tests/forecast/test_clip.py
        assert generated(case, result) in (("named", "read") if case.left else ("read",))


def test_the_counts(outcomes, capsys):
    counts = {"conversion": Counter(), "generate": Counter()}
    for name, case in CASES.items():
        result = outcomes(name)
        counts["conversion"][verdict(case, result.packed, result.said)] += 1
        if not case.flags:
            counts["generate"][generated(case, result)] += 1
    with capsys.disabled():
        sys.stdout.write("\nodd inputs   read  named  lost in silence\n")
        for where, count in counts.items():
            sys.stdout.write(f"{where:11} {count['read']:5} {count['named']:6} {count['lost']:16}\n")
    assert counts["conversion"].total() == len(CASES) >= 60
    assert counts["generate"].total() >= 60
    assert counts["conversion"]["lost"] == counts["generate"]["lost"] == 0


TWO = Case(lambda root: [make.video(root / f"train/{name}.mp4") for name in "ab"], {"a.mp4": 16, "b.mp4": 16})


def test_what_is_skipped_in_silence_counts_as_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(find, "kind_of", lambda path: "other" if path.endswith("b.mp4") else "video")
    result = converted(TWO, tmp_path / "named")
    assert verdict(TWO, result.packed, result.said) == "named"
    monkeypatch.setattr(find._Search, "_ignore", lambda *args: None)
    result = converted(TWO, tmp_path / "silent")
    assert result.packed == {"a.mp4": 16}
    assert verdict(TWO, result.packed, result.said) == "lost"


def test_frames_that_are_dropped_in_silence_count_as_lost(tmp_path, monkeypatch):
    whole = converted(TWO, tmp_path / "whole")
    assert generated(TWO, whole) == "read"
    read = SourceReader.frames
    monkeypatch.setattr(SourceReader, "frames", lambda reader, source: islice(read(reader, source), 9))
    result = converted(TWO, tmp_path / "short")
    assert verdict(TWO, result.packed, result.said) == "lost"
    assert generated(TWO, whole) == "lost"


def test_a_name_without_a_reason_counts_as_lost():
    case = Case(None, {"v.mp4": 16}, left=("b.mp4",))
    said = "1 unreadable, left out:\n  /in/train/b.mp4: not a readable video"
    assert verdict(case, {"v.mp4": 16}, said) == "named"
    assert verdict(case, {}, said) == "lost"
    assert verdict(case, {"v.mp4": 16}, "left out: /in/train/b.mp4") == "lost"
    assert verdict(case, {"v.mp4": 16}, "  /in/train/bb.mp4: not a readable video") == "lost"


def test_files_and_folders_without_permission_are_named():
    # Not below pytest's folder, which other users cannot enter.
    root = Path(tempfile.mkdtemp(prefix="odd-"))
    try:
        make.video(root / "train/a.mp4")
        make.video(root / "train/b.mp4").chmod(0)
        make.images(root / "train/c")
        for path, mode in ((root, 0o755), (root / "train", 0o755), (root / "train/c", 0)):
            path.chmod(mode)
        if os.geteuid() == 0:  # may read everything
            os.seteuid(65534)
        try:
            found = find_clips(root / "train")
            with pytest.raises(UserError, match=r"b\.mp4: cannot be read \(Permission denied\)"):
                read_clip(root / "train/b.mp4", MANIFEST, None)
        finally:
            os.seteuid(os.getuid())
        assert [source.name for source in found.sources] == ["a.mp4"]
        assert sorted(line.rsplit("/", 1)[1] for line in found.bad) == [
            "b.mp4: cannot be read (Permission denied)",
            "c: cannot be read (Permission denied)",
        ]
    finally:
        (root / "train/c").chmod(0o755)
        shutil.rmtree(root)


def test_what_generate_does_not_read_it_names(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: a single image"):
        read_clip(tmp_path / "a.png", MANIFEST, None)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match=r"a\.txt: neither FFmpeg nor Pillow"):
        read_clip(tmp_path / "a.txt", MANIFEST, None)
    make.reference_shards(tmp_path, grey=True)
    assert read_clip(tmp_path / "train", MANIFEST, None).frames.shape == (12, 64, 64, 3)


def test_an_anamorphic_disc_is_round(tmp_path, capsys):
    make.anamorphic(tmp_path / "in")
    for fit in ("crop", "pad"):
        convert(tmp_path / "in", tmp_path / fit, ("--fit", fit))
        disc = open_shards(tmp_path / fit / "train").clip(0)[0, ..., 0] > 120
        wide, high = np.ptp(np.flatnonzero(disc.any(0))), np.ptp(np.flatnonzero(disc.any(1)))
        assert abs(wide - high) <= 1 and wide > 30
    clip = read_clip(tmp_path / "in/train/a.mp4", replace(MANIFEST, image_size=64), None)
    np.testing.assert_array_equal(clip.frames[0], open_shards(tmp_path / "crop/train").clip(0)[0])


def test_rotated_jpegs_are_upright(tmp_path, capsys):
    make.exif_rotated_jpegs(tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "out", ())
    make.images(tmp_path / "plain/train/a", make.clip(8, 48, 64), "{}.jpg", quality=95)
    convert(tmp_path / "plain", tmp_path / "out2", ())
    found, wanted = (open_shards(tmp_path / out / "train").clip(0).astype(int) for out in ("out", "out2"))
    assert np.abs(found - wanted).mean() < 2


def test_next_command_quotes_and_val_comes_out_of_train(tmp_path, capsys):
    root = tmp_path / "my videos"
    for i in range(10):
        make.images(root / f"train/c{i}", make.clip(4) + i)
    assert convert(root, tmp_path / "the out", ()) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert f"--data_dir '{root}'" in line and line.endswith("--split 0.8,0.1,0.1")
    assert convert(root, tmp_path / "the out 2", ("--split", "0.8,0.2,0")) == 0
    assert f"--dataset.root '{tmp_path / 'the out 2'}'" in capsys.readouterr().out
    assert len(open_shards(tmp_path / "the out 2/val")) == 2
    shutil.rmtree(root)
