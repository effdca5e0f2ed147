"""A Hub on loopback: what the real `huggingface_hub` client asks when it publishes and loads a model.

Repositories are kept in memory as commits of whole trees. Large files travel through the LFS protocol, as on the Hub.
Point a client at it with HF_ENDPOINT before `huggingface_hub` is imported, and with HF_HUB_DISABLE_XET=1.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN, USER = "hf_fixture", "tester"
NAME = r"(?P<repo>[\w.-]+/[\w.-]+)"
REVISION = r"(?P<revision>[^/]+)"
LARGE = (".safetensors", ".bin", ".pt", ".parquet")


@dataclass
class Repository:
    """Branches point to commits; a commit is a whole tree."""

    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    trees: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, tree: dict[str, bytes], message: str) -> str:
        self.messages.append(message)
        oid = hashlib.sha1(f"{len(self.messages)} {message}".encode()).hexdigest()
        self.trees[oid] = tree
        self.branches[branch] = oid
        return oid


class HubError(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message}


class HubServer:
    """`with HubServer() as hub:` serves at `hub.endpoint`.

    `unknown` lists requests that no route answers; a repository whose name is in `full` takes no large file.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.unknown: list[str] = []
        self.full: set[str] = set()
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        # Under another host name, as on the Hub: clients follow redirects within one host while they ask for headers.
        self.store = f"http://localhost:{self.server.server_port}/lfs"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def run(self, script: Path, *arguments: Path, home: Path) -> None:
        """Run a client of this server in a process of its own, to its end."""
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]),
        }
        command = [sys.executable, str(script), *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
        assert done.returncode == 0, done.stderr

    def publish(self, name: str, folder: Path) -> None:
        """Put a folder's files into a repository that anybody may read."""
        self.repositories[name] = Repository()
        self.repositories[name].commit("main", {file.name: file.read_bytes() for file in folder.iterdir()}, "published")

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        """The tree at the head of a branch."""
        repository = self.repositories[name]
        return repository.trees[repository.branches[branch]]

    def found(self, name: str, revision: str = "main") -> tuple[Repository, str]:
        """A repository and the commit that a branch or commit name means there."""
        if name not in self.repositories:
            raise HubError(404, "RepoNotFound", "Repository not found")
        repository = self.repositories[name]
        oid = repository.branches.get(unquote(revision), revision)
        if oid not in repository.trees:
            raise HubError(404, "RevisionNotFound", "Invalid rev id")
        return repository, oid

    # ---- what the routes answer: a JSON value, or (status, headers, body) ------------------------------------------

    def whoami(self, body: bytes) -> Any:
        return {"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": {"type": "access_token"}}

    def create(self, body: bytes) -> Any:
        wanted = json.loads(body)
        owner = wanted.get("organization") or USER
        name = f"{owner}/{wanted['name']}"
        prefix = "datasets/" if wanted.get("type") == "dataset" else ""
        address = {"url": f"{self.endpoint}/{prefix}{name}", "name": name, "id": name}
        if owner != USER:
            raise HubError(403, "Forbidden", f"You don't have the rights to create a model under {owner}")
        if name in self.repositories:
            return 409, {}, json.dumps({"error": "You already created this model repo", **address}).encode()
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.repositories[name] = Repository(private=private)
        self.repositories[name].commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return address

    def validate(self, body: bytes) -> Any:
        block = re.match(r"---\n(.*?)\n---", json.loads(body)["content"], re.DOTALL)
        card = yaml.safe_load(block[1]) if block else {}
        errors = []
        if card.get("base_model_relation") not in (None, "finetune", "adapter", "quantized", "merge"):
            errors.append({"message": "base_model_relation must be one of adapter, merge, quantized, finetune"})
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", card.get("base_model") or "none"):
            errors.append({"message": "base_model with value is not valid. Use a model id from https://hf.co/models."})
        answer = json.dumps({"errors": errors, "warnings": []}).encode()
        return (400 if errors else 200), {}, answer

    def branch(self, body: bytes, repo: str, revision: str) -> Any:
        repository, oid = self.found(repo)
        if unquote(revision) in repository.branches:
            return 409, {}, b'{"error": "Reference already exists"}'
        repository.branches[unquote(revision)] = oid
        return {}

    def preupload(self, body: bytes, repo: str, revision: str) -> Any:
        self.found(repo, revision)
        modes = [
            (file["path"], "lfs" if file["path"].endswith(LARGE) else "regular") for file in json.loads(body)["files"]
        ]
        return {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes]}

    def batch(self, body: bytes, repo: str) -> Any:
        self.found(repo)
        answers: list[dict[str, Any]] = []
        if repo in self.full:
            error = {"code": 402, "message": "Your storage is full"}
            return {"objects": [{**wanted, "error": error} for wanted in json.loads(body)["objects"]]}
        for wanted in json.loads(body)["objects"]:
            upload = {"href": f"{self.store}/{wanted['oid']}"}
            actions = {"upload": upload, "verify": {"href": f"{self.endpoint}/lfs-verify"}}
            answers.append({**wanted, **({} if wanted["oid"] in self.objects else {"actions": actions})})
        return {"transfer": "basic", "objects": answers}

    def put_object(self, body: bytes, oid: str) -> Any:
        if hashlib.sha256(body).hexdigest() != oid:
            raise HubError(400, "BadRequest", "content does not match its oid")
        self.objects[oid] = body
        return {}

    def get_object(self, body: bytes, oid: str) -> Any:
        return 200, {"ETag": f'"{oid}"'}, self.objects[oid]

    def verify(self, body: bytes) -> Any:
        wanted = json.loads(body)
        if len(self.objects.get(wanted["oid"], b"")) != wanted["size"]:
            raise HubError(404, "ObjectNotFound", "object is not there")
        return {}

    def commit(self, body: bytes, repo: str, revision: str) -> Any:
        repository, parent = self.found(repo, revision)
        tree, message = dict(repository.trees[parent]), ""
        for line in body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                tree[value["path"]] = self.objects[value["oid"]]
            elif key == "deletedFile":
                del tree[value["path"]]
            else:
                raise HubError(400, "BadRequest", f"no operation {key}")
        oid = repository.commit(unquote(revision), tree, message)
        return {
            "success": True,
            "commitOid": oid,
            "commitUrl": f"{self.endpoint}/{repo}/commit/{oid}",
            "hookOutput": "",
        }

    def info(self, body: bytes, repo: str, revision: str = "main") -> Any:
        repository, oid = self.found(repo, revision)
        siblings = [{"rfilename": path} for path in repository.trees[oid]]
        readme = repository.trees[oid].get("README.md", b"").decode()
        card = yaml.safe_load(readme.split("---")[1]) if readme.startswith("---") else {}
        base = {"_id": "0", "id": repo, "modelId": repo, "sha": oid, "private": repository.private}
        return {**base, "siblings": siblings, "cardData": card, "tags": []}

    def tree(self, body: bytes, repo: str, revision: str, folder: str | None = None) -> Any:
        repository, oid = self.found(repo, revision)
        inside = {path: data for path, data in repository.trees[oid].items() if path.startswith(folder or "")}
        if not inside:
            raise HubError(404, "EntryNotFound", "Entry not found")
        return [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in inside.items()
        ]

    def resolve(self, body: bytes, repo: str, revision: str, path: str) -> Any:
        repository, oid = self.found(repo, revision)
        data = repository.trees[oid].get(unquote(path))
        if data is None:
            raise HubError(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": oid, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        if not path.endswith(LARGE):
            return 200, headers, data
        digest = hashlib.sha256(data).hexdigest()
        self.objects[digest] = data
        linked = {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(data))}
        return 302, {**headers, **linked, "Location": f"{self.store}/{digest}"}, b""


ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", r"/api/whoami-v2", HubServer.whoami),
    ("POST", r"/api/repos/create", HubServer.create),
    ("POST", r"/api/validate-yaml", HubServer.validate),
    ("POST", rf"/api/(?:models|datasets)/{NAME}/branch/{REVISION}", HubServer.branch),
    ("POST", rf"/api/(?:models|datasets)/{NAME}/preupload/{REVISION}", HubServer.preupload),
    ("POST", rf"/api/(?:models|datasets)/{NAME}/commit/{REVISION}", HubServer.commit),
    ("GET", rf"/api/(?:models|datasets)/{NAME}/tree/{REVISION}(/(?P<folder>.+))?", HubServer.tree),
    ("GET", rf"/api/(?:models|datasets)/{NAME}(/revision/{REVISION})?", HubServer.info),
    ("POST", rf"/(?:datasets/)?{NAME}\.git/info/lfs/objects/batch", HubServer.batch),
    ("PUT", r"/lfs/(?P<oid>\w+)", HubServer.put_object),
    ("GET", r"/lfs/(?P<oid>\w+)", HubServer.get_object),
    ("POST", r"/lfs-verify", HubServer.verify),
    ("GET", rf"/(?:datasets/)?{NAME}/resolve/{REVISION}/(?P<path>.+)", HubServer.resolve),
]


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        method = "GET" if self.command == "HEAD" else self.command
        try:
            self._authorize(method, path)
            for wanted, pattern, respond in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and wanted == method:
                    values = {key: value for key, value in match.groupdict().items() if value is not None}
                    with self.hub.lock:
                        self._send(respond(self.hub, body, **values))
                    return
            self.hub.unknown.append(f"{self.command} {path}")
            raise HubError(404, "EntryNotFound", "no such route")
        except HubError as error:
            self._send((error.status, error.headers, json.dumps({"error": str(error)}).encode()))

    def _authorize(self, method: str, path: str) -> None:
        if path.startswith("/lfs/"):  # addresses of the object store carry their own signature on the Hub
            return
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token != TOKEN:
            raise HubError(401, "", "Invalid credentials in Authorization header")
        private = any(entry.private and f"/{name}/" in f"{path}/" for name, entry in self.hub.repositories.items())
        if not token and (method != "GET" or private or path == "/api/whoami-v2"):
            raise HubError(401, "", "Invalid username or password.")

    def _send(self, answer: Any) -> None:
        status, headers, data = answer if isinstance(answer, tuple) else (200, {}, json.dumps(answer).encode())
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_POST = do_PUT = _answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Quiet."""
