"""What the tests with a real Ray share: tiny settings, processes that leave nothing behind, a Ray cluster."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import ray
import torch
from safetensors.torch import load_file

from raypipe import checkpoint, cli, config
from raypipe.config import Experiment
from raypipe.distributed.connection import start_ray
from raypipe.models.autoencoder import build_autoencoder

ROOT = Path(__file__).parents[1]
RAY = ["-m", "ray.scripts.scripts"]
"""Arguments of Python that run the command `ray`."""
TAG = "RAYPIPE_TEST_PROCESS"
"""Variable that a process under test hands down to all it starts, which is how they are found again."""


DATA: dict[str, Any] = {
    "dataset.image_size": 32,
    "dataset.num_frames": 7,
    "demo.train_clips": 12,
    "demo.val_clips": 4,
    "demo.test_clips": 4,
    "demo.clip_frames": 10,
}
TINY: dict[str, Any] = DATA | {
    "rivals": [],
    "autoencoder.width": 8,
    "autoencoder.steps": 60,
    "model.inner_dim": 8,
    "train.steps": 24,
    "train.warmup_steps": 2,
    "train.checkpoint_every": 6,
    "search.flow.trials": 3,
    "search.denoiser.trials": 1,
    "search.diffusion.trials": 2,
    "search.joint.trials": 0,
    "search.flow.steps": 18,
    "search.denoiser.steps": 12,
    "search.diffusion.steps": 12,
    "search.flow.refit_steps": 24,
    "search.denoiser.refit_steps": 12,
    "search.diffusion.refit_steps": 12,
    "search.finalist_seeds": 2,
    "search.top_k": 2,
    "evaluation.windows": 6,
    "evaluation.test_windows": 4,
    "evaluation.fit_windows": 4,
    "evaluation.members": 2,
    "evaluation.test_members": 2,
    "evaluation.climatology_members": 4,
    "evaluation.horizon": 3,
    "evaluation.multipliers": [0.5, 1.0],
    "evaluation.betas": [0.5, 1.0],
    "evaluation.steps": [1],
    "evaluation.finalists": 2,
}


def tiny(**values: Any) -> Experiment:
    """An experiment that trains in a second; `values` by dotted name."""
    return config.from_dict(config.override({}, TINY | values))


def flags(values: dict[str, Any]) -> list[str]:
    """The same on a command line."""
    return [text for name, value in values.items() for text in (f"--{name}", json.dumps(value))]


def save_autoencoder(folder: Path) -> Path:
    """An untrained autoencoder for `autoencoder.path`, where what is tested comes after it."""
    settings = config.Autoencoder(width=8)
    torch.manual_seed(0)
    checkpoint.save_autoencoder(folder, build_autoencoder(settings), settings)
    return folder


def same_weights(a: Path, b: Path) -> bool:
    """Bit for bit."""
    ours, theirs = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@torch.no_grad()
def difference(a: Path, b: Path) -> float:
    """Between the answers of two flows, relative to their size.

    Not between their weights: a key's bias has no effect, so its gradient is rounding error, which Adam enlarges.
    """
    ours, theirs = checkpoint.load_component(a), checkpoint.load_component(b)
    generator = torch.Generator().manual_seed(0)
    x, u = torch.randn(16, 16, 4, 4, generator=generator), torch.rand(16, generator=generator)
    expected = theirs(x, u)
    return float((ours(x, u) - expected).norm() / expected.norm())


def outcome(main: Callable[[Sequence[str] | None], int], prog: str, argv: Sequence[str]) -> int:
    """The exit code of a verb, called in this process."""
    try:
        return cli.run(main, prog, [str(arg) for arg in argv])
    except SystemExit as done:
        return int(done.code or 0)


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def wait_for(what: Callable[[], Any], seconds: float = 60, message: str = "") -> Any:
    """The first true value of `what()`."""
    until = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < until, message or f"nothing happened in {seconds} s"
        time.sleep(0.05)
    return value


@dataclass(frozen=True)
class Process:
    """A process under test, with everything that it starts; its output goes to files."""

    popen: "subprocess.Popen[bytes]"
    tag: str
    log: Path

    @property
    def out(self) -> str:
        return self.log.with_suffix(".out").read_text()

    @property
    def err(self) -> str:
        return self.log.with_suffix(".err").read_text()

    def finish(self, seconds: float = 540) -> int:
        """Its exit code."""
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s\n{self.out[-4000:]}\n{self.err[-4000:]}") from None

    def interrupt(self) -> None:
        """What Ctrl-C does in a terminal: SIGINT to the whole process group."""
        os.killpg(self.popen.pid, signal.SIGINT)

    def family(self) -> list[int]:
        """The ids of it and of everything that it started and that still runs, whoever its parent is by now."""
        mark = f"{TAG}={self.tag}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
        return found

    def gone(self, seconds: float = 20) -> None:
        """Wait until nothing is left of it."""
        wait_for(lambda: not self.family(), seconds, f"still running: {self.family()}")


@contextmanager
def started(log: Path, argv: Sequence[Any], storage: Path, *, cwd: Path = ROOT, **variables: str) -> Iterator[Process]:
    """Run a command of Python's with a Ray of its own, in its own session; in the end nothing of it is left."""
    tag = uuid.uuid4().hex
    log.parent.mkdir(parents=True, exist_ok=True)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "RAY_ADDRESS": "local",
        "RAY_AUTH_MODE": "disabled",
        "RAYPIPE_STORAGE": str(storage),
        "WANDB_MODE": "offline",
        TAG: tag,
        **variables,
    }
    environ = {name: value for name, value in environ.items() if value}
    with log.with_suffix(".out").open("wb") as out, log.with_suffix(".err").open("wb") as err:
        popen = subprocess.Popen(
            [sys.executable, *map(str, argv)],
            cwd=cwd,
            env=environ,
            stdout=out,
            stderr=err,
            start_new_session=True,
            # A shell that runs the tests in the background has them, and so the command, ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    process = Process(popen, tag, log)
    try:
        yield process
    finally:
        for left in process.family():
            with suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)
        popen.wait(30)


