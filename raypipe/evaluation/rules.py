"""What a written protocol asks: read from a `protocol.json`, or a named one; its clips and windows in a dataset."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from raypipe import config
from raypipe.common.errors import UserError, first_line, nearest
from raypipe.config import Demo, Experiment
from raypipe.data.conversion.preprocessing import Preprocessing, every
from raypipe.data.frames import to_float
from raypipe.data.shards import Shards, open_shards
from raypipe.evaluation.combinations import HeldOutSplit
from raypipe.forecast.windows import choose_windows, read_window
from raypipe.workspace.dataset import dataset_preprocessing, has_shards, prepare_dataset
from raypipe.workspace.layout import Workspace

NAMED = Path(__file__).parent / "protocols"
"""Folder of the named protocols."""
SPLITS: dict[str, HeldOutSplit] = {"test": "test", "validation": "val"}
"""Keys of a protocol's windows, the one that is scored first, and the splits of the dataset."""


@dataclass(frozen=True)
class Window:
    """A window: a clip, and the first given frame in it."""

    clip: str
    start: int

    @property
    def name(self) -> str:
        """Its name in a folder of predictions."""
        return f"{self.clip}-{self.start}"


@dataclass(frozen=True)
class RuledDataset:
    """The dataset of a protocol. content: hash of each split; empty: of any content, as in named protocols.

    root: where it was; demo: settings of a built-in one. Both are None if the protocol does not tell.
    """

    name: str
    root: str | None = None
    demo: Demo | None = None
    content: Mapping[str, str] = field(default_factory=dict)
    preprocessing: Preprocessing | None = None


@dataclass(frozen=True)
class RuledFrames:
    """The frames of a protocol: their height and width, numbers of given and predicted ones; see `Dataset`."""

    image_size: int
    given: int
    predicted: int
    frame_stride: int = 1

    def __post_init__(self) -> None:
        for name, count in asdict(self).items():
            if count < 1:
                raise ValueError(f"{name}: must be at least 1, not {count}")

    @property
    def span(self) -> int:
        """Frames of a clip from the first to the last one of a window."""
        return (self.given + self.predicted - 1) * self.frame_stride + 1


@dataclass(frozen=True)
class Rules:
    """The entries of a protocol that another forecast needs; the file has others, which explain the scores.

    members: by split, members of an ensemble. repeats: number of ensembles that are scored on their own. windows: by
    split; in a named protocol the number of windows, which are drawn with `seed`, or null: one of each clip.
    """

    dataset: RuledDataset
    frames: RuledFrames
    members: Mapping[str, int]
    seed: int
    windows: Mapping[str, list[Window] | int | None]
    repeats: int = 1

    def __post_init__(self) -> None:
        if not any(split in self.windows and split in self.members for split in SPLITS):
            raise ValueError(f"windows: must be given for {' or '.join(SPLITS)}, as must the members")
        for name, count in (("repeats", self.repeats), (f"members.{self.split}", self.members[self.split])):
            if count < 1:
                raise ValueError(f"{name}: must be at least 1, not {count}")

    @property
    def split(self) -> str:
        """The split that is scored: test, or validation if the dataset has no test split."""
        return next(split for split in SPLITS if split in self.windows and split in self.members)


@dataclass(frozen=True)
class Protocol:
    """A protocol as it was read. name: of the file or the named protocol. text: all that it contains."""

    name: str
    path: Path
    text: Mapping[str, Any]
    rules: Rules


def names() -> list[str]:
    """The names of the named protocols."""
    return sorted(path.stem for path in NAMED.glob("*.json"))


def read_rules(place: str) -> Protocol:
    """Read a protocol. place: a file, or the name of a named one. Raises UserError if it is neither, or damaged."""
    named = place in names()
    path = NAMED / f"{place}.json" if named else Path(place).expanduser()
    if path.is_dir():
        path = next((p for p in (path / "evaluation" / "protocol.json", path / "protocol.json") if p.is_file()), path)
    if not path.is_file():
        raise UserError(
            f"--protocol: neither a file nor a named protocol: {place!r}{nearest(place, names())}; give the "
            f"evaluation/protocol.json of an experiment, or one of {', '.join(names())}"
        )
    try:
        text = json.loads(path.read_text(encoding="utf-8"))
        return Protocol(place if named else path.name, path, text, TypeAdapter(Rules).validate_python(text))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "protocol"
        raise UserError(f"{path}: {where}: {first['msg']}; give a protocol.json that raypipe wrote") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not a protocol ({first_line(error)}); give a protocol.json") from None


