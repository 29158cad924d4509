"""Who is in which split: official lists, shares, and the laws of groups."""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raypipe.data.conversion.splits import Division, _counts, find_splits
from raypipe.data.splits import SPLITS


def touch(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def found(root, **division):
    return {split.name: [s.name for s in split.sources] for split in find_splits(root, Division(**division)).splits}


KTH = [
    f"person{p:02d}_{action}_d{d}_uncomp.avi" for p in range(1, 26) for action in ("boxing", "running") for d in (1, 4)
]


@pytest.mark.parametrize("folders", [False, True])
def test_kth_by_person(tmp_path, folders):
    touch(tmp_path, [f"{name.split('_')[1]}/{name}" if folders else name for name in KTH])
    splits = found(tmp_path, dataset="kth")
    people = {name: sorted({int(clip[6:8]) for clip in clips}) for name, clips in splits.items()}
    assert people == {"train": list(range(1, 17)), "val": list(range(17, 21)), "test": list(range(21, 26))}
    assert sum(map(len, splits.values())) == len(KTH)
    assert splits["val"][:2] == ["person17_boxing_d1", "person17_boxing_d4"]


def test_kth_takes_no_clip_twice(tmp_path):
    touch(tmp_path, ["person01_boxing_d1_uncomp.avi", "boxing/person01_boxing_d1_uncomp.avi"])
    (train,) = find_splits(tmp_path, Division(dataset="kth")).splits
    assert [s.name for s in train.sources] == ["person01_boxing_d1"]
    assert len(train.repeats) == 1


@pytest.mark.parametrize("name", ["holiday.avi", "person26_boxing_d1_uncomp.avi"])
def test_kth_leaves_strangers_out(tmp_path, name):
    touch(tmp_path, [*KTH, name])
    result = find_splits(tmp_path, Division(dataset="kth"))
    assert sum(len(split.sources) for split in result.splits) == len(KTH)
    (line,) = result.bad
    assert line.startswith(f"{tmp_path / name}: ") and line.endswith("left out")


def test_clevrer_by_folder(tmp_path):
    touch(
        tmp_path,
        [
            "video_train/video_00000-01000/video_00000.mp4",
            "video_train/video_01000-02000/video_01000.mp4",
            "video_validation/video_10000-11000/video_10000.mp4",
            "video_test/video_15000-16000/video_15000.mp4",
        ],
    )
    splits = found(tmp_path, dataset="clevrer")
    assert {name: len(clips) for name, clips in splits.items()} == {"train": 2, "val": 1, "test": 1}
    assert splits["train"][0] == "video_00000-01000/video_00000.mp4"
    with pytest.raises(ValueError, match="contains none of CLEVRER's folders video_train/"):
        found(tmp_path / "video_train", dataset="clevrer")


NAMES = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 99)), min_size=1, max_size=60, unique=True)
SHARES = st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(0, 8)).filter(any)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(NAMES, SHARES)
def test_no_group_stands_in_two_splits(tmp_path_factory, names, shares):
    root = touch(tmp_path_factory.mktemp("flat"), [f"person{p}/clip{i}.mp4" for p, i in names])
    fractions = tuple(share / sum(shares) for share in shares)
    groups = {p for p, _ in names}
    if len(groups) < sum(share > 0 for share in shares):
        with pytest.raises(ValueError, match=f"{len(groups)} groups cannot fill"):
            found(root, fractions=fractions, group_by=r"person(\d+)")
        return
    splits = found(root, fractions=fractions, group_by=r"person(\d+)")
    people = {name: {clip.split("/")[0] for clip in clips} for name, clips in splits.items()}
    assert sum(map(len, people.values())) == len(set().union(*people.values())) == len(groups)
    assert sum(map(len, splits.values())) == len(names)
    for name, fraction in zip(SPLITS, fractions, strict=True):
        assert (name in splits) == (fraction > 0)


@given(st.integers(3, 10_000), SHARES)
def test_shares_are_met(total, shares):
    fractions = [share / sum(shares) for share in shares]
    counts = _counts(total, fractions, "clips")
    assert sum(counts) == total
    for count, fraction in zip(counts, fractions, strict=True):
        assert (count > 0) == (fraction > 0)
        assert abs(count - total * fraction) < 2 + 1e-6


