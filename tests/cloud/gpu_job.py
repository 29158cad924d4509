"""The job that the test submits: GPU tasks, which no node can take at first. Prints one line of JSON."""

import json
import os
import socket
import sys
import time
from pathlib import Path

import ray
from pyarrow import fs

import raypipe

STORAGE = Path(os.environ["RAYPIPE_STORAGE"])


@ray.remote(num_gpus=1, num_cpus=1, max_retries=5)
def work(number: int, seconds: float) -> dict:
    """Takes `seconds`, and leaves a file in the shared folder when it begins."""
    host = socket.gethostname()
    (STORAGE / f"begun-{number}-{host}").touch()
    time.sleep(seconds)
    return {
        "host": host,
        "devices": os.environ["CUDA_VISIBLE_DEVICES"],
        "storage": os.environ["RAYPIPE_STORAGE"],
        "token": os.environ["RAY_AUTH_MODE"],
        "code": raypipe.__file__,
    }


def main(count: int, seconds: float, bucket: str) -> None:
    ray.init(log_to_driver=False)
    done = ray.get([work.remote(number, seconds) for number in range(count)])
    system, path = fs.FileSystem.from_uri(bucket)
    with system.open_output_stream(f"{path}/done.json") as stream:
        stream.write(json.dumps(done).encode())
    answer = {"driver": socket.gethostname(), "tasks": done, "files": sorted(os.listdir(STORAGE))}
    sys.stdout.write(f"ANSWER {json.dumps(answer)}\n")


main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
