"""Predictions that were made elsewhere: a folder of videos, images, npz files or shards, named by window and member."""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raypipe.common.errors import UserError, first_line
from raypipe.data.conversion.find import find_clips
from raypipe.data.conversion.reader import Sampling, SourceReader
from raypipe.data.conversion.source import Source
from raypipe.data.video.fitting import Fit, Frames
from raypipe.evaluation.rules import Task

LAYOUT = (
    "a folder with the predicted frames of each window, without the given ones, at the size of the protocol: "
    "CLIP-START/MEMBER.mp4 (or any other video, lossless for exact scores, or a folder of images), or CLIP-START.npz "
    "with one uint8 array [members, frames, height, width, 3], or shards with the clips CLIP-START/MEMBER; members "
    "count from 0, and a forecast without noise has one, which may also be CLIP-START.mp4"
)
"""What a folder of predictions holds; part of every protocol.json."""


@dataclass(frozen=True)
class Predictions:
    """The predictions of all windows of a task. members: number of members of each window.

    found: by name of a window, its npz file, or the source of each member.
    """

    task: Task
    folder: Path
    members: int
    found: Mapping[str, Path | Sequence[Source]]

    def __iter__(self) -> Iterator[Frames]:
        """The members of each window, uint8 [M, H, S, S, 3]. Raises UserError, naming the file, if they do not fit."""
        return (self._members(self.found[window.name]) for window in self.task.windows)

    def _members(self, found: Path | Sequence[Source]) -> Frames:
        if isinstance(found, Path):
            members = _read_npz(found)
            for member in members:
                self._check(str(found), len(member))
        else:
            members = np.stack([self._read(source) for source in found])
        size = self.task.rules.frames.image_size
        if members.shape[2:] != (size, size, 3):
            raise UserError(f"{found}: has frames of {list(members.shape[2:])}, not {[size, size, 3]}; {_SCALE}")
        return members

    def _read(self, source: Source) -> Frames:
        fit = _Unscaled(self.task.rules.frames.image_size)
        try:
            frames = list(SourceReader(Sampling(fit), _refuse).frames(source))
        except UserError as error:
            text = str(error)
            raise UserError(text if str(source.path) in text else f"{source.place}: {text}") from None
        self._check(source.place, len(frames))
        return np.stack(frames)

    def _check(self, place: str, count: int) -> None:
        ruled = self.task.rules.frames
        if count != ruled.predicted:
            given = f"; leave out the {ruled.given} given ones" if count == ruled.predicted + ruled.given else ""
            raise UserError(f"{place}: has {count} frames, but the protocol predicts {ruled.predicted}{given}")


_SCALE = "write predictions at the size of the protocol, as scaling would change their scores"


def _refuse(note: str) -> None:
    """Reading notes what is odd, such as frames that are missing, and goes on; such frames are not to be scored."""
    raise UserError(f"{note}; write it again")


class _Unscaled(Fit):
    """Takes frames of the given size alone, as they are, and refuses others."""

    def region(self, width: int, height: int, aspect: float = 1) -> tuple[int, int, int, int]:
        if (width, height) != (self.size, self.size):
            raise UserError(f"has frames of {width}x{height} pixels, not {self.size}x{self.size}; {_SCALE}")
        return 0, 0, width, height


def open_predictions(folder: Path, task: Task) -> Predictions:
    """Find the predictions of all windows. Raises UserError, naming the file, if one is missing, or one is too many."""
    if not folder.is_dir():
        raise UserError(
            f"--predictions: no such folder: {str(folder)!r}; give one with {_expected(task.windows[0].name, task)}, "
            "and so on for each window"
        )
    arrays = sorted(path for path in folder.rglob("*.npz") if not path.name.startswith("."))
    found = _find_arrays(folder, arrays, task) if arrays else _find_sources(folder, task)
    for window in task.windows:
        if window.name not in found:
            raise UserError(
                f"{folder}: has no prediction of {window.name}, a window of the protocol ({len(found)} of "
                f"{len(task.windows)} are there); write {_expected(window.name, task)}"
            )
    counts = {name: len(_read_npz(one) if isinstance(one, Path) else one) for name, one in found.items()}
    first = next(iter(counts.values()))
    for name, count in counts.items():
        if count not in (1, task.members) or count != first:
            wanted = task.members if count == first or first not in (1, task.members) else first
            raise UserError(
                f"{folder}: {name} has {count} members, but must have {wanted}: the protocol has "
                f"{task.members}, or 1 for all windows of a forecast without noise"
            )
    return Predictions(task, folder, first, found)


def _find_arrays(folder: Path, arrays: Sequence[Path], task: Task) -> dict[str, Path | Sequence[Source]]:
    names = {window.name for window in task.windows}
    found = {path.relative_to(folder).as_posix().removesuffix(".npz"): path for path in arrays}
    for name, path in found.items():
        if name not in names:
            raise _superfluous(str(path), task)
    return dict(found)


def _find_sources(folder: Path, task: Task) -> dict[str, Path | Sequence[Source]]:
    seen = find_clips(folder)
    if seen.bad:
        raise UserError(f"{seen.bad[0]}; remove it, or write it again")
    names = {window.name for window in task.windows}
    members: dict[str, dict[int, Source]] = {}
    for source in seen.sources:
        name, member = source.identity, "0"
        if name not in names:
            name, _, member = name.rpartition("/")
        if name not in names or not member.isdecimal():
            raise _superfluous(source.place, task)
        other = members.setdefault(name, {}).setdefault(int(member), source)
        if other is not source:
            raise UserError(f"{source.place}: {other.place} is the same member of {name}; remove one of them")
    found: dict[str, Path | Sequence[Source]] = {}
    for name, numbered in members.items():
        gap = next((number for number in range(len(numbered)) if number not in numbered), None)
        if gap is not None:
            raise UserError(f"{folder}: {name} has no member {gap}, but {len(numbered)} others; members count from 0")
        found[name] = [numbered[number] for number in sorted(numbered)]
    return found


def _expected(name: str, task: Task) -> str:
    return f"{name}/0.mp4 to {name}/{task.members - 1}.mp4, or {name}.npz, or shards with these clips"


def _superfluous(place: str, task: Task) -> UserError:
    first = _expected(task.windows[0].name, task)
    return UserError(f"{place}: is of no window of the protocol, which has {first}; remove it, or name it so")


def _read_npz(path: Path) -> Frames:
    """The only array of a file, uint8 [M, T, H, W, 3]; [T, H, W, 3] is taken for one member."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            arrays = [kept[name] for name in kept.files]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a readable npz file ({first_line(error)}); write it again") from None
    if len(arrays) != 1 or arrays[0].ndim not in (4, 5) or arrays[0].shape[-1] != 3 or 0 in arrays[0].shape:
        shapes = ", ".join(str(list(array.shape)) for array in arrays) or "nothing"
        raise UserError(f"{path}: must hold one array [members, frames, height, width, 3], not {shapes}")
    if arrays[0].dtype != np.uint8:
        raise UserError(
            f"{path}: must hold uint8, not {arrays[0].dtype}; write values x of [-1, 1] as round(127.5 (x + 1))"
        )
    return np.asarray(arrays[0] if arrays[0].ndim == 5 else arrays[0][None])
