"""A small model hub on loopback, as huggingface_hub speaks to one; it misbehaves on command.

    with Hub() as hub:
        hub.faults["/commit/"] = [Fault.ERROR_500]      # the next request whose path holds these words
        ... HF_ENDPOINT=hub.url HF_TOKEN=hub.token HF_HUB_DISABLE_XET=1 ...
        hub.repos["ada/model"].files

What a file is (a blob, or large and stored by its digest) is the hub's to say. Large files that have arrived once are
not asked for again. Its own answer to a card with wrong metadata is that of the real one: 400 with the errors.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

LARGE = 10_000  # bytes from which a file is stored by its digest
_BASE = re.compile(r"[\w.-]+(/[\w.-]+)?")


class Fault(StrEnum):
    ERROR_401 = "401"
    ERROR_403 = "403"
    ERROR_500 = "500"
    DROP = "drop"  # half of the body is read, and the connection reset


@dataclass
class Repo:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)  # their messages


class Hub:
    """Serves from threads of this process. licences: of models that it knows without having them."""

    def __init__(self) -> None:
        self.token = "hf_right"
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.received: dict[str, int] = defaultdict(int)  # how often each large file was sent whole
        self.faults: dict[str, list[Fault]] = {}
        self.licences: dict[str, str] = {}
        self.asked: list[str] = []
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": self.token, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    def do_HEAD(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        length = int(self.headers.get("content-length") or 0)
        with self.hub.lock:
            self.hub.asked.append(f"{self.command} {path}")
            fault = next(
                (
                    self.hub.faults[words].pop(0)
                    for words in self.hub.faults
                    if words in path and self.hub.faults[words]
                ),
                None,
            )
        if fault is Fault.DROP:
            self.rfile.read(length // 2)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        body = self.rfile.read(length)
        if fault is not None:
            self._send(int(fault.value), {"error": f"told to: {fault.value}"})
            return
        if not path.startswith("/lfs/") and self.headers.get("authorization") != f"Bearer {self.hub.token}":
            self._send(401, {"error": "Invalid username or password."})
            return
        with self.hub.lock:
            self._answer(path, body)

    # ---- what it can do ----

    def _answer(self, path: str, body: bytes) -> None:
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            errors = metadata_errors(json.loads(body)["content"])
            self._send(400 if errors else 200, {"errors": [{"message": each} for each in errors], "warnings": []})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            self._preupload(match[1], json.loads(body))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
            files = self.hub.repos[match[1]].files
            self._send(200, [{"type": "file", "path": n, "size": len(b), "oid": _blob(b)} for n, b in files.items()])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._batch(json.loads(body))
        elif match := re.fullmatch(r"/lfs/(\w+)", path):
            self._store(match[1], body)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self._commit(match[1], body)
        elif match := re.fullmatch(r"/api/models/([^/]+(?:/[^/]+)?)(?:/revision/[^/]+)?", path):
            self._describe(match[1])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            self._resolve(match[1], match[2])
        else:
            self._send(404, {"error": f"there is no {path}"}, {"X-Error-Code": "EntryNotFound"})

    def _create(self, wanted: Mapping[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.hub.repos:
            self._send(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
            return
        private = wanted.get("private") or wanted.get("visibility") == "private"
        self.hub.repos[name] = Repo(bool(private))
        self._send(200, {"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def _describe(self, name: str) -> None:
        if name in self.hub.licences:
            self._send(
                200, {"id": name, "private": False, "cardData": {"license": self.hub.licences[name]}, "siblings": []}
            )
        elif name in self.hub.repos:
            repo = self.hub.repos[name]
            siblings = [{"rfilename": file} for file in repo.files]
            self._send(200, {"id": name, "private": repo.private, "sha": "0" * 40, "siblings": siblings})
        else:
            self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})

    def _preupload(self, name: str, wanted: Mapping[str, Any]) -> None:
        have = self.hub.repos[name].files
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] >= LARGE else "regular",
                "shouldIgnore": False,
                "oid": None if file["path"] not in have else _blob(have[file["path"]]),
            }
            for file in wanted["files"]
        ]
        self._send(200, {"files": files})

    def _batch(self, wanted: Mapping[str, Any]) -> None:
        objects = []
        for each in wanted["objects"]:
            upload = {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}", "header": {}}}}
            objects.append({**each, **({} if each["oid"] in self.hub.large else upload)})
        self._send(200, {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"})

    def _store(self, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            self._send(400, {"error": "another file"})
            return
        self.hub.large[oid] = body
        self.hub.received[oid] += 1
        self._send(200, {})

    def _commit(self, name: str, body: bytes) -> None:
        repo = self.hub.repos[name]
        files = dict(repo.files)
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                repo.commits.append(value["summary"])
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        repo.files = files
        oid = hashlib.sha1(repr(sorted(files)).encode()).hexdigest()
        self._send(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid, "success": True})

    def _resolve(self, name: str, file: str) -> None:
        repo = self.hub.repos.get(name)
        content = None if repo is None else repo.files.get(file)
        if content is None:
            self._send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "0" * 40})
            return
        self.send_response(200)
        for key, value in (("ETag", f'"{_blob(content)}"'), ("X-Repo-Commit", "0" * 40), ("Accept-Ranges", "bytes")):
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _send(self, status: int, value: object, headers: Mapping[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        for key, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def metadata_errors(card: str) -> list[str]:
    """What the hub has against a card's metadata, of what its documentation names."""
    match = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    if match is None:
        return ["no metadata"]
    data = yaml.safe_load(match[1])
    errors = []
    if "base_model" in data and not _BASE.fullmatch(str(data["base_model"])):
        errors.append('"base_model" must be the name of a model')
    if data.get("base_model_relation") not in (None, "adapter", "finetune", "merge", "quantized"):
        errors.append('"base_model_relation" must be one of adapter, finetune, merge, quantized')
    errors += [f'"datasets": {name} is no name' for name in data.get("datasets", []) if not _BASE.fullmatch(name)]
    errors += [f'"{key}" is empty' for key, value in data.items() if value in (None, "", [])]
    for model in data.get("model-index", []):
        for result in model["results"]:
            for need in ("task", "dataset", "metrics"):
                if not result.get(need):
                    errors.append(f'"model-index": a result has no {need}')
            errors += ['"model-index": a metric has no value' for m in result["metrics"] if "value" not in m]
    return errors
