"""Keeps `<folder of a search>/report.html` up to date while the search runs, from a thread that never holds it up."""

import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from jinja2 import Template

from raypipe.common.errors import first_line
from raypipe.common.files import write_atomic
from raypipe.report import overview as told
from raypipe.report.live import Logs, live_stages
from raypipe.report.outlook import duration, seconds_left
from raypipe.report.state import Overview, read_overview
from raypipe.report.template import template
from raypipe.workspace.layout import Workspace

logger = logging.getLogger(__name__)

PAGE = "report.html"
SECONDS = 10.0
"""Least time between two writes of the page, and between two loads of it by a browser."""
LOOK_SECONDS = 1.0
"""Time between two looks whether the search has begun."""
LATE_SECONDS = 60.0
"""A page that says that the search runs, and is older than this, has not been written since the search was killed."""
SHARE = 0.01
"""The page is written less often where it would take more than this share of the time of a CPU."""
MEASURE_SECONDS = 60.0
"""Least time between two sums of the sizes of the files of the search."""
PATIENCE = 5.0
"""Longest time in seconds for which the end of a command waits for the page."""
MIB, GIB = 2**20, 2**30


@contextlib.contextmanager
def live_page(workspace: Workspace) -> Iterator["LivePage"]:
    """Keep the page of a search up to date during a `with` block, and say on it that the search has ended after that.

    The caller holds the lock of the search. A page that cannot be written is logged; the search goes on without it.
    """
    page, over = LivePage(workspace), threading.Event()
    thread = threading.Thread(target=page.keep, args=[over], name="report.html", daemon=True)
    thread.start()
    try:
        yield page
    finally:
        over.set()
        thread.join(PATIENCE)


class LivePage:
    """The page of a search. seconds: CPU time that its writes have taken."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace, self._logs = workspace, Logs()
        self._template: Template | None = None
        self._failed, self._pause = False, SECONDS
        self._size, self._measured = 0, -MEASURE_SECONDS
        self.seconds = 0.0

    @property
    def path(self) -> Path:
        return self._workspace.folder / PAGE

    def keep(self, over: threading.Event) -> None:
        """Write the page again and again, once the search has trials, and a last time when `over` is set."""
        while not over.wait(self._pause if self.seconds else LOOK_SECONDS):
            if self._workspace.study.is_file():
                spent = self.seconds
                self.write()
                self._pause = max(SECONDS, (self.seconds - spent) / SHARE)
        if self._workspace.study.is_file():
            self.write(ended=True)

    def write(self, *, ended: bool = False) -> None:
        """Write the page; if that fails, log it in a line, once. ended: see `read_overview`."""
        began = time.thread_time()
        try:
            overview = read_overview(self._workspace, ended=ended, read=self._logs.read)
            write_atomic(self.path, self._render(overview))
            self._failed = False
        except Exception as error:  # whatever happens to the page must not end the search
            if not self._failed:
                logger.warning("%s: not written (%s); the search goes on without it", self.path, first_line(error))
            self._failed = True
        self.seconds += time.thread_time() - began

    def _render(self, overview: Overview) -> str:
        self._template = self._template or template("live.html.jinja")
        running = overview.runner is not None
        left, best = seconds_left(overview), overview.best[:1]
        trials = [stage for stage in overview.stages if not stage.searched]
        return self._template.render(
            title=overview.workspace.name,
            dataset=overview.experiment.dataset.name,
            state=overview.state,
            running=running,
            refresh=round(self._pause),
            late=round(max(LATE_SECONDS, 3 * self._pause)),
            written=int(time.time()),
            written_text=time.strftime("%Y-%m-%d %H:%M:%S %z"),
            stage=trials[0].component if trials else None if overview.finished else "evaluation",
            resume=None if overview.finished else told.resume_command(overview),
            best=best[0] if best else None,
            ended=sum(stage.counts[state] for stage in overview.stages for state in ("finished", "stopped", "failed")),
            planned=sum(max(stage.planned, len(stage.states)) for stage in overview.stages),
            trials_left=sum(stage.left for stage in overview.stages),
            time_left=None if left is None or overview.finished else duration(left),
            disk=size(self._disk()),
            free=size(shutil.disk_usage(overview.workspace.folder).free),
            memory=memory_used(),
            counts=told.stage_table(overview),
            facts=[(word, text) for word, text in told.facts(overview) if word not in ("report", "left", "next")],
            evaluated=overview.evaluated,
            report=(overview.workspace.evaluation / "report.html").is_file(),
            stages=live_stages(overview, self._logs.read),
        )  # fmt: skip

    def _disk(self) -> int:
        """Bytes in the files of the search."""
        if time.monotonic() - self._measured >= MEASURE_SECONDS:
            self._size, self._measured = folder_size(self._workspace.folder), time.monotonic()
        return self._size


def folder_size(folder: Path) -> int:
    """Bytes in the files below a folder; files that vanish meanwhile do not count."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def memory_used() -> tuple[str, str] | None:
    """Memory used on this machine, and by this process, in words; None where the system does not tell (Linux does)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    total, free = kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024
    own = pages * os.sysconf("SC_PAGE_SIZE")
    return f"{(total - free) / GIB:.1f} of {size(total)}", size(own)


def size(count: int) -> str:
    """A number of bytes in words."""
    return f"{count / MIB:.3g} MiB" if count < GIB else f"{count / GIB:.1f} GiB"
