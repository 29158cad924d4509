"""The emulated EC2 for tests: started, used from a laptop of its own, and ended with everything in it."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.raytools import RAY, ROOT, wait_for

ADDRESS = "172.31.255.1"
PROGRAMS = ("sshd", "ssh", "rsync", "sudo", "ip", "nsenter", "unshare", "setpriv", "bash")


def missing() -> str:
    """What the emulation needs and this machine lacks; empty if nothing."""
    if os.geteuid() != 0:
        return "needs root, for namespaces"
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    absent += [name for name in ("moto", "boto3", "flask") if importlib.util.find_spec(name) is None]
    python = "/usr/bin/python3.11"
    if not absent and subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode:
        absent = [f"{python} -m pip"]
    if absent:
        return f"needs {', '.join(absent)} (Debian: openssh-server rsync sudo iproute2 python3-pip)"
    namespaces = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "true"]
    return "needs network, mount and process namespaces" if subprocess.run(namespaces).returncode else ""


@dataclass(frozen=True)
class Cloud:
    """A running emulation. folder: its files. pid: its first process, whose namespaces a laptop is in."""

    folder: Path
    pid: int

    @property
    def home(self) -> Path:
        """Home of the user who types the commands; empty in the beginning."""
        return self.folder / "laptop"

    def command(self, argv: Sequence[object]) -> list[str]:
        enter = ["nsenter", "--target", self.pid, "--net", "--mount", "--pid", f"--wdns={ROOT}"]
        return [str(part) for part in [*enter, "--", *argv]]

    @property
    def environ(self) -> dict[str, str]:
        """AWS credentials and a region, and no setting of this machine's."""
        return {
            "HOME": str(self.home),
            "TMPDIR": str(self.home / "tmp"),
            "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(ROOT),
            "AWS_ENDPOINT_URL": f"http://{ADDRESS}:5000",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-west-2",
            "RAY_USAGE_STATS_ENABLED": "0",
            "SSL_CERT_FILE": str(self.folder / "check.crt"),
        }

    def run(self, argv: Sequence[object], seconds: float, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run a command on the laptop to its end, good or bad; its output, both streams, is `stdout`."""
        return subprocess.run(
            self.command(["timeout", "--kill-after=5", seconds, *argv]),
            env=self.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ray(self, *argv: str, seconds: float = 500, **variables: str) -> str:
        """Run `ray ARGV`, which must succeed; its output."""
        done = self.run([sys.executable, *RAY, *argv], seconds, **variables)
        assert done.returncode == 0, f"ray {' '.join(argv)}: exit code {done.returncode}\n{done.stdout[-6000:]}"
        return done.stdout

    def up(self, file: str) -> None:
        """Run `ray up`; again if a busy machine kept a node from starting in the 30 seconds that Ray gives it."""
        for _ in range(3):
            done = self.run([sys.executable, *RAY, "up", "--yes", file], 500)
            if "The current node timed out during startup" not in done.stdout:
                break
        assert done.returncode == 0, done.stdout[-6000:]

    @contextmanager
    def background(self, *argv: str, **variables: str) -> Iterator[Path]:
        """Run `ray ARGV` meanwhile; the file with its output."""
        log = self.folder / "logs" / f"{'-'.join(argv[:2])}.log"
        with log.open("wb") as out:
            command = self.command([sys.executable, *RAY, *argv])
            popen = subprocess.Popen(
                command, env=self.environ | variables, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
            )
        try:
            yield log
        finally:
            popen.kill()
            popen.wait()

    def aws(self, service: str, call: str, **arguments: Any) -> Any:
        """The answer of a call of boto3's, made from the laptop's network."""
        code = f"import boto3, json; print(json.dumps(boto3.client({service!r}).{call}(**{arguments!r}), default=str))"
        done = self.run([sys.executable, "-c", code], 60)
        assert done.returncode == 0, done.stdout
        return json.loads(done.stdout)

    def instances(self) -> list[dict[str, Any]]:
        """All instances that were ever started."""
        answer = self.aws("ec2", "describe_instances")
        return [one for reservation in answer["Reservations"] for one in reservation["Instances"]]


@contextmanager
def emulated_cloud(folder: Path, image: Path) -> Iterator[Cloud]:
    """Start the emulation; in the end nothing of it is left, also if this process is killed."""
    cloud = folder / "cloud"
    (cloud / "laptop" / "tmp").mkdir(parents=True)
    namespaces = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    program = [sys.executable, str(Path(__file__).with_name("emulator.py")), str(cloud), str(image)]
    with (folder / "emulator.log").open("wb") as log:
        popen = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", *namespaces, *program],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(lambda: (cloud / "ready").exists() or popen.poll() is not None, 180)
        assert popen.poll() is None, (folder / "emulator.log").read_text()
        children = Path(f"/proc/{popen.pid}/task/{popen.pid}/children").read_text().split()
        yield Cloud(cloud, int(children[0]))
    finally:
        popen.send_signal(signal.SIGKILL)  # it ignores SIGTERM; by --kill-child, all in the namespaces end too
        popen.wait()
