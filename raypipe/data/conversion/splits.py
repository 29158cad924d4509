"""Assign clips to splits: by folder name, by the standard split of a dataset, or by fractions."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from raypipe.common.errors import UserError
from raypipe.data.conversion.find import Source, find_clips, without_repeats
from raypipe.data.splits import SPLITS

CLEVRER = {"train": "video_train", "val": "video_validation", "test": "video_test"}
KTH_NAME = re.compile(r"person(\d{2})_([a-z]+)_d(\d)")
KTH_PEOPLE = {"train": range(1, 17), "val": range(17, 21), "test": range(21, 26)}
"""Persons of each split. The reference code trains on 1-20 and tests on 21-25; here 17-20 are for validation."""
DATASETS = ("kth", "clevrer")


@dataclass(frozen=True)
class Split:
    """The sources of one split. repeats: a message for each duplicate that was left out."""

    name: str
    sources: tuple[Source, ...]
    repeats: tuple[str, ...] = ()


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


def find_splits(root: Path, division: Division, extension: str | None = None) -> list[Split]:
    """The non-empty splits of a folder. Raises UserError if the folder does not have what the division requires."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; --data_dir must be a folder with train/, val/ or test/")
    named = [split for split in SPLITS if (root / split).is_dir()]
    if division.dataset == "clevrer":
        parts = _clevrer(root, extension)
    elif division.dataset == "kth":
        parts = _kth(root, extension)
    elif division.fractions is not None:
        if named:
            raise UserError(
                f"--split: {root} is already divided, it contains {', '.join(f'{n}/' for n in named)}; omit --split"
            )
        parts = _by_share(find_clips(root, extension), division.fractions, division.group_by)
    elif named:
        parts = {split: find_clips(root / split, extension, root) for split in named}
    else:
        raise UserError(
            f"{root}: contains none of train/, val/, test/; move the clips into such folders,"
            f" or divide them with --split 0.8,0.1,0.1"
        )
    splits = []
    for name in SPLITS:
        if parts.get(name):
            sources, repeats = without_repeats(parts[name])
            splits.append(Split(name, tuple(sources), tuple(repeats)))
    return splits


def _clevrer(root: Path, extension: str | None) -> dict[str, list[Source]]:
    folders = {split: root / name for split, name in CLEVRER.items() if (root / name).is_dir()}
    if not folders:
        raise UserError(f"{root}: contains none of CLEVRER's folders {', '.join(f'{n}/' for n in CLEVRER.values())}")
    return {split: find_clips(folder, extension, root) for split, folder in folders.items()}


def _kth(root: Path, extension: str | None) -> dict[str, list[Source]]:
    """Split by person. Clips are named `person01_boxing_d1`, without the folder, so that duplicates are detected."""
    parts = defaultdict(list)
    for source in find_clips(root, extension):
        match = KTH_NAME.search(source.name.rsplit("/", 1)[-1])
        if match is None:
            raise UserError(f"{source.path}: not a KTH file name like person01_boxing_d1_uncomp.avi; move it elsewhere")
        person = int(match[1])
        split = next((name for name, people in KTH_PEOPLE.items() if person in people), None)
        if split is None:
            raise UserError(f"{source.path}: KTH has persons 1 to 25, not {person}; move it elsewhere")
        parts[split].append(replace(source, name=match[0]))
    # The new names lack the folder, so they must be sorted again.
    return {split: sorted(sources, key=lambda s: (s.name, s.origin)) for split, sources in parts.items()}


def _by_share(
    sources: Sequence[Source], fractions: tuple[float, float, float], group_by: str | None
) -> dict[str, list[Source]]:
    groups = defaultdict(list)
    for source in sources:
        groups[_group(source, group_by)].append(source)
    # A hash of the names does not depend on the machine or on library versions.
    order = sorted(groups, key=lambda name: (hashlib.sha256(name.encode()).hexdigest(), name))
    what = "clips" if group_by is None else "groups"
    counts = _counts(len(order), fractions, what)
    chosen = iter(order)
    parts: dict[str, list[Source]] = {}
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
