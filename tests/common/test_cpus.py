"""The CPUs of a container, a batch job and a bare machine."""

import os

import pytest

from raypipe.common.cpus import cpu_count

ALL = len(os.sched_getaffinity(0))


@pytest.fixture
def cpus(tmp_path, monkeypatch):
    """The number of CPUs by the files of a host with 64 CPUs, of which affinity leaves 16."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)

    def count(**files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return cpu_count(tmp_path)

    return count


V2 = {"proc/self/cgroup": "0::/user/job"}
V1 = {"proc/self/cgroup": "11:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n3:cpuset:/\n0::/"}
V1_CPU = "sys/fs/cgroup/cpu,cpuacct"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 16),
        (V2, 16),
        (V2 | {"sys/fs/cgroup/user/job/cpu.max": "max 100000"}, 16),
        (V2 | {"sys/fs/cgroup/user/job/cpu.max": "400000 100000"}, 4),
        (V2 | {"sys/fs/cgroup/user/job/cpu.max": "250000 100000"}, 2),
        (V2 | {"sys/fs/cgroup/user/job/cpu.max": "50000 100000"}, 1),
        (V2 | {"sys/fs/cgroup/user/job/cpu.max": "9900000 100000"}, 16),
        (V2 | {"sys/fs/cgroup/user/job/cpu.max": "max 100000", "sys/fs/cgroup/user/cpu.max": "300000 100000"}, 3),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
        ({"proc/self/cgroup": "0::/../../elsewhere", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
        (V2 | {"sys/fs/cgroup/user/job/cpu.max": "garbage"}, 16),
        (V1 | {f"{V1_CPU}/cpu.cfs_quota_us": "-1", f"{V1_CPU}/cpu.cfs_period_us": "100000"}, 16),
        (V1 | {f"{V1_CPU}/docker/1/cpu.cfs_quota_us": "350000", f"{V1_CPU}/docker/1/cpu.cfs_period_us": "100000"}, 3),
        # Inside the container its cgroup is the root of the mount, while proc may still tell the host's path.
        (V1 | {f"{V1_CPU}/cpu.cfs_quota_us": "500000", f"{V1_CPU}/cpu.cfs_period_us": "100000"}, 5),
        (V1 | {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "600000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 6),
    ],
)
def test_the_smallest_limit_counts(cpus, files, expected):
    assert cpus(**files) == expected


def test_this_machine():
    assert 1 <= cpu_count() <= ALL
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cpu_count() == 1
    finally:
        os.sched_setaffinity(0, before)
