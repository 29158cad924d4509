"""An S3 server of this machine, and a proxy in front of it that injects faults."""

import http.client
import random
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import boto3
from moto.server import ThreadedMotoServer

from tests.raytools import free_ports

FAULTS = ("500", "503", "cut", "slow", "truncate")
HOP = ("transfer-encoding", "content-length", "expect", "connection")
"""Headers of one connection, which are not passed on."""
KEY, SECRET = "MARKEDKEY", "MARKEDSECRET"


@contextmanager
def s3_server(bucket: str) -> Iterator[str]:
    """The address of a server on loopback, which has an empty bucket."""
    (port,) = free_ports(1)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    try:
        address = f"http://127.0.0.1:{port}"
        client(address).create_bucket(Bucket=bucket)
        yield address
    finally:
        server.stop()


def client(address: str):
    names = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=address, **names)


def variables(address: str) -> dict[str, str]:
    """The environment of a process that uses the server."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


class Proxy:
    """A proxy for a server. left: number of faults still to come, at random requests with probability `share`.

    Attributes: requests: (method, path) of all so far. injected: names of the faults so far. refuses: whether every
    request is answered by 507 Insufficient Storage, as by a full disk.
    """

    def __init__(self, server: str, seed: int = 0, share: float = 0.2) -> None:
        self._server = urlsplit(server).netloc
        self._random, self._share, self._guard = random.Random(seed), share, threading.Lock()
        self.left, self.refuses = 0, False
        self.requests: list[tuple[str, str]] = []
        self.injected: list[str] = []

    def fault(self, request: tuple[str, str]) -> str | None:
        with self._guard:
            self.requests.append(request)
            if self.refuses:
                return "507"
            if self.left == 0 or self._random.random() > self._share:
                return None
            self.left -= 1
            self.injected.append(self._random.choice(FAULTS))
            return self.injected[-1]

    def puts(self) -> list[str]:
        """The paths of the contents that were written."""
        return [path for method, path in self.requests if method == "PUT" and "/.raypipe/files/" in path.rstrip("/")]

    @contextmanager
    def running(self) -> Iterator[str]:
        """The address of the proxy."""
        proxy, name = self, self._server

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def forward(self) -> None:
                fault = proxy.fault((self.command, self.path))
                chunked = self.headers.get("Transfer-Encoding") == "chunked"
                pieces = self.chunks() if chunked else [self.rfile.read(int(self.headers.get("Content-Length") or 0))]
                if fault == "cut":
                    next(iter(pieces), None)
                    self.close_connection = True
                    return
                body = b"".join(pieces)
                if fault == "slow":
                    time.sleep(0.3)
                if fault in ("500", "503", "507"):
                    self.send_response(int(fault))
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                connection = http.client.HTTPConnection(name, timeout=60)
                headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP}
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
                self.send_response(answer.status)
                for key, value in answer.getheaders():
                    if key.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                        self.send_header(key, value)
                shown = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(content))
                self.send_header("Content-Length", shown)
                self.end_headers()
                if fault == "truncate":
                    content, self.close_connection = content[: len(content) // 2], True
                self.wfile.write(content)
                connection.close()

            def chunks(self) -> Iterator[bytes]:
                while size := int(self.rfile.readline(), 16):
                    yield self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward  # noqa: N815

        class Server(ThreadingHTTPServer):
            def handle_error(self, *args: object) -> None:
                pass  # a client that was killed

        server = Server(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def authentication(server: str, after: str) -> None:
    """Check keys, of which the server knows none, after so many requests; never for `inf`."""
    headers = {"Content-Type": "text/plain"}
    urllib.request.urlopen(urllib.request.Request(f"{server}/moto-api/reset-auth", after.encode(), headers))


def contents(server: str) -> list[bytes]:
    """The contents of all objects in the bucket `mine`."""
    s3 = client(server)
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="mine")
    keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
    return [s3.get_object(Bucket="mine", Key=key)["Body"].read() for key in keys]
