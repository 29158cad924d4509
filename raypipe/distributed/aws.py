"""The node provider of cluster.yaml: EC2, where `ray up` looks up or creates whatever differs between AWS accounts.

Ray's own provider for EC2 needs an image and a security group in the config (otherwise it takes an image of Ubuntu
18.04 and admits SSH from every address), and gives no IAM role to the workers, so that these cannot read a bucket.
What the config of a node sets itself (ImageId, SecurityGroupIds, IamInstanceProfile) is left as it is.
"""

from __future__ import annotations

import copy
import ipaddress
import json
import os
import secrets
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from click import ClickException
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

IMAGE = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
"""Public SSM parameter with the latest Deep Learning Base image of a region: Ubuntu 22.04 with the GPU driver."""
MY_ADDRESS = "https://checkip.amazonaws.com"
"""Answers with the IPv4 address from which it is asked."""
TOKEN = "~/.ray/auth_token"
SSH = 22
PROPAGATION = 15.0
"""Seconds until EC2 knows a new instance profile; Ray waits as long for its own."""

Config = dict[str, Any]


class Provider(AWSNodeProvider):
    """EC2 nodes. provider_config: `region` is optional, by default that of the caller's AWS config."""

    def __init__(self, provider_config: Config, cluster_name: str) -> None:
        super().__init__(_with_region(provider_config), cluster_name)  # type: ignore[no-untyped-call]

    @staticmethod
    def fillout_available_node_types_resources(cluster_config: Config) -> Config:
        """The config with the CPUs, GPUs and memory of each instance type."""
        config = {**cluster_config, "provider": _with_region(cluster_config["provider"])}
        with _one_line():
            filled: Config = AWSNodeProvider.fillout_available_node_types_resources(config)
            return filled

    @staticmethod
    def bootstrap_config(cluster_config: Config) -> Config:
        """The config with image, security group and instance profile of every node; called by `ray up` on the client.

        Creates what the account lacks, and Ray's authentication token. Raises ClickException, one line, if AWS refuses.
        """
        config = copy.deepcopy(cluster_config)
        config["provider"] = _with_region(config["provider"])
        make_token(Path(TOKEN).expanduser())
        session = boto3.Session(region_name=config["provider"]["region"])
        types = config["available_node_types"]
        nodes = [node["node_config"] for node in types.values()]
        with _one_line():
            _fill(nodes, "ImageId", lambda _: latest_image(session.client("ssm")))
            _fill(nodes, "SecurityGroupIds", lambda node: [security_group(session, config["cluster_name"], node)])
            if any("IamInstanceProfile" not in node for node in nodes):
                head, worker = instance_profiles(session)
                for name, node_type in types.items():
                    arn = head if name == config["head_node_type"] else worker
                    node_type["node_config"].setdefault("IamInstanceProfile", {"Arn": arn})
            bootstrapped: Config = bootstrap_aws(config)
        return bootstrapped


def _fill(nodes: list[Config], key: str, value: Callable[[Config], Any]) -> None:
    """Set `key` in all node configs that lack it, to one value made for the first of them."""
    lacking = [node for node in nodes if key not in node]
    if lacking:
        made = value(lacking[0])
        for node in lacking:
            node[key] = made


def _with_region(provider: Config) -> Config:
    """The `provider` section with a region.

    Ray caches a resolved config under the hash of the file, whatever region it was resolved in. `ray down` in another
    region would end nothing, and the nodes would go on costing money, so that is refused.
    """
    here = boto3.Session().region_name
    if "region" not in provider:
        if here is None:
            raise ClickException("AWS: no region; set one with `aws configure` or AWS_DEFAULT_REGION")
        return {**provider, "region": here, "region_from": "session"}
    cached = provider.get("_config_cache_path", "")
    if provider.get("region_from") == "session" and here not in (None, provider["region"]) and os.path.exists(cached):
        raise ClickException(
            f"AWS: this cluster was started in {provider['region']}, but your region is now {here}; "
            f"set AWS_DEFAULT_REGION={provider['region']}, or, once that cluster has ended, delete {cached}"
        )
    return provider


@contextmanager
def _one_line() -> Iterator[None]:
    """Turn errors of AWS into one line, which `ray up` prints without a traceback."""
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise ClickException(f"AWS: {' '.join(str(error).split())}") from None


