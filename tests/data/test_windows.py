"""Laws of the index arithmetic."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.data.windows import Sampler, WindowIndex


@given(st.lists(st.integers(0, 30), min_size=1, max_size=20), st.integers(1, 6), st.integers(1, 4))
def test_every_window_of_every_clip_is_located_once(lengths, window, stride):
    span = (window - 1) * stride + 1
    wanted = [(c, s) for c, n in enumerate(lengths) for s in range(n - span + 1)]
    if not wanted:
        with pytest.raises(ValueError, match=f"clips of {span} frames"):
            WindowIndex(lengths, window, stride)
        return
    index = WindowIndex(lengths, window, stride)
    clips, starts = index.locate(np.arange(len(index)))
    assert list(zip(clips.tolist(), starts.tolist(), strict=True)) == wanted
    assert index.too_short.tolist() == [c for c, n in enumerate(lengths) if n < span]


def test_a_clip_of_exactly_one_window_counts():
    index = WindowIndex([4, 5, 9], window=5, stride=2)
    assert len(index) == 1
    assert index.locate([0])[0].tolist() == [2]
    with pytest.raises(ValueError, match="from 0 to 0"):
        index.locate([1])


@st.composite
def laws(draw):
    """Clips in shards, a window, a world and a batch that go together; (index, borders, world, batch)."""
    lengths = draw(st.lists(st.integers(0, 30), min_size=1, max_size=20))
    window, stride = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    span = (window - 1) * stride + 1
    lengths.append(span + draw(st.integers(4, 20)))
    index = WindowIndex(lengths, window, stride)
    shard_of = np.cumsum(draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths))))
    world = draw(st.integers(1, 5))
    return index, index.borders(shard_of), shard_of, world, world * draw(st.integers(1, 4))


@settings(max_examples=200, deadline=None)
@given(laws(), st.integers(0, 2), st.integers(0, 9))
def test_the_laws_hold_for_any_shards(case, epoch, seed):
    index, borders, _, world, batch = case
    ranks = [Sampler(len(index), batch, seed, rank, world, borders) for rank in range(world)]
    steps = range(epoch * ranks[0].steps_per_epoch, (epoch + 1) * ranks[0].steps_per_epoch)
    alone = Sampler(len(index), batch, seed, borders=borders)
    seen = []
    for step in steps:
        parts = [rank.batch(step).windows for rank in ranks]
        assert all(len(part) for part in parts)
        assert np.concatenate(parts).tolist() == alone.batch(step).windows.tolist()
        seen += np.concatenate(parts).tolist()
    assert sorted(seen) == list(range(len(index)))
    begin = steps[len(steps) // 2]  # what a run does that resumes there
    fresh = Sampler(len(index), batch, seed, borders=borders)
    for step in range(begin, steps.stop):
        assert fresh.batch(step).windows.tolist() == alone.batch(step).windows.tolist()


@settings(max_examples=200, deadline=None)
@given(laws(), st.integers(0, 9))
def test_a_lane_goes_to_each_of_its_shards_once(case, seed):
    index, borders, shard_of, _, batch = case
    sampler = Sampler(len(index), batch, seed, borders=borders)
    steps = [sampler.batch(step).windows for step in range(sampler.steps_per_epoch)]
    ends = np.arange(batch + 1) * len(index) // batch
    for lane in range(batch):
        windows = [w for part in steps for w in part.tolist() if ends[lane] <= w < ends[lane + 1]]
        shards = shard_of[index.locate(windows)[0]]
        assert np.count_nonzero(np.diff(shards)) <= len(set(shards.tolist())) - 1 or not windows


def test_borders_inside_no_lane_change_nothing():
    plain, cut = Sampler(64, 4, seed=1), Sampler(64, 4, seed=1, borders=[16, 32, 48])
    assert [plain.batch(s).windows.tolist() for s in range(32)] == [cut.batch(s).windows.tolist() for s in range(32)]


def test_shards_are_visited_in_another_order_every_epoch():
    sampler = Sampler(60, 1, seed=0, borders=[10, 20, 30, 40, 50])
    orders = set()
    for epoch in range(8):
        shards = [int(sampler.batch(epoch * 60 + i).windows[0]) // 10 for i in range(60)]
        orders.add(tuple(dict.fromkeys(shards)))
    assert len(orders) > 4


def test_borders_are_where_a_shard_begins():
    index = WindowIndex([3, 1, 4, 2, 5], window=2)  # 2, 0, 3, 1, 4 windows
    assert index.borders([0, 0, 1, 1, 2]).tolist() == [2, 6]
    assert index.borders([0, 1, 2, 2, 2]).tolist() == [2]
    with pytest.raises(ValueError, match="one per clip"):
        index.borders([0, 1])


sizes = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(0, 100)).map(
    lambda t: (t[0], t[0] * t[1], t[0] + t[2])
)


@settings(max_examples=200)
@given(sizes, st.integers(0, 3), st.integers(0, 9))
def test_every_window_once_per_epoch_over_all_ranks(size, epoch, seed):
    world, batch, windows = size
    ranks = [Sampler(windows, batch, seed, rank, world) for rank in range(world)]
    assert len({r.steps_per_epoch for r in ranks}) == 1
    steps = range(epoch * ranks[0].steps_per_epoch, (epoch + 1) * ranks[0].steps_per_epoch)
    seen = []
    for step in steps:
        parts = [r.batch(step) for r in ranks]
        assert all(len(part.windows) >= 1 for part in parts)
        assert {part.total for part in parts} == {sum(len(part.windows) for part in parts)}
        begins = np.cumsum([0] + [len(part.windows) for part in parts])
        assert [part.offset for part in parts] == begins[:-1].tolist()
        seen += [w for part in parts for w in part.windows.tolist()]
    assert sorted(seen) == list(range(windows))


@settings(max_examples=100)
@given(sizes, st.integers(0, 40), st.integers(0, 9))
def test_the_global_batch_depends_only_on_the_step(size, step, seed):
    world, batch, windows = size
    parts = [Sampler(windows, batch, seed, rank, world).batch(step) for rank in range(world)]
    alone = Sampler(windows, batch, seed)
    for earlier in range(0, step, 3):
        alone.batch(earlier)
    assert np.concatenate([part.windows for part in parts]).tolist() == alone.batch(step).windows.tolist()


def test_a_rank_reads_its_own_stretch():
    parts = [np.concatenate([Sampler(1000, 8, 3, r, 2).batch(s).windows for s in range(125)]) for r in range(2)]
    assert parts[0].max() < parts[1].min()


def test_epochs_and_seeds_differ():
    sampler = Sampler(64, 8, seed=0)
    assert sampler.batch(0).windows.tolist() != sampler.batch(8).windows.tolist()
    assert sampler.batch(0).windows.tolist() != Sampler(64, 8, seed=1).batch(0).windows.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 5, 0, 0, 2), "batch_size: must be a multiple"),
        ((1, 4, 0, 0, 2), "num_windows: must be at least"),
        ((10, 4, 0, 2, 2), "rank: must be from 0 to 1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sampler(*arguments)