@dataclass(frozen=True)
class Task:
    """A protocol and the clips of the split that is scored. windows: in the order of their numbers."""

    protocol: Protocol
    windows: tuple[Window, ...]
    shards: Shards

    @property
    def rules(self) -> Rules:
        return self.protocol.rules

    @property
    def members(self) -> int:
        """Members that are predicted for each window: those of all repeats."""
        return self.rules.members[self.rules.split] * self.rules.repeats

    @property
    def bodies(self) -> bool:
        """Whether the clips are those of the demo, whose bodies can be found."""
        return self.rules.dataset.name == "demo" and self.rules.dataset.root is None

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.shards.names)}

    def frames(self, window: int) -> tuple[Tensor, Tensor]:
        """Given and true frames of a window, [K, 3, S, S] and [H, 3, S, S] in [-1, 1]."""
        ruled, one = self.rules.frames, self.windows[window]
        read = read_window(
            self.shards, self._numbers[one.clip], one.start, ruled.given + ruled.predicted, ruled.frame_stride
        )
        frames = to_float(torch.from_numpy(read))
        return frames[: ruled.given], frames[ruled.given :]

    def text(self) -> dict[str, Any]:
        """The protocol with all windows by name and the content of the split, as it holds for this dataset alone."""
        split = self.rules.split
        windows = [asdict(window) for window in self.windows]
        whole = dict(self.protocol.text)
        dataset = dict(whole["dataset"])
        content = dict(dataset.get("content") or {}) | {SPLITS[split]: self.shards.content_hash()}
        return whole | {"dataset": dataset | {"content": content}, "windows": {split: windows}}


def open_task(protocol: Protocol, storage: Path, changes: Mapping[str, Any]) -> Task:
    """Open the dataset of a protocol; a built-in one is simulated below `storage` if needed.

    changes: fields `dataset.*` of the config by dotted name, of which dataset.root says where the dataset is, if it is
    not where the protocol says. Raises UserError if it is another dataset than that of the protocol.
    """
    rules = protocol.rules
    experiment, root = _experiment(protocol, changes), changes.get("dataset.root")
    workspace = Workspace(storage, experiment.name)
    if root is None and rules.dataset.root is None:
        if rules.dataset.demo is None:
            raise UserError(
                f"{protocol.path}: does not say where its dataset is, {rules.dataset.name}; add --dataset.root SHARDS"
            )
        prepare_dataset(workspace, experiment, lambda done, total: None)
    folder = workspace.dataset(experiment) / SPLITS[rules.split]
    if not has_shards(folder):
        raise UserError(
            f"{folder}: no shards here, on which the protocol scores forecasts; give the folder with "
            f"{SPLITS[rules.split]}/ by --dataset.root"
        )
    _check_preprocessing(rules, dataset_preprocessing(workspace.dataset(experiment)), str(folder))
    shards = open_shards(folder)
    size = rules.frames.image_size
    if shards.frame_shape != (size, size, 3):
        raise UserError(
            f"{folder}: has frames of {list(shards.frame_shape)}, but those of the protocol are {[size, size, 3]}; "
            "give its dataset by --dataset.root"
        )
    return Task(protocol, _windows(rules, shards), shards)


def _experiment(protocol: Protocol, changes: Mapping[str, Any]) -> Experiment:
    """An experiment that has the dataset of the protocol, by which its folder is found."""
    rules = protocol.rules
    values = {"dataset.root": rules.dataset.root, "dataset.name": rules.dataset.name} | dict(changes)
    values |= {"dataset.image_size": rules.frames.image_size, "dataset.frame_stride": rules.frames.frame_stride}
    if rules.dataset.demo is not None:
        values |= {f"demo.{name}": value for name, value in asdict(rules.dataset.demo).items()}
    return config.from_dict(config.override({}, values), source=str(protocol.path))


def _check_preprocessing(rules: Rules, found: Preprocessing | None, folder: str) -> None:
    """Frames that were made otherwise are another dataset; a dataset that does not tell is taken as it is."""
    wanted = rules.dataset.preprocessing
    if wanted is not None and found is not None and found != wanted:
        raise UserError(
            f"{folder}: made from videos {found}, but those of the protocol {wanted}; convert the videos so "
            "(python -m raypipe.convert_to_h5 --help), and give their folder by --dataset.root"
        )


def _windows(rules: Rules, shards: Shards) -> tuple[Window, ...]:
    """The windows of the protocol. Raises UserError if the shards do not have them."""
    ruled, count = rules.frames, rules.windows[rules.split]
    if not isinstance(count, list):
        count = int((shards.lengths >= ruled.span).sum()) if count is None else count
        chosen = zip(*choose_windows(shards.lengths, ruled.span, count, rules.seed), strict=True)
        return tuple(Window(shards.names[clip], start) for clip, start in chosen)
    lengths = dict(zip(shards.names, shards.lengths.tolist(), strict=True))
    for window in count:
        if lengths.get(window.clip, 0) < window.start + ruled.span:
            lacks = f"only {lengths[window.clip]} frames" if window.clip in lengths else "no such clip"
            raise UserError(
                f"{shards.folder}: the protocol has a window of {ruled.span} frames from frame {window.start} of clip "
                f"{window.clip}, but here is {lacks}; give its dataset by --dataset.root"
            )
    kept = rules.dataset.content.get(SPLITS[rules.split])
    if kept is not None and kept != shards.content_hash():
        raise UserError(
            f"{shards.folder}: has other frames than the protocol's clips of these names (hash "
            f"{shards.content_hash()}, not {kept}); give its dataset by --dataset.root"
        )
    return tuple(count)


def stride_of(frame_stride: int, preprocessing: Preprocessing | None) -> str:
    """Which frames of the videos are used, in words."""
    return every(frame_stride * (1 if preprocessing is None else preprocessing.frame_stride))
