"""cluster.yaml: what Ray checks offline, and what Ray does not look at."""

import copy
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]

RUN_INSTANCES = {
    "BlockDeviceMappings": {"DeviceName", "Ebs"},
    "EbsOptimized": set(),
    "IamInstanceProfile": {"Arn", "Name"},
    "ImageId": set(),
    "InstanceMarketOptions": {"MarketType", "SpotOptions"},
    "InstanceType": set(),
    "KeyName": set(),
    "MetadataOptions": {"HttpEndpoint", "HttpPutResponseHopLimit", "HttpTokens"},
    "Placement": {"AvailabilityZone", "GroupName"},
    "SecurityGroupIds": set(),
    "SubnetIds": set(),
    "TagSpecifications": {"ResourceType", "Tags"},
}
"""EC2's RunInstances parameters that a node may set, and their own keys; Ray passes node_config on unread."""


def unknown_keys(cluster: dict) -> list[str]:
    """Keys of node_config that RunInstances would refuse."""
    found = []
    for name, node in cluster["available_node_types"].items():
        for key, value in node["node_config"].items():
            if key not in RUN_INSTANCES:
                found.append(f"{name}.{key}")
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, dict):
                    found += [f"{name}.{key}.{inner}" for inner in item if inner not in RUN_INSTANCES.get(key, set())]
    return found


@pytest.fixture
def cluster() -> dict:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture
def prepared(cluster) -> dict:
    """With Ray's defaults filled in, as `ray up` takes it."""
    return prepare_config(copy.deepcopy(cluster))


def commands(prepared: dict) -> Iterator[str]:
    for key in sorted(key for key in prepared if key.endswith("_commands")):
        yield from prepared[key]


def test_ray_accepts_it(prepared):
    validate_config(prepared)


def test_a_misspelt_key_is_refused(cluster):
    cluster["idle_timeout_minute"] = cluster.pop("idle_timeout_minutes")
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minute"):
        validate_config(prepare_config(cluster))


def test_a_wrong_head_is_refused(cluster):
    cluster["head_node_type"] = "gpus"
    with pytest.raises((ValueError, KeyError)):
        validate_config(prepare_config(cluster))


def test_node_config_keys_are_ec2s(cluster):
    assert unknown_keys(cluster) == []
    for node in cluster["available_node_types"].values():
        assert "InstanceType" in node["node_config"]


@pytest.mark.parametrize("path", [("InstanceTpye",), ("MetadataOptions", "HttpToken")])
def test_a_misspelt_node_key_passes_ray_and_is_caught_here(cluster, path):
    node = cluster["available_node_types"]["gpu"]["node_config"]
    for part in path[:-1]:
        node[part] = node = dict(node[part])
    node[path[-1]] = "x"
    validate_config(prepare_config(copy.deepcopy(cluster)))
    assert unknown_keys(cluster) == [".".join(["gpu", *path])]


def test_nodes(cluster):
    head, gpu = (cluster["available_node_types"][name] for name in ("cpu", "gpu"))
    assert cluster["head_node_type"] == "cpu"
    assert head["max_workers"] == 0
    assert (gpu["min_workers"], gpu["max_workers"]) == (0, cluster["max_workers"])
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in head["node_config"]  # a head that is reclaimed takes the search with it
    assert cluster["idle_timeout_minutes"] > 0


