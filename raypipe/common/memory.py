"""The memory of this process: what it holds now, and the most that it has held."""

import resource
from contextlib import suppress
from pathlib import Path

STATUS = Path("/proc/self/status")


def held() -> int:
    """Bytes of memory that this process holds now."""
    return _read("VmRSS")


def most_held() -> int:
    """The most bytes that this process has held since `forget_most`, or since its start where Linux lacks that."""
    return _read("VmHWM")


def forget_most() -> None:
    """Count `most_held` from now on."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _read(name: str) -> int:
    with suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
