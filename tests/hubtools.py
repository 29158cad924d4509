"""A small Hugging Face Hub of this machine: the part of its HTTP interface that pushing and loading a model uses."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_MARKEDTOKEN"
OWNER = "ann"


class Hub(ThreadingHTTPServer):
    """repositories: contents by path, of each repository. private: those that only the token reads."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.large: dict[str, bytes] = {}
        self.commits = 0
        self.requests: list[str] = []

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args):
        pass

    def answer(self, status, content=b"", **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_request(self):
        self.server.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        for (method, pattern), do in ROUTES.items():
            found = re.fullmatch(pattern, path)
            if method in (self.command, "GET" if self.command == "HEAD" else None) and found:
                return do(self, body, *found.groups())
        return self.answer(404, {"error": "no such route"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_request  # noqa: N815

    @property
    def may_write(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def create(self, body):
        asked = json.loads(body)
        name = f"{asked.get('organization') or OWNER}/{asked['name']}"
        if not self.may_write:
            return self.answer(401, {"error": "Invalid username or password."})
        if not name.startswith(f"{OWNER}/"):
            return self.answer(403, {"error": "You don't have the rights to create a model under this namespace"})
        if name in self.server.repositories:
            url = f"{self.server.address}/{name}"
            return self.answer(409, {"error": "You already created this model repo", "url": url})
        self.server.repositories[name] = {".gitattributes": b"*.safetensors filter=lfs\n"}
        if asked.get("private") or asked.get("visibility") == "private":
            self.server.private.add(name)
        return self.answer(200, {"url": f"{self.server.address}/{name}"})

    def check_card(self, body):
        assert json.loads(body)["repoType"] == "model"
        self.answer(200, {"errors": [], "warnings": []})

    def sort(self, body, name):
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self.answer(200, {"files": files})

    def batch(self, body, name):
        objects = [
            {**item, "actions": {"upload": {"href": f"{self.server.address}/large/{item['oid']}"}}}
            for item in json.loads(body)["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": objects})

    def store(self, body, digest):
        assert hashlib.sha256(body).hexdigest() == digest
        self.server.large[digest] = body
        self.answer(200)

    def commit(self, body, name):
        if not self.may_write:
            return self.answer(403, {"error": "no"})
        content = self.server.repositories[name]
        for line in body.splitlines():
            change = json.loads(line)
            value = change["value"]
            if change["key"] == "file":
                content[value["path"]] = base64.b64decode(value["content"])
            elif change["key"] == "lfsFile":
                content[value["path"]] = self.server.large[value["oid"]]
            elif change["key"] == "deletedFile":
                del content[value["path"]]
        self.server.commits += 1
        url = f"{self.server.address}/{name}/commit/{self.sha}"
        return self.answer(200, {"success": True, "commitOid": self.sha, "commitUrl": url})

    @property
    def sha(self):
        return f"{self.server.commits:040x}"

    def readable(self, name):
        if name in self.server.repositories and (name not in self.server.private or self.may_write):
            return True
        # As the real one does: who may not read a repository does not learn whether there is one.
        self.answer(401 if not self.may_write else 404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        return False

    def info(self, body, name, revision=None):
        if self.readable(name):
            self.answer(200, {"_id": "1", "id": name, "modelId": name, "sha": self.sha, "siblings": [], "tags": []})

    def tree(self, body, name, revision):
        if not self.readable(name):
            return
        files = [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in self.server.repositories[name].items()
        ]
        self.answer(200, files)

    def resolve(self, body, name, revision, path):
        if self.readable(name):
            content = self.server.repositories[name][path]
            self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=self.sha)


NAME = r"([^/]+/[^/]+)"
ROUTES = {
    ("POST", "/api/repos/create"): _Handler.create,
    ("POST", "/api/validate-yaml"): _Handler.check_card,
    ("POST", f"/api/models/{NAME}/preupload/main"): _Handler.sort,
    ("POST", f"/{NAME}[.]git/info/lfs/objects/batch"): _Handler.batch,
    ("PUT", "/large/(.*)"): _Handler.store,
    ("POST", f"/api/models/{NAME}/commit/main"): _Handler.commit,
    ("GET", f"/api/models/{NAME}"): _Handler.info,
    ("GET", f"/api/models/{NAME}/revision/(.*)"): _Handler.info,
    ("GET", f"/api/models/{NAME}/tree/(.*)"): _Handler.tree,
    ("GET", f"/{NAME}/resolve/([^/]*)/(.*)"): _Handler.resolve,
}
