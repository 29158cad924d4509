"""cluster.yaml as it is committed, from `ray up` to `ray down`, on an emulated EC2. The tests follow one another."""

import json
import shutil
import sys
import threading

import pytest

from tests.cloud import image, tools
from tests.cloud.tools import Cloud, emulated_cloud
from tests.raytools import RAY, ROOT, wait_for

pytestmark = [
    pytest.mark.cloud,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(tools.missing()), reason=f"the emulated EC2 {tools.missing()}"),
]

DASHBOARD = "http://127.0.0.1:8265"
FILE = "cluster.yaml"


@pytest.fixture(scope="module")
def empty_cloud(request, tmp_path_factory):
    """An AWS account in which nothing has been made, and a user with credentials and a region."""
    made = image.prepare(request.config.cache.mkdir("cloud"))
    with emulated_cloud(tmp_path_factory.mktemp("cloud"), made) as cloud:
        yield cloud


@pytest.fixture(scope="module")
def cloud(empty_cloud: Cloud):
    """The same after `ray up`, with the dashboard forwarded."""
    empty_cloud.up(FILE)
    with empty_cloud.background("dashboard", FILE) as log:
        wait_for(lambda: "Forwarding" in log.read_text() or "localhost" in log.read_text(), 120)
        yield empty_cloud


def submit(cloud: Cloud, folder, *argv: object) -> dict:
    """Submit gpu_job.py and return its answer."""
    folder.mkdir()
    shutil.copy(ROOT / "tests" / "cloud" / "gpu_job.py", folder)
    job = ["python", "gpu_job.py", *map(str, argv)]
    out = cloud.ray(
        "job", "submit", "--address", DASHBOARD, "--working-dir", str(folder), "--", *job, RAY_AUTH_MODE="token"
    )
    answers = [line.partition("ANSWER ")[2] for line in out.splitlines() if line.startswith("ANSWER ")]
    assert len(answers) == 1, out[-4000:]
    return json.loads(answers[0])


def up(cloud: Cloud, kind: str) -> list[dict]:
    """The instances of a node type that are up."""
    found = [one for one in cloud.instances() if one["State"]["Name"] in ("pending", "running")]
    return [one for one in found if {"Key": "ray-user-node-type", "Value": kind} in one["Tags"]]


def test_up(cloud):
    heads = up(cloud, "cpu")
    assert len(heads) == 1 and up(cloud, "gpu") == []
    assert heads[0]["ImageId"] == "ami-0123456789abcdef0"
    assert heads[0]["IamInstanceProfile"]["Arn"].endswith(":instance-profile/raypipe-head")
    token = cloud.home / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600 and len(token.read_text()) == 64


def test_only_ssh_from_the_user_is_admitted(cloud):
    groups = cloud.aws(
        "ec2", "describe_security_groups", GroupIds=[up(cloud, "cpu")[0]["SecurityGroups"][0]["GroupId"]]
    )
    group = groups["SecurityGroups"][0]
    assert group["GroupName"] == "raypipe-raypipe"
    ssh = [rule for rule in group["IpPermissions"] if rule["IpProtocol"] == "tcp"]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in ssh] == [(22, 22)]
    assert [block["CidrIp"] for block in ssh[0]["IpRanges"]] == [f"{tools.ADDRESS}/32"]
    rest = [rule for rule in group["IpPermissions"] if rule not in ssh]
    assert [pair["GroupId"] for rule in rest for pair in rule["UserIdGroupPairs"]] == [group["GroupId"]]
    assert not any(rule["IpRanges"] or rule["Ipv6Ranges"] for rule in rest)


def test_the_dashboard_listens_on_loopback_alone(cloud):
    listening = cloud.ray("exec", FILE, "ss -ltn")
    assert "127.0.0.1:8265" in listening
    assert not any(f"{place}:8265" in listening for place in ("0.0.0.0", "*", "[::]"))


def test_jobs_need_the_token(cloud):
    argv = [sys.executable, *RAY, "job", "list", "--address", DASHBOARD]
    refused = cloud.run(argv, 60, RAY_AUTH_MODE="disabled")
    assert refused.returncode != 0 and "Missing authentication token" in refused.stdout, refused.stdout
    cloud.ray("job", "list", "--address", DASHBOARD, RAY_AUTH_MODE="token")


def test_status(cloud):
    assert "1 cpu" in cloud.ray("exec", FILE, "ray status")


def test_gpu_tasks_start_spot_nodes(cloud, tmp_path):
    cloud.aws("s3", "create_bucket", Bucket="mine", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    answer = submit(cloud, tmp_path / "job", 2, 1, "s3://mine/first")
    workers = up(cloud, "gpu")
    hosts = {"ip-" + one["PrivateIpAddress"].replace(".", "-") for one in workers}
    assert {task["host"] for task in answer["tasks"]} == hosts and len(hosts) == 2
    assert answer["driver"] not in hosts  # the head has no GPU
    for task in answer["tasks"]:
        assert task["devices"] == "0" and task["storage"] == "/mnt/raypipe" and task["token"] == "token"
        assert task["code"] == "/home/ubuntu/code/raypipe/__init__.py"
    assert len([name for name in answer["files"] if name.startswith("begun-")]) >= 2  # written by the workers
    for one in workers:
        assert one["InstanceLifecycle"] == "spot"
        assert one["IamInstanceProfile"]["Arn"].endswith(":instance-profile/raypipe-worker")
    assert cloud.aws("s3", "list_objects_v2", Bucket="mine")["KeyCount"] == 1


def test_a_lost_node(cloud, tmp_path):
    """A spot node is reclaimed at work: its task is done by another one."""
    before = {one["InstanceId"] for one in up(cloud, "gpu")}
    answers: list[dict] = []
    job = threading.Thread(target=lambda: answers.append(submit(cloud, tmp_path / "job", 2, 12, "s3://mine/second")))
    job.start()
    busy = wait_for(lambda: sorted(cloud.folder.glob("exports/*/begun-1-*"), key=lambda p: p.stat().st_mtime), 300)[-1]
    address = busy.name.removeprefix("begun-1-ip-").replace("-", ".")
    lost = next(one for one in up(cloud, "gpu") if one["PrivateIpAddress"] == address)
    cloud.aws("ec2", "terminate_instances", InstanceIds=[lost["InstanceId"]])
    job.join(600)
    assert len(answers) == 1 and len(answers[0]["tasks"]) == 2
    assert busy.name.removeprefix("begun-1-") not in {task["host"] for task in answers[0]["tasks"]}
    assert lost["InstanceId"] in before


def test_up_again(cloud):
    """`ray up` on a living head: the same head, set up anew, which works."""
    head = up(cloud, "cpu")[0]["InstanceId"]
    cloud.up(FILE)
    assert [one["InstanceId"] for one in up(cloud, "cpu")] == [head]
    assert "1 cpu" in cloud.ray("exec", FILE, "ray status")


def test_results_come_home(cloud):
    home = cloud.folder / "results"
    home.mkdir()
    cloud.ray("rsync-down", FILE, "/mnt/raypipe/", f"{home}/")
    assert list(home.glob("begun-*"))


def test_down(cloud):
    cloud.ray("down", "--yes", FILE)
    states = [one["State"]["Name"] for one in cloud.instances()]
    assert states and set(states) <= {"terminated"}
