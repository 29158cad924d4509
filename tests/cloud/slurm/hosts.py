"""The command of a Slurm job: waits for both nodes, runs a task on each, and prints one line of JSON."""

import json
import os
import socket
import sys
import time

import ray

ray.init(log_to_driver=False)
while len([node for node in ray.nodes() if node["Alive"]]) < 2:
    time.sleep(0.2)


@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
def host() -> str:
    time.sleep(1)
    return socket.gethostname()


hosts = sorted(set(ray.get([host.remote() for _ in range(4)])))
answer = {"job": os.environ["SLURM_JOB_ID"], "driver": socket.gethostname(), "hosts": hosts, "argv": sys.argv[1:]}
answer["nodes"] = len(ray.nodes())
sys.stdout.write(f"ANSWER {json.dumps(answer)}\n")
sys.exit(3)
