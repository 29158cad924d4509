"""Number of CPUs that this process may use: that of the host, limited by CPU affinity and the quotas of its cgroups."""

import math
import os
from collections.abc import Iterator
from pathlib import Path


def cpu_count(root: Path = Path("/")) -> int:
    """Number of CPUs that this process may use, at least 1. A fraction of a CPU in a quota is rounded down.

    In a container or under a batch scheduler this is less than `os.cpu_count()`, which counts the CPUs of the host.
    root: folder with proc/ and sys/.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min([allowed, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """The quota, in CPUs, of every cgroup around this process that has one; cgroups of version 1 and 2."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        names = controllers.split(",")
        if number == "0" and not controllers:
            for folder in _folders(root / "sys/fs/cgroup", path):
                quota, _, period = _read(folder / "cpu.max").partition(" ")
                yield from _quota(quota, period)
        elif "cpu" in names:
            mount = next((m for m in (controllers, "cpu") if (root / "sys/fs/cgroup" / m).is_dir()), controllers)
            for folder in _folders(root / "sys/fs/cgroup" / mount, path):
                yield from _quota(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _folders(mount: Path, path: str) -> Iterator[Path]:
    """The folders of a cgroup and of those around it; a container may see only the root of the host's `path`."""
    folder = mount / path.strip("/")
    yield folder
    yield from (each for each in folder.parents if each == mount or mount in each.parents)


def _quota(quota: str, period: str) -> Iterator[float]:
    """The ratio of both, in microseconds; nothing without a limit, which version 1 calls -1 and version 2 `max`."""
    try:
        share = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return
    if share > 0:
        yield share


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
