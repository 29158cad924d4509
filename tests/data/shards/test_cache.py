"""A bounded folder of copies."""

import errno
import os
import threading
import time

import pytest

from raypipe.data.shards.cache import Cache

SIZE = 1000


@pytest.fixture
def cache(tmp_path):
    return Cache(str(tmp_path / "cache"), 3 * SIZE)


def write(path):
    assert path.stat().st_size == SIZE  # its room is taken before a byte is there
    path.write_bytes(b"x" * SIZE)


def take(cache, name, fill=write, size=SIZE):
    with cache.file(name, size, fill, f"far://{name}") as path:
        return path.read_bytes()


def names(cache):
    return sorted(entry.name for entry in os.scandir(cache.folder) if entry.is_file())


def test_what_was_used_longest_ago_makes_room(cache):
    for name in "abcad":
        take(cache, name)
    assert names(cache) == ["a", "c", "d"]
    take(cache, "c", fill=lambda _: pytest.fail("made again"))


def test_what_is_in_use_stays(cache):
    with cache.file("a", SIZE, write, "far://a"):
        for name in "bcde":
            take(cache, name)
        assert "a" in names(cache)


def test_what_killed_processes_left_is_removed(cache):
    take(cache, "a")
    with open(os.path.join(cache.folder, "b.part"), "wb") as file:
        file.truncate(2 * SIZE)
    take(cache, "c")
    assert names(cache) == ["a", "c"]


def test_copies_in_the_making_have_their_room(cache):
    """Two files of two units do not fit at once: the second waits for the first."""
    began, order = threading.Event(), []

    def slowly(path):
        began.set()
        time.sleep(0.5)
        path.write_bytes(b"x" * 2 * SIZE)
        order.append("slow")

    def quickly(path):
        order.append("quick")

    thread = threading.Thread(target=take, args=(cache, "slow", slowly, 2 * SIZE))
    thread.start()
    began.wait(10)
    take(cache, "quick", quickly, 2 * SIZE)
    thread.join()
    assert order == ["slow", "quick"]
    assert names(cache) == ["quick"]


def test_a_failed_copy_leaves_nothing(cache):
    def fail(path):
        path.write_bytes(b"half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        take(cache, "a", fail)
    assert names(cache) == []


def test_a_copy_of_another_size_is_made_again(cache):
    take(cache, "a")
    with open(os.path.join(cache.folder, "a"), "ab") as file:
        file.write(b"more")
    assert take(cache, "a") == b"x" * SIZE


def test_mistakes_name_the_field_and_the_remedy(cache, tmp_path):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(
        ValueError, match=r"dataset\.cache_gb: must be at least .* to hold far://a, not 3e-06; raise it"
    ):
        take(cache, "a", size=3 * SIZE + 1)
    with pytest.raises(ValueError, match=r"dataset\.cache: no space left in .* for far://a .*choose another folder"):
        take(cache, "a", full)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"dataset\.cache: .*file cannot be written"):
        take(Cache(str(tmp_path / "file")), "a")
