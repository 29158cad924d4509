"""experiments/rayjob.yaml against KubeRay's CRD, where that is at hand, and the Dockerfile's steps without Docker."""

import copy
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[1]
MANIFEST = ROOT / "experiments" / "rayjob.yaml"
CRD = os.environ.get("KUBERAY_RAYJOB_CRD", "")
"""File with KubeRay's CustomResourceDefinition, 25,000 lines, which is not part of this repository."""
PIN = re.search(r"^ray\[.*\]==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)


@pytest.fixture
def manifest() -> dict[str, Any]:
    return yaml.safe_load(MANIFEST.read_text())


def strict(node: Any) -> Any:
    """A schema as the API server uses it with fieldValidation=Strict: unknown fields are refused; IntOrString."""
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    made = {key: strict(value) for key, value in node.items()}
    if made.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    if isinstance(made.get("properties"), dict) and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    if not CRD:
        pytest.skip("needs KubeRay's CRD: set KUBERAY_RAYJOB_CRD to its file ray.io_rayjobs.yaml")
    with open(CRD) as file:
        crd = yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    schema = next(v for v in crd["spec"]["versions"] if v["name"] == "v1")["schema"]["openAPIV3Schema"]
    made = strict(schema)
    made["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(made)


def test_the_manifest_is_a_rayjob(manifest, validator):
    assert [error.message for error in validator.iter_errors(manifest)] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "entrypont"), "x"),
        (("spec", "shutdownAfterJobFinishes"), "yes"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "maxReplica"), 3),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "imagee"), "x"),
    ],
)
def test_a_mistake_is_refused(manifest, validator, path, value):
    wrong = node = copy.deepcopy(manifest)
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    assert list(validator.iter_errors(wrong)) != []


def test_the_manifest_fits_this_version(manifest):
    cluster = manifest["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == PIN[1] and cluster["authOptions"] == {"mode": "token"}
    assert (ROOT / manifest["spec"]["entrypoint"].split()[1]).is_file()
    assert manifest["spec"]["shutdownAfterJobFinishes"] is True  # or the cluster goes on costing money
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in pods):
        assert {m["mountPath"] for c in pod["containers"] for m in c["volumeMounts"]} == {"/mnt/raypipe"}
    assert (
        "nvidia.com/gpu" in cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]["limits"]
    )


def steps() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", "")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize(("device", "torch"), [("cpu", "+cpu"), ("cuda", "")])
def test_the_dockerfile_installs_the_pinned_environment(tmp_path, device, torch):
    """Its shell, run here with a pip that writes down what it is asked for."""
    (tmp_path / "pip").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    (tmp_path / "pip").chmod(0o755)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "DEVICE": device}
    for instruction, rest in steps():
        if instruction == "RUN" and "pip install" in rest:
            rest = rest.replace("/tmp/requirements.txt", f"{tmp_path}/requirements.txt")
            subprocess.run(["sh", "-c", rest], env=environ, check=True, cwd=ROOT)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert ("whl/cpu" in calls[0]) == (device == "cpu") and "--editable ." in calls[1]
    pins = (ROOT / "requirements.txt").read_text()
    assert (tmp_path / "requirements.txt").read_text() == re.sub(r"(?m)^(torch==.*)$", rf"\1{torch}", pins)


def test_an_unknown_device_ends_the_build(tmp_path):
    command = next(rest for instruction, rest in steps() if instruction == "RUN" and "DEVICE" in rest)
    ran = subprocess.run(["sh", "-c", command], env={"DEVICE": "tpu"}, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 2 and "must be cpu or cuda" in ran.stderr


def test_what_the_dockerfile_copies_is_there_and_sent():
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for kind, rest in steps() if kind == "COPY" for name in rest.split()[:-1]}
    assert copied == sent
    assert all((ROOT / name).exists() for name in copied)
    python = dict(steps())["FROM"]
    assert python.startswith("python:3.11"), "requires-python of pyproject.toml"