def test_every_node_asks_for_the_token(prepared):
    """As Ray documents it: the token file on every node, the mode in every shell."""
    mounts = {remote.replace("/home/ubuntu", "~"): local for remote, local in prepared["file_mounts"].items()}
    assert mounts["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("export RAY_AUTH_MODE=token" in c and "~/.bashrc" in c for c in prepared["initialization_commands"])
    for command in commands(prepared):
        assert "RAY_AUTH_MODE=disabled" not in command
        assert "RAY_AUTH_TOKEN=" not in command  # the secret itself never stands in the file


@pytest.mark.parametrize("times", [1, 2])
def test_a_shell_of_a_node(cluster, tmp_path, times):
    """What the first command leaves in .bashrc, run here: the token's mode, the storage, the environment's python."""
    home = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    (tmp_path / ".bashrc").touch()
    for _ in range(times):
        subprocess.run(["bash", "-c", cluster["initialization_commands"][0]], env=home, check=True)
    show = 'source ~/.bashrc; echo "$RAY_AUTH_MODE $RAYPIPE_STORAGE ${PATH%%:*}"; bash -c "echo \\$RAY_AUTH_MODE"'
    shown = subprocess.run(["bash", "-c", show], env=home, check=True, capture_output=True, text=True).stdout
    assert shown.splitlines() == [f"token /mnt/raypipe {tmp_path}/venv/bin", "token"]
    assert len((tmp_path / ".bashrc").read_text().splitlines()) == 1


def test_commands_are_shell(prepared):
    for command in commands(prepared):
        checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
        assert checked.returncode == 0, f"{command}: {checked.stderr}"


def test_nothing_listens_to_the_world(prepared):
    starts = [c for c in prepared["head_start_ray_commands"] if "ray start --head" in c]
    assert len(starts) == 1
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert not re.search(r"\b0\.0\.0\.0", yaml.safe_dump(prepared))
    for node in prepared["available_node_types"].values():
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"


def test_workers_find_the_head(prepared):
    assert any("--address=$RAY_HEAD_IP:6379" in c for c in prepared["worker_start_ray_commands"])
    assert any("--port=6379" in c and "ray_bootstrap_config.yaml" in c for c in prepared["head_start_ray_commands"])


def test_the_code_is_sent_and_data_are_not(cluster):
    for remote, local in cluster["file_mounts"].items():
        if not local.startswith("~"):
            assert remote.startswith("~/code/")
            assert (ROOT / local).exists(), local
            assert local.rstrip("/") not in {".", ""}, "the whole repository would take .git and results along"
    sent = set(cluster["file_mounts"].values())
    assert {"raypipe", "experiments", "requirements.txt", "pyproject.toml"} <= sent
    ignored = {line for line in (ROOT / ".gitignore").read_text().splitlines() if line.startswith("*.")}
    data = ignored - {"*.egg-info/"}
    assert {"*.hdf5", "*.h5", "*.mp4"} <= data
    assert data <= set(cluster["rsync_exclude"])


def test_nodes_install_the_pinned_versions(prepared):
    """One Ray on all nodes, the one of requirements.txt and of these tests."""
    pins = re.findall(r"^ray\[[\w,]+\]==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert pins == [ray.__version__]
    for setup in (prepared["head_setup_commands"], prepared["worker_setup_commands"]):
        installs = [c for c in setup if "install" in c]
        assert any("-r requirements.txt" in c and "-e ." in c and "cd ~/code" in c for c in installs)
        assert not any(re.search(r"\bray(\[|==|-| @|\s+@)", c) for c in installs)
    python = re.search(r'requires-python = ">=([\d.]+)', (ROOT / "pyproject.toml").read_text())
    assert python is not None
    assert any(f"--python {python[1]} " in c for c in prepared["worker_setup_commands"])


def test_results_lie_where_all_nodes_see_them(cluster, tmp_path):
    """The head exports its folder, a worker mounts that of its head, and with EFS both mount the file system."""
    shell, command = cluster["initialization_commands"]
    assert "RAYPIPE_STORAGE=/mnt/raypipe" in shell
    for name in ("apt-get", "mkdir", "chown", "exportfs", "mount", "tee"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/calls\n')
    (tmp_path / "sudo").write_text('#!/bin/sh\nexec "$@"\n')
    (tmp_path / "mountpoint").write_text("#!/bin/sh\nexit 1\n")
    for path in tmp_path.iterdir():
        path.chmod(0o755)

    def calls(text: str, **variables: str) -> str:
        (tmp_path / "calls").unlink(missing_ok=True)
        environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", **variables}
        subprocess.run(["bash", "-c", text], env=environ, check=True, capture_output=True)
        return (tmp_path / "calls").read_text()

    head, worker = calls(command), calls(command, RAY_HEAD_IP="10.1.2.3")
    assert "nfs-kernel-server" in head and "exportfs -ra" in head and "\nmount" not in head
    assert "nfs-common" in worker and "10.1.2.3:/mnt/raypipe /mnt/raypipe\n" in worker and "exportfs" not in worker
    efs = command.replace("EFS=;", "EFS=fs-0.efs.eu-west-1.amazonaws.com;")
    for variables in ({}, {"RAY_HEAD_IP": "10.1.2.3"}):
        assert "fs-0.efs.eu-west-1.amazonaws.com:/ /mnt/raypipe\n" in calls(efs, **variables)


def test_setup_commands_run_a_second_time(prepared, tmp_path):
    """Ray runs them twice on a worker, and again on a living head: the second time, python3 is that of ~/venv."""
    again = prepare_config(copy.deepcopy(prepared))
    assert again["worker_setup_commands"][: len(prepared["setup_commands"])] == prepared["setup_commands"]
    assert len(again["worker_setup_commands"]) == 2 * len(prepared["worker_setup_commands"])
    first = prepared["setup_commands"][0].split(" && ")[0]
    assert first.startswith("/usr/bin/python3 -m pip install"), "the python3 of ~/venv has no pip"


def test_there_is_no_line_to_change():
    text = (ROOT / "cluster.yaml").read_text()
    assert not re.search(r"-0{17}\b", text) and "CHANGE" not in text
    for asked in ("costs", "ray down cluster.yaml"):
        assert asked in text
