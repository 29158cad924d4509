"""Assign clips to splits: by folder name, by the standard split of a dataset, or by fractions."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from raypipe.common.errors import UserError
from raypipe.data.conversion.find import find_clips, without_repeats
from raypipe.data.conversion.holders import HOLDERS
from raypipe.data.conversion.source import Found, Source
from raypipe.data.splits import SPLITS
from raypipe.data.video.folders import readable
from raypipe.data.video.kinds import HOLDER_SUFFIXES, kind_of

CLEVRER = {"train": "video_train", "val": "video_validation", "test": "video_test"}
KTH_NAME = re.compile(r"person(\d{2})_([a-z]+)_d(\d)")
KTH_PEOPLE = {"train": range(1, 17), "val": range(17, 21), "test": range(21, 26)}
"""Persons of each split. The reference code trains on 1-20 and tests on 21-25; here 17-20 are for validation."""
DATASETS = ("kth", "clevrer")
NAMES = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
"""Names of the folders of splits."""
FILLERS = frozenset(
    {"clips", "data", "dataset", "files", "frames", "images", "imgs", "sequences", "set", "split", "video", "videos"}
    | {"avi", "h", "hdf", "jpg", "mp", "png", "rgb", "shards"}
    | {"x", "p", "px", "fps"}
)
"""Words that the name of such a folder may have besides: what is in it, a format, units of numbers as in 64x64."""
OF_SPLITS = "train/, val/, test/"
LISTED = 5
"""Messages about ignored files that an error includes."""
NEEDED = "it must contain videos, one folder of images per clip, or shards"


@dataclass(frozen=True)
class Split:
    """The sources of one split. repeats, bad: a message for each duplicate, and for all else, that was left out."""

    name: str
    sources: tuple[Source, ...]
    repeats: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()


@dataclass(frozen=True)
class Splits:
    """The non-empty splits of a folder. bad: messages about clips outside of them. notes, ignored: see `Found`."""

    splits: tuple[Split, ...]
    bad: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Division:
    """How clips are assigned to splits: by dataset, by fractions, or, if both are None, by the names of the folders.

    dataset: name of a dataset with a standard split. fractions: of train, val and test. group_by: regular expression
    searched in the clip names; clips for which its groups (without groups, the whole match) are equal go to the same
    split.
    """

    dataset: str | None = None
    fractions: tuple[float, float, float] | None = None
    group_by: str | None = None


def find_splits(root: Path, division: Division, extension: str | None = None, out: Path | None = None) -> Splits:
    """The non-empty splits of a folder. out: folder of results, which may be in it.

    Raises UserError if the folder does not have what the division requires, or no clip at all.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; --data_dir must be a folder with train/, val/ or test/")
    folders = {} if division.dataset == "kth" else _clevrer(root) if division.dataset else split_folders(root)
    if division.fractions is None and not division.dataset and not folders:
        _check_files(root)
    if division.fractions is not None and folders:
        _check_free(root, folders, division.fractions)
    places = folders or {"": root}
    found = {name: find_clips(folder, extension, root) for name, folder in places.items()}
    parts: dict[str, Sequence[Source]] = {name: part.sources for name, part in found.items()}
    strangers: list[str] = []
    if division.dataset == "kth":
        parts = _kth(parts.pop(""), strangers)
    elif division.fractions is not None:
        whole = "train" if folders else ""
        if parts[whole]:
            shares = _by_share(parts.pop(whole), division.fractions, division.group_by)
            parts |= {split: sources for split, sources in shares.items() if sources}
    elif not folders:
        parts = _by_file_name(parts.pop(""), strangers)
    if not any(parts.values()):
        reasons = [*(line for part in found.values() for line in part.bad), *strangers]
        ignored = [line for part in found.values() for line in part.ignored]
        place = next(iter(places.values()))
        besides = f" (ignored: {'; '.join(ignored[:LISTED])})" if ignored else ""
        nothing = f"{place}: no clips found; {NEEDED}{besides}"
        more = f" (and {len(reasons) - 1} more like this)" if len(reasons) > 1 else ""
        raise UserError(reasons[0] + more if reasons else nothing)
    splits = []
    for name in SPLITS:
        bad = found[name].bad if name in found else ()
        if name in folders and not parts.get(name) and not bad:
            bad = (f"{folders[name]}: no clips found; {NEEDED}",)
        sources, repeats = without_repeats(parts.get(name, ()))
        if sources or bad:
            splits.append(Split(name, tuple(sources), tuple(repeats), bad))
    outside = _outside(root, set(folders.values()), out) if folders else Found()
    every = [*found.values(), outside]
    return Splits(
        tuple(splits),
        (*(found[""].bad if "" in found else ()), *strangers, *outside.bad),
        (*(() if division.dataset else _renamed(folders)), *(line for part in every for line in part.notes)),
        tuple(line for part in every for line in part.ignored),
    )


