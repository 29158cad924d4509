"""Damage anywhere in a packed folder is an error that names the file, or changes nothing."""

import shutil

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from raypipe.data.shards import ShardWriter, open_shards
from raypipe.data.shards.integrity import Seal, check_bytes, check_shard, mark, seal_bytes
from raypipe.data.shards.writer import Clip, shard_head, write_index, write_shard

MUTATIONS = 200


def content(count=9):
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (int(rng.integers(2, 7)), 8, 8, 3), dtype=np.uint8) for _ in range(count)]


@pytest.fixture
def folder(tmp_path):
    with ShardWriter(tmp_path / "train", clips_per_shard=4, key="videos") as writer:
        for i, clip in enumerate(content()):
            writer.add(f"walking/{i}", clip, source=f"person{i:02d}.avi")
    return tmp_path / "train"


def read_all(folder):
    """All that a user can get to see."""
    shards = open_shards(folder)
    clips = [shards.clip(i) for i in range(len(shards))]
    about = (shards.names, shards.sources, shards.lengths.tolist(), shards.shard_names, shards.shard_of.tolist())
    return clips, (*about, shards.frame_shape, shards.dtype, shards.key, shards.content_hash())


def mutate(raw, rng):
    """A few bytes changed, a cut, a tail, or a block of zeros, as disks and transfers leave them."""
    changed = bytearray(raw)
    kind = rng.choice(["flip", "flip", "cut", "grow", "zero", "bit"])
    at = int(rng.integers(len(raw)))
    if kind == "flip":
        for k in rng.integers(len(raw), size=int(rng.integers(1, 4))).tolist():
            changed[k] ^= int(rng.integers(1, 256))
    elif kind == "bit":
        changed[at] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del changed[at:]
    elif kind == "grow":
        changed += bytes(int(rng.integers(1, 600)))
    else:
        changed[at : at + 512] = bytes(len(changed[at : at + 512]))
    return bytes(changed)


def test_no_mutation_passes_and_none_crashes(folder):
    wanted, about = read_all(folder)
    rng = np.random.default_rng(0)
    names = sorted(path.name for path in folder.iterdir())
    unnoticed = 0
    for _ in range(MUTATIONS):
        path = folder / str(rng.choice(names))
        raw = path.read_bytes()
        changed = mutate(raw, rng)
        path.write_bytes(changed)
        try:
            clips, found = read_all(folder)
            message = None
        except ValueError as error:
            message = str(error)
        if message is None:
            unnoticed += changed != raw
            assert found == about
            assert all(np.array_equal(a, b) for a, b in zip(clips, wanted, strict=True))
        else:
            assert path.name in message and "\n" not in message
            assert path.suffix != ".hdf5" or "clip walking/" in message, message
        path.write_bytes(raw)
    assert unnoticed == 0  # every byte is covered, used or not


def test_every_byte_of_a_manifest_and_of_a_head_counts(folder):
    """Each byte in turn, in the parts that a random choice would rarely meet."""
    index = (folder / "index.parquet").read_bytes()
    for at in range(len(index)):
        changed = bytearray(index)
        changed[at] ^= 0x20  # also the case of a letter or of a hexadecimal digit
        with pytest.raises(ValueError, match="checksum"):
            check_bytes(bytes(changed))
    path = folder / "shard_0001.hdf5"
    raw = path.read_bytes()
    with path.open("r+b") as file:
        seal = check_shard(file.fileno())
        outside = [*range(seal.begin), *range(seal.end, seal.size)]
        for at in outside:
            file.seek(at)
            file.write(bytes([raw[at] ^ 0x20]))
            file.flush()
            with pytest.raises(ValueError, match=r"checksum|does not begin with|user block|were written"):
                check_shard(file.fileno())
            file.seek(at)
            file.write(raw[at : at + 1])
            file.flush()
        assert check_shard(file.fileno()) == seal


def test_a_sealed_shard_is_plain_hdf5_and_the_manifest_plain_parquet(folder):
    with h5py.File(folder / "shard_0001.hdf5") as file:
        begin = file["frames"].id.get_offset()
        np.testing.assert_array_equal(file["frames"][:], np.concatenate(content()[:4]))
        assert file["name"][1] == b"walking/1"
    head = shard_head(folder / "shard_0001.hdf5")
    size = (folder / "shard_0001.hdf5").stat().st_size
    assert head.seal == Seal(begin, begin + sum(c.nbytes for c in content()[:4]), size, head.seal.crc32)
    assert (head.key, head.frame_shape, head.dtype) == ("videos", (8, 8, 3), np.uint8)
    assert pq.read_table(folder / "index.parquet").num_rows == 9


def test_a_shard_of_another_set_is_refused(folder, tmp_path):
    """A whole file, but not the one that the manifest lists."""
    write_shard(tmp_path / "other.hdf5", [Clip(f"walking/{i}", c ^ 1) for i, c in enumerate(content()[:4])], "videos")
    shutil.copy(tmp_path / "other.hdf5", folder / "shard_0001.hdf5")
    with pytest.raises(ValueError, match=r"shard_0001\.hdf5: clip walking/2: .*does not match index\.parquet"):
        open_shards(folder).clip(2)


def test_shards_that_do_not_belong_together_get_no_manifest(tmp_path):
    clip = content()[0]
    write_shard(tmp_path / "shard_0001.hdf5", [Clip("a", clip)])
    for other, message in [
        (("a", clip, ""), r"shard_0002\.hdf5: clip a is also in shard_0001\.hdf5"),
        (("b", clip[:, :4], ""), r"shard_0002\.hdf5: key, dtype and frame shape are"),
        (("b", clip.astype(np.int16), ""), r"shard_0002\.hdf5: key, dtype and frame shape are"),
        (("b", clip, "k"), r"shard_0002\.hdf5: key, dtype and frame shape are"),
    ]:
        write_shard(tmp_path / "shard_0002.hdf5", [Clip(*other[:2])], other[2])
        with pytest.raises(ValueError, match=message):
            write_index(tmp_path)
        assert not (tmp_path / "index.parquet").exists()
    (tmp_path / "shard_0002.hdf5").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"shard_0002\.hdf5: not a packed shard, or damaged"):
        write_index(tmp_path)


def test_bytes_that_were_not_sealed_are_refused():
    sealed = seal_bytes(b"before " + mark().encode() + b" after")
    check_bytes(sealed)
    with pytest.raises(ValueError, match="checksum does not match"):
        check_bytes(sealed[:-1])
    with pytest.raises(ValueError, match="no checksum"):
        check_bytes(b"PAR1")
