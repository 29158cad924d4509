"""A small EC2 on one machine: moto answers the API, and each instance that it calls running is a host of its own.

A host has its own network, processes, mounts, /tmp and /home, and sshd listens on its private and public address. Run
as the first process of new network, mount and process namespaces; when it ends, all hosts end with it, and so does
every command that was started in these namespaces. They have no way out: nothing leaves the emulation.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import boto3
from botocore.exceptions import BotoCoreError

from raypipe.distributed.aws import MY_ADDRESS

HERE = Path(__file__).parent
ADDRESS = "172.31.255.1"
"""Of the API: in the network of moto's default VPC, outside its subnets."""
PUBLIC = "54.214.0.0/16"
"""Where moto's public addresses lie."""
URL = f"http://{ADDRESS}:5000"


def run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True)


def make_network() -> None:
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "br0", "type", "bridge")
    run("ip", "address", "add", f"{ADDRESS}/16", "dev", "br0")
    run("ip", "link", "set", "br0", "up")
    run("ip", "route", "add", PUBLIC, "dev", "br0")


def start_host(instance: dict[str, Any], key: str, folder: Path, image: Path) -> "subprocess.Popen[bytes]":
    """Start what stands for an instance. The console's output goes to `logs/<instance>.log`."""
    name, private, public = instance["InstanceId"], instance["PrivateIpAddress"], instance.get("PublicIpAddress")
    disk = folder / "disks" / name
    disk.mkdir()
    (disk / "authorized_keys").write_text(key)
    namespaces = ["--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
    command = ["bash", HERE / "host.sh", disk, folder / "exports", image, private, URL]
    with (folder / "logs" / f"{name}.log").open("wb") as log:
        host = subprocess.Popen(
            ["unshare", *namespaces, *map(str, command)], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
    outside = os.readlink("/proc/self/ns/net")
    while os.readlink(f"/proc/{host.pid}/ns/net") == outside:
        time.sleep(0.01)
    veth = f"v{name[-10:]}"
    run("ip", "link", "add", veth, "master", "br0", "type", "veth", "peer", "name", "eth0", "netns", host.pid)
    run("ip", "link", "set", veth, "up")
    inside = ["nsenter", "--target", host.pid, "--net", "ip"]
    run(*inside, "link", "set", "lo", "up")
    run(*inside, "address", "add", f"{private}/16", "dev", "eth0")
    run(*inside, "link", "set", "eth0", "up")
    if public:
        run(*inside, "address", "add", f"{public}/32", "dev", "eth0")
    return host


def instances(ec2: Any) -> dict[str, dict[str, Any]]:
    """The instances that are up, by id."""
    found = [one for reservation in ec2.describe_instances()["Reservations"] for one in reservation["Instances"]]
    return {one["InstanceId"]: one for one in found if one["State"]["Name"] in ("pending", "running")}


def main(folder: Path, image: Path) -> None:
    """folder: gets logs/ and the file `ready`; the hosts' disks are in memory."""
    make_network()
    for name in ("logs", "disks", "exports"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    run("mount", "-t", "tmpfs", "disks", folder / "disks")
    (folder / "names").write_text(f"127.0.0.1 localhost\n{ADDRESS} {urlparse(MY_ADDRESS).hostname}\n")
    run("mount", "--bind", folder / "names", "/etc/hosts")
    with (folder / "logs" / "aws.log").open("wb") as log:
        subprocess.Popen([sys.executable, HERE / "aws.py", ADDRESS, folder], stdout=log, stderr=subprocess.STDOUT)
    ec2 = boto3.client(
        "ec2", region_name="us-west-2", endpoint_url=URL, aws_access_key_id="test", aws_secret_access_key="test"
    )
    hosts: dict[str, subprocess.Popen[bytes]] = {}
    while True:
        try:
            up = instances(ec2)
        except BotoCoreError:
            time.sleep(0.2)  # moto is starting
            continue
        (folder / "ready").touch()
        for name in up.keys() - hosts.keys():
            pair = ec2.describe_key_pairs(KeyNames=[up[name]["KeyName"]], IncludePublicKey=True)["KeyPairs"][0]
            hosts[name] = start_host(up[name], pair["PublicKey"], folder, image)
        for name in hosts.keys() - up.keys():
            host = hosts.pop(name)
            host.kill()  # by --kill-child, the host's first process too, and so all of them
            host.wait()
        time.sleep(0.5)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