def _check_files(root: Path) -> None:
    """Raise UserError if no file of several clips is named after a split either, as in data/train-00000.parquet."""
    if any(split_of_file(path) for pattern in ("*", "*/*") for path in root.glob(pattern)):
        return
    below = [path for path in sorted(root.iterdir()) if path.is_dir() and split_folders(path)]
    remedy = "move the clips into such folders"
    if len(below) == 1:
        remedy = f"{readable(str(below[0]))} does: give --data_dir this folder"
    raise UserError(
        f"{root}: contains none of train/, val/, test/; {remedy}, or divide the clips with --split 0.8,0.1,0.1"
    )


def split_of_file(path: Path) -> str | None:
    """The split that begins the name of a tar file, an array or a table, as WebDataset and Hugging Face name them."""
    words = [word for word in re.split(r"[\W_\d]+", path.stem.lower()) if word]
    return NAMES.get(words[0]) if words and path.suffix.lower() in HOLDER_SUFFIXES else None


def _by_file_name(sources: Sequence[Source], strangers: list[str]) -> dict[str, Sequence[Source]]:
    """strangers: to this list, a message is added for each file that is not named after a split."""
    parts = defaultdict(list)
    for source in sources:
        split = split_of_file(source.path)
        if split is not None:
            parts[split].append(source)
        elif not any(line.startswith(f"{source.path}: ") for line in strangers):
            strangers.append(f"{source.path}: its name does not begin with train, val or test, left out")
    return dict(parts)


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of the splits, by the usual names: `val`, `validation`, `Valid`, `video_val` and the like."""
    folders: dict[str, Path] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and readable(path.name) == path.name):
        words = [word for word in re.split(r"[\W_\d]+", folder.name.lower()) if word and word not in FILLERS]
        split = NAMES.get(words[0]) if len(words) == 1 else None
        if split is None:
            continue
        if split in folders:
            raise UserError(
                f"{root}: both {folders[split].name}/ and {folder.name}/ are named like {split}; rename one"
            )
        folders[split] = folder
    return {split: folders[split] for split in SPLITS if split in folders}


def _renamed(folders: Mapping[str, Path]) -> list[str]:
    return [f"{path}: taken for {split}" for split, path in folders.items() if path.name.lower() != split]


def _check_free(root: Path, folders: Mapping[str, Path], fractions: tuple[float, float, float]) -> None:
    """Refuse fractions for splits that exist; those that do not exist are taken out of train."""
    wanted = {split for split, fraction in zip(SPLITS, fractions, strict=True) if fraction > 0}
    present = ", ".join(f"{folder.name}/" for folder in folders.values())
    absent = [split for split in SPLITS if split not in folders]
    if "train" not in folders or not absent:
        raise UserError(f"--split: {root} is already divided, it contains {present}; omit --split")
    if wanted & (folders.keys() - {"train"}):
        example = ",".join("0.9" if s == "train" else "0.1" if s == absent[0] else "0" for s in SPLITS)
        raise UserError(
            f"--split: {root} is already divided, it contains {present}; set their fractions to 0 to take"
            f" {' and '.join(absent)} out of train, as in --split {example}"
        )


def _outside(root: Path, folders: set[Path], out: Path | None) -> Found:
    """What lies beside the folders of the splits."""
    bad, ignored = [], []
    for path in sorted(root.iterdir()):
        if path in folders or (out is not None and path.resolve() == out.resolve()):
            continue
        name = readable(str(path))
        if name != str(path):
            bad.append(f"{name}: its name is not UTF-8; rename it")
            continue
        if path.is_dir() and not path.name.startswith("."):
            clips = [source for source in find_clips(path).sources if source.stamp[0]]
            if clips:
                bad.append(f"{name}: {len(clips)} clips in no split, left out; move them into one of {OF_SPLITS}")
                continue
        elif path.is_file() and kind_of(str(path)) in ("video", "film", "image", *HOLDERS):
            bad.append(f"{name}: in no split, left out; move it into one of {OF_SPLITS}")
            continue
        ignored.append(f"{name}: beside {OF_SPLITS}")
    return Found(bad=tuple(bad), ignored=tuple(ignored))


def _clevrer(root: Path) -> dict[str, Path]:
    folders = {split: root / name for split, name in CLEVRER.items() if (root / name).is_dir()}
    if not folders:
        raise UserError(f"{root}: contains none of CLEVRER's folders {', '.join(f'{n}/' for n in CLEVRER.values())}")
    return folders


def _kth(clips: Sequence[Source], strangers: list[str]) -> dict[str, Sequence[Source]]:
    """Split by person. Clips are named `person01_boxing_d1`, without the folder, so that duplicates are detected.

    strangers: to this list, a message is added for each clip that is not KTH's.
    """
    parts = defaultdict(list)
    for source in clips:
        match = KTH_NAME.search(source.name.rsplit("/", 1)[-1])
        person = int(match[1]) if match else 0
        split = next((name for name, people in KTH_PEOPLE.items() if person in people), None)
        if match is None:
            strangers.append(f"{source.path}: not a KTH file name like person01_boxing_d1_uncomp.avi, left out")
        elif split is None:
            strangers.append(f"{source.path}: KTH has persons 1 to 25, not {person}, left out")
        else:
            parts[split].append(replace(source, name=match[0]))
    # The new names lack the folder, so they must be sorted again.
    return {split: sorted(sources, key=lambda s: (s.name, s.origin)) for split, sources in parts.items()}


def _by_share(
    sources: Sequence[Source], fractions: tuple[float, float, float], group_by: str | None
) -> dict[str, Sequence[Source]]:
    groups = defaultdict(list)
    for source in sources:
        groups[_group(source, group_by)].append(source)
    # A hash of the names does not depend on the machine or on library versions.
    order = sorted(groups, key=lambda name: (hashlib.sha256(name.encode()).hexdigest(), name))
    what = "clips" if group_by is None else "groups"
    counts = _counts(len(order), fractions, what)
    chosen = iter(order)
    parts: dict[str, Sequence[Source]] = {}
    for split, count in zip(SPLITS, counts, strict=True):
        names = {next(chosen) for _ in range(count)}
        parts[split] = [source for source in sources if _group(source, group_by) in names]
    return parts


def _group(source: Source, group_by: str | None) -> str:
    if group_by is None:
        return source.identity
    match = re.search(group_by, source.name)
    if match is None:
        raise UserError(f"--group-by: {group_by!r} matches nothing in the name of clip {source.name!r}")
    return "\0".join(part or "" for part in match.groups()) if match.groups() else match[0]


def _counts(total: int, fractions: Sequence[float], what: str) -> list[int]:
    """Number of clips (or groups) in each split, by the largest-remainder method, at least 1 for a fraction above 0."""
    wanted = sum(f > 0 for f in fractions)
    if total < wanted:
        raise UserError(f"--split: {total} {what} cannot fill {wanted} splits; set some of the fractions to 0")
    exact = [total * f for f in fractions]
    counts = [max(1, int(e)) if e > 0 else 0 for e in exact]
    while sum(counts) != total:
        step = 1 if sum(counts) < total else -1
        able = [i for i, f in enumerate(fractions) if f > 0 and counts[i] + step >= 1]
        best = max(able, key=lambda i: step * (exact[i] - counts[i]))
        counts[best] += step
    return counts
