"""What a conversion says in the end: counts, and one line for everything that was left out or looks odd."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raypipe.data.conversion.shard import Outcome
from raypipe.data.conversion.splits import Splits

LISTED = 20
"""Repeated clips that are named one by one."""
SAME_RATE = 0.01
"""Relative difference up to which two frame rates count as equal."""


@dataclass(frozen=True)
class SplitSummary:
    """Counts of one split: packed clips, their frames and bytes, and sources that were left out."""

    name: str
    clips: int
    frames: int
    bytes: int
    left_out: int


@dataclass(frozen=True)
class Summary:
    """What became of all sources. splits: those with clips. bad, short, notes, ignored: messages. found: number of
    sources, packed or left out."""

    splits: tuple[SplitSummary, ...]
    bad: tuple[str, ...]
    short: tuple[str, ...]
    notes: tuple[str, ...]
    ignored: tuple[str, ...]

    @property
    def packed(self) -> int:
        return sum(split.clips for split in self.splits)

    @property
    def found(self) -> int:
        return self.packed + len(self.bad) + len(self.short)


def summarize(splits: Splits, done: Mapping[str, Mapping[str, Outcome]]) -> Summary:
    """Sum up the outcomes of all shards, by split and shard name."""
    bad, short, notes = [*splits.bad], [], [*splits.notes]
    found = []
    rows: dict[str, list[dict[str, Any]]] = {}
    for split in splits.splits:
        shards = done.get(split.name, {})
        outcomes = [shards[name] for name in sorted(shards)]
        lost = [*split.bad, *split.repeats, *(line for o in outcomes for line in o.bad)]
        brief = [line for o in outcomes for line in o.short]
        bad += lost
        short += brief
        notes += [line for o in outcomes for line in o.notes]
        rows[split.name] = [row for o in outcomes for row in o.rows]
        size = sum(o.bytes for o in outcomes)
        frames = sum(o.frames for o in outcomes)
        found.append(SplitSummary(split.name, len(rows[split.name]), frames, size, len(lost) + len(brief)))
    notes += [*_in_two_splits(rows), *_rates(rows)]
    made = tuple(split for split in found if split.clips)
    return Summary(made, tuple(bad), tuple(short), tuple(notes), splits.ignored)


def _in_two_splits(rows: Mapping[str, Sequence[dict[str, Any]]]) -> list[str]:
    """A note for each clip whose frames are also in another split."""
    first: dict[str, tuple[str, str]] = {}
    notes = []
    for split, clips in rows.items():
        for row in clips:
            digest, place = row.get("digest"), f"{row['source']} ({split})"
            if digest is None:
                continue
            other, where = first.setdefault(digest, (split, place))
            if other != split:
                notes.append(f"{place}: has the same frames as {where}, so what is evaluated was trained on")
    more = len(notes) - LISTED
    return notes[:LISTED] + ([f"{more} more clips have the same frames as one of another split"] if more > 0 else [])


def _rates(rows: Mapping[str, Sequence[dict[str, Any]]]) -> list[str]:
    """A note if the clips have several frame rates."""
    groups: dict[float, list[str]] = defaultdict(list)
    for clips in rows.values():
        for row in clips:
            rate = row.get("fps")
            if rate:
                usual = next((known for known in groups if abs(known - rate) <= SAME_RATE * known), rate)
                groups[usual].append(row["source"])
    if len(groups) < 2:
        return []
    most = max(groups, key=lambda rate: len(groups[rate]))
    kinds = ", ".join(f"{rate:g} per second ({len(of)}, such as {of[0]})" for rate, of in sorted(groups.items())[:4])
    return [f"the clips have {len(groups)} frame rates: {kinds}; --fps {most:g} resamples them to one"]