def make_token(path: Path) -> None:
    """Create Ray's authentication token, readable by its owner alone, unless there is one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with open(descriptor, "w") as file:
        file.write(secrets.token_hex(32))


def latest_image(ssm: Any) -> str:
    """Id of the latest image of the region, see `IMAGE`."""
    return str(ssm.get_parameter(Name=IMAGE)["Parameter"]["Value"])


def security_group(session: boto3.Session, cluster: str, node_config: Config) -> str:
    """Id of the group `raypipe-CLUSTER`, which admits SSH from the caller's address alone, and everything from itself.

    It lies in the VPC of the node's subnets, or in the default VPC. Rules for SSH from other addresses are removed.
    """
    ec2 = session.client("ec2")
    name, vpc = f"raypipe-{cluster}", _vpc(ec2, node_config)
    filters = [{"Name": "vpc-id", "Values": [vpc]}, {"Name": "group-name", "Values": [name]}]
    found = ec2.describe_security_groups(Filters=filters)["SecurityGroups"]
    if found:
        group, rules = found[0]["GroupId"], found[0]["IpPermissions"]
    else:
        about = "raypipe: SSH from the user of the cluster, and all traffic between its nodes"
        group, rules = ec2.create_security_group(GroupName=name, Description=about, VpcId=vpc)["GroupId"], []
    itself = [{"GroupId": group}]
    if not any(pair["GroupId"] == group for rule in rules for pair in rule.get("UserIdGroupPairs", [])):
        _admit(ec2, group, {"IpProtocol": "-1", "UserIdGroupPairs": itself})
    wanted = f"{my_address()}/32"
    admitted = [block["CidrIp"] for rule in rules if rule.get("FromPort") == SSH for block in rule["IpRanges"]]
    if wanted not in admitted:
        _admit(ec2, group, _ssh_from(wanted))
    for other in set(admitted) - {wanted}:
        ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=[_ssh_from(other)])
    return str(group)


def _admit(ec2: Any, group: str, rule: Config) -> None:
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule])


def _ssh_from(block: str) -> Config:
    return {"IpProtocol": "tcp", "FromPort": SSH, "ToPort": SSH, "IpRanges": [{"CidrIp": block}]}


def _vpc(ec2: Any, node_config: Config) -> str:
    if subnets := node_config.get("SubnetIds"):
        return str(ec2.describe_subnets(SubnetIds=subnets[:1])["Subnets"][0]["VpcId"])
    vpcs = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    if not vpcs:
        raise ClickException("AWS: the region has no default VPC; set SubnetIds in the node_config of every node type")
    return str(vpcs[0]["VpcId"])


def my_address() -> str:
    """The caller's public IPv4 address. Raises ClickException if it cannot be found out."""
    try:
        with urllib.request.urlopen(MY_ADDRESS, timeout=10) as answer:
            return str(ipaddress.IPv4Address(answer.read(64).decode().strip()))
    except (OSError, ValueError) as error:
        raise ClickException(
            f"{MY_ADDRESS}: does not tell your address ({error}), from which SSH is to be admitted; "
            "set SecurityGroupIds in the node_config of every node type to a group of yours"
        ) from None


def instance_profiles(session: boto3.Session) -> tuple[str, str]:
    """ARNs of the instance profiles raypipe-head and raypipe-worker, created if missing.

    With both, a node reads any bucket that admits it, and writes to the buckets of its own account. The head also
    starts and ends EC2 nodes, and may hand on the worker's role to them.
    """
    account = session.client("sts").get_caller_identity()["Account"]
    buckets: list[Config] = [
        {"Effect": "Allow", "Action": ["s3:Get*", "s3:List*"], "Resource": "*"},
        {
            "Effect": "Allow",
            "Action": ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
            "Resource": "*",
            "Condition": {"StringEquals": {"aws:ResourceAccount": account}},
        },
    ]
    iam = session.client("iam")
    role, worker, worker_is_new = _profile(iam, "raypipe-worker", buckets)
    hand_on = {"Effect": "Allow", "Action": "iam:PassRole", "Resource": role}
    _, head, head_is_new = _profile(iam, "raypipe-head", [*buckets, hand_on])
    partition = role.split(":")[1]
    policy = f"arn:{partition}:iam::aws:policy/AmazonEC2FullAccess"
    iam.attach_role_policy(RoleName="raypipe-head", PolicyArn=policy)
    if worker_is_new or head_is_new:
        time.sleep(PROPAGATION)
    return head, worker


def _profile(iam: Any, name: str, statements: list[Config]) -> tuple[str, str, bool]:
    """ARN of the role, ARN of the instance profile with it, and whether the profile was incomplete before."""
    try:
        role = iam.get_role(RoleName=name)["Role"]["Arn"]
    except iam.exceptions.NoSuchEntityException:
        service = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
        role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=_policy([service]))["Role"]["Arn"]
    iam.put_role_policy(RoleName=name, PolicyName="raypipe", PolicyDocument=_policy(statements))
    try:
        profile = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
    except iam.exceptions.NoSuchEntityException:
        profile = iam.create_instance_profile(InstanceProfileName=name)["InstanceProfile"]
    incomplete = not profile["Roles"]
    if incomplete:
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    return str(role), str(profile["Arn"]), incomplete


def _policy(statements: list[Config]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": statements})
