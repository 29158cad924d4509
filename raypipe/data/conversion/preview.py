"""What a conversion would make, estimated from a few of its sources, which are converted to a temporary folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from raypipe.data.conversion.resuming import State
from raypipe.data.conversion.shard import Task, convert_shard

SAMPLED = 4
"""Number of sources that are converted."""


@dataclass(frozen=True)
class Preview:
    """A split. clips: sources of clips; left: those that are not converted yet. source_bytes: of all sources.

    frames, bytes: those of the shards to write, about; bad: what the converted sources say that cannot be read.
    """

    clips: int
    left: int
    source_bytes: int
    frames: int
    bytes: int
    bad: tuple[str, ...]


def preview(tasks: Sequence[Task], state: State) -> Preview:
    """What is left of a split. tasks: all of it. Changes nothing on disk."""
    sources = [source for task in tasks for source in task.sources]
    left = [source for task in state.left for source in task.sources]
    some = left[:: -(-len(left) // SAMPLED)] if left else []
    frames = size = 0
    bad: tuple[str, ...] = ()
    if some:
        with TemporaryDirectory(prefix="raypipe-") as folder:
            made = convert_shard(Task(Path(folder) / tasks[0].path.name, tuple(some), tasks[0].options))
        frames, size, bad = made.frames, made.bytes, made.bad
    files = {source.path: source.stamp[1] for source in sources}
    each = len(left) / max(1, len(some))
    return Preview(len(sources), len(left), sum(files.values()), round(frames * each), round(size * each), bad)