def test_shares_depend_on_names_alone(tmp_path):
    names = [f"{i}.mp4" for i in range(30)]
    first = found(touch(tmp_path / "a", names), fractions=(0.8, 0.1, 0.1))
    assert found(touch(tmp_path / "b", names[::-1]), fractions=(0.8, 0.1, 0.1)) == first
    assert {name: len(clips) for name, clips in first.items()} == {"train": 24, "val": 3, "test": 3}
    assert first["train"] != names[:24]  # shuffled


def test_one_clip_in_two_forms_stays_in_one_split(tmp_path):
    touch(tmp_path, [f"{i}.{suffix}" for i in range(20) for suffix in ("avi", "mp4")])
    splits = find_splits(tmp_path, Division(fractions=(0.5, 0.25, 0.25))).splits
    assert sum(len(split.sources) for split in splits) == sum(len(split.repeats) for split in splits) == 20


def test_mistakes_are_named(tmp_path):
    touch(tmp_path, ["a/1.mp4"])
    with pytest.raises(ValueError, match=r"contains none of train/, val/, test/.*--split 0\.8,0\.1,0\.1"):
        found(tmp_path)
    with pytest.raises(ValueError, match="1 clips cannot fill 3 splits"):
        found(tmp_path, fractions=(0.8, 0.1, 0.1))
    with pytest.raises(ValueError, match=r"'x' matches nothing in the name of clip 'a/1\.mp4'"):
        found(tmp_path, fractions=(1.0, 0.0, 0.0), group_by="x")
    touch(tmp_path, ["train/1.mp4"])
    touch(tmp_path, ["val/2.mp4"])
    with pytest.raises(ValueError, match=r"--split: .* is already divided, it contains train/, val/; .* 0\.9,0,0\.1"):
        found(tmp_path, fractions=(0.5, 0.5, 0.0))


def test_what_is_missing_is_taken_out_of_train(tmp_path):
    touch(tmp_path, [*(f"training/{i}.mp4" for i in range(10)), "Testing_videos/10.mp4"])
    result = found(tmp_path, fractions=(0.8, 0.2, 0.0))
    assert {name: len(clips) for name, clips in result.items()} == {"train": 8, "val": 2, "test": 1}


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        *(
            ("Train", "train"),
            ("training", "train"),
            ("videos_train", "train"),
            ("valid", "val"),
            ("VALIDATION", "val"),
        ),
        *(("video_validation", "val"), ("val2017", "val"), ("dev", "val"), ("testing", "test"), ("test-set", "test")),
        *(("train_64x64", "train"), ("val_720p", "val"), ("Validate", "val"), ("test_mp4", "test")),
    ],
)
def test_folders_of_splits_have_many_names(tmp_path, folder, split):
    touch(tmp_path, [f"{folder}/1.mp4", "others/2.mp4", "3.mp4"])
    result = find_splits(tmp_path, Division())
    assert [part.name for part in result.splits] == [split]
    assert [line.split(": ")[0] for line in result.bad] == [str(tmp_path / "3.mp4"), str(tmp_path / "others")]
    assert len(result.notes) == (folder.lower() != split)


def test_splits_one_folder_below_are_pointed_out(tmp_path):
    touch(tmp_path, ["UCF/train/1.mp4", "UCF/test/2.mp4"])
    with pytest.raises(ValueError, match=rf"none of train/, val/, test/; {tmp_path}/UCF does: give --data_dir"):
        found(tmp_path)


def test_a_split_whose_name_is_not_utf8_is_named(tmp_path):
    touch(tmp_path, ["train/1.mp4"])
    os.mkdir(bytes(tmp_path) + b"/val\xff")
    result = find_splits(tmp_path, Division())
    assert [part.name for part in result.splits] == ["train"]
    assert result.bad == (f"{tmp_path}/val\\xff: its name is not UTF-8; rename it",)


def test_hidden_videos_alone_are_named(tmp_path):
    touch(tmp_path, ["train/.a.mp4"])
    with pytest.raises(ValueError, match=r"no clips found; .* \(ignored: .*/train: \.a\.mp4: hidden"):
        found(tmp_path)


def test_two_folders_for_one_split_are_refused(tmp_path):
    touch(tmp_path, ["val/1.mp4", "validation/2.mp4"])
    with pytest.raises(ValueError, match="both val/ and validation/ are named like val"):
        found(tmp_path)