def complete(log: Path, argv: Sequence[Any], storage: Path, *, cwd: Path = ROOT, **variables: str) -> Process:
    """Run a command to its end, which must be a good one."""
    with started(log, argv, storage, cwd=cwd, **variables) as process:
        assert process.finish() == 0, process.err[-4000:]
    return process


def check_files(folder: Path) -> None:
    """Every file of an experiment can be read, and no temporary one is left; Ray's own are Ray's business."""
    ours = [p for p in folder.rglob("*") if p.is_file() and "ray" not in p.relative_to(folder).parts]
    assert ours
    for path in ours:
        assert not path.name.endswith(".tmp")
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".parquet":
            pq.read_table(path)
        elif path.suffix == ".safetensors":
            load_file(path)


@dataclass(frozen=True)
class Head:
    """A Ray cluster started by `ray start --head` with two CPUs. variables: the environment that joins it."""

    process: Process
    dashboard: str
    variables: dict[str, str]
    logs: Path

    def trials(self) -> list[int]:
        """The ids of the processes that run trials."""
        return [pid for pid in self.process.family() if "ray::StageTrial" in title(pid)]


@contextmanager
def ray_head(log: Path, **variables: str) -> Iterator[Head]:
    """Start a cluster, on its own ports and in its own folder, since others may share the host.

    variables: how it authenticates.
    """
    with ExitStack() as stack:
        for attempt in range(3):  # another program may take a port before Ray does
            head = stack.enter_context(_starting_head(log.with_name(f"{log.name}-{attempt}"), variables))
            wait_for(lambda head=head: head.process.popen.poll() is not None or STARTED in head.process.out, 90)
            if head.process.popen.poll() is None:
                break
        assert head.process.popen.poll() is None, head.process.err + head.process.out
        wait_for(lambda: http_status(f"{head.dashboard}/api/jobs/"), 90)
        yield head


STARTED = "Ray runtime started"
"""What `ray start` prints once the node is up."""


@contextmanager
def _starting_head(log: Path, variables: dict[str, str]) -> Iterator[Head]:
    temporary = Path(tempfile.mkdtemp(prefix="ray-"))  # sockets need a short path
    port, dashboard, *others = free_ports(8)
    (temporary / "ray").mkdir()
    (temporary / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{others.pop()}")  # of one that has ended
    variables = {"RAY_TMPDIR": str(temporary)} | variables
    names = ["dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port"]
    names += ["metrics-export-port", "ray-client-server-port"]
    argv = [
        *RAY, "start", "--head", "--block", "--num-cpus=2", f"--temp-dir={temporary}", "--disable-usage-stats",
        "--node-ip-address=127.0.0.1", f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        *(f"--{name}={number}" for name, number in zip(names, others, strict=True)),
    ]  # fmt: skip
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # a job's `python` is the head's
    environ = {"RAY_ADDRESS": "", "RAYPIPE_STORAGE": "", "PATH": path, "PYTHONUNBUFFERED": "1"} | variables
    joining = {"RAY_AUTH_MODE": "disabled"} | variables | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
    logs = temporary / "session_latest" / "logs"
    try:
        with started(log, argv, Path(), **environ) as process:
            yield Head(process, f"http://127.0.0.1:{dashboard}", joining, logs)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def http_status(address: str) -> int | None:
    """The status of a GET request without a token; None if nothing answers."""
    try:
        return int(urllib.request.urlopen(address, timeout=5).status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@contextmanager
def joined(head: Head) -> Iterator[None]:
    """Connect this process to a cluster, as a command does; afterwards disconnect and restore the environment."""
    before = dict(os.environ)
    os.environ |= head.variables
    try:
        start_ray()
        yield
    finally:
        ray.shutdown()
        os.environ.clear()
        os.environ.update(before)


def title(pid: int) -> str:
    """The command line of a process, which Ray replaces by the name of the actor; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
