"""What the emulated hosts install from, since they reach no package server: all wheels, and uv's unpacked copies."""

import hashlib
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

from tests.raytools import ROOT

FILL = """
mount -t tmpfs srv /srv && mkdir /srv/wheels /srv/uv-cache
mount --bind "$1/wheels" /srv/wheels && mount --bind "$1/uv-cache" /srv/uv-cache
export UV_OFFLINE=1 UV_FIND_LINKS=/srv/wheels UV_CACHE_DIR=/srv/uv-cache UV_LINK_MODE=symlink HOME=$1
"$1/uv/bin/uv" venv --quiet --clear --python /usr/bin/python3.11 "$1/venv" &&
"$1/uv/bin/uv" pip install --quiet --python "$1/venv/bin/python" "${@:2}"
chown -R 1000:1000 /srv/uv-cache
"""
"""Fills uv's cache at the place where a host has it, as uv finds its copies by the place of the wheel. Number 1000 is
the hosts' user."""


def packages() -> list[str]:
    """The packages that cluster.yaml names beside requirements.txt."""
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    commands = " ".join(cluster["setup_commands"] + cluster["head_setup_commands"])
    return re.findall(r"\b[\w-]+==[\w.]+", commands)


def prepare(cache: Path) -> Path:
    """The folder with `wheels` and `uv-cache`, made on first use, which takes a minute or two and 3 GB."""
    requirements = ROOT / "requirements.txt"
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    key = hashlib.sha256(repr((requirements.read_text(), packages(), build)).encode()).hexdigest()[:12]
    folder = cache / key
    if (folder / "complete").exists():
        return folder
    for old in set(cache.iterdir()) - {folder}:
        shutil.rmtree(old)
    wheels = folder / "wheels"
    pip = [sys.executable, "-m", "pip", "--quiet"]
    wanted = ["-r", str(requirements), *packages(), *build]
    subprocess.run([*pip, "download", "--only-binary", ":all:", "--dest", str(wheels), *wanted], check=True)
    uv = [name for name in packages() if name.startswith("uv==")]
    install = [
        *pip,
        "install",
        "--upgrade",
        "--no-index",
        "--find-links",
        str(wheels),
        "--target",
        str(folder / "uv"),
        *uv,
    ]
    subprocess.run(install, check=True)
    (folder / "uv-cache").mkdir(exist_ok=True)
    subprocess.run(["unshare", "--mount", "bash", "-ec", FILL, "fill", str(folder), *wanted], check=True, cwd=ROOT)
    shutil.rmtree(folder / "venv")
    (folder / "complete").touch()
    return folder
