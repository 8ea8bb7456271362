"""A Hub on loopback: what `huggingface_hub` asks of the real one, with the checks that the real one makes.

It keeps every commit, verifies the hash and size of every large file, refuses a commit whose parent is not the head
(412), a file whose large object never arrived, a tag that exists (409), a token that may not write (403). Every request
is recorded. It stops by itself when its context ends, and its threads are daemons, so that a failed test leaves nothing
running.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

WRITER = "hf_writerwriterwriterwriter"
READER = "hf_readerreaderreaderreader"
LARGE = 64 * 1024
READ_ROUTES = ("paths-info",)


def git_blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Stored:
    """One file of one commit."""

    data: bytes
    large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    def describe(self, path: str) -> dict[str, object]:
        entry: dict[str, object] = {"type": "file", "path": path, "size": len(self.data), "oid": git_blob_id(self.data)}
        if self.large:
            spec = "https://git-lfs.github.com/spec/v1"
            pointer = f"version {spec}\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()
            entry["oid"] = git_blob_id(pointer)
            entry["lfs"] = {"oid": self.sha256, "size": len(self.data), "pointerSize": len(pointer)}
            entry["xetHash"] = hashlib.sha256(b"xet" + self.data).hexdigest()
        return entry


@dataclass
class Commit:
    """One state of a repository."""

    oid: str
    parent: str | None
    files: dict[str, Stored]
    title: str


@dataclass
class Repository:
    """A model repository with one branch."""

    private: bool = False
    gated: bool = False
    commits: list[Commit] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    @property
    def files(self) -> dict[str, bytes]:
        return {path: stored.data for path, stored in self.head.files.items()}

    def commit(self, files: dict[str, Stored], title: str) -> Commit:
        parent = self.commits[-1].oid if self.commits else None
        oid = hashlib.sha1(repr((parent, title, sorted((p, s.sha256) for p, s in files.items()))).encode()).hexdigest()
        made = Commit(oid, parent, dict(files), title)
        self.commits.append(made)
        self.objects.update({stored.sha256: stored.data for stored in files.values() if stored.large})
        return made

    def at(self, revision: str) -> Commit | None:
        oid = self.head.oid if revision == "main" else self.tags.get(revision, revision)
        return next((commit for commit in self.commits if commit.oid == oid), None)


@dataclass
class Failure:
    """An answer that the next matching requests get instead of the true one."""

    method: str
    pattern: str
    status: int | None
    times: int
    headers: dict[str, str]
    body: bytes


class FakeHub:
    """The state of the fake; `url` is its address while it runs."""

    def __init__(self) -> None:
        self.url = ""
        self.tokens = {WRITER: "alice", READER: "alice"}
        self.writers = {WRITER}
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.failures: list[Failure] = []
        self.uploads: list[str] = []
        self.copies: list[str] = []
        self.can_copy = True
        self.before_commit: Callable[[], None] | None = None
        self.lock = threading.RLock()

    def add_model(
        self, name: str, files: dict[str, bytes], *, private: bool = False, gated: bool = False, large: int = LARGE
    ) -> Repository:
        repository = self.repositories.setdefault(name, Repository(private=private, gated=gated))
        repository.commit({path: Stored(data, is_large(path, data, large)) for path, data in files.items()}, "first")
        return repository

    def fail(
        self,
        method: str,
        pattern: str,
        status: int | None,
        *,
        times: int = 1,
        headers: dict[str, str] | None = None,
        body: bytes = b"{}",
    ) -> None:
        """Make the next `times` matching requests fail; a status of None drops the connection."""
        self.failures.append(Failure(method, pattern, status, times, headers or {}, body))

    @property
    def writes(self) -> list[tuple[str, str]]:
        """All requests that could change something."""
        return [
            (method, path)
            for method, path in self.requests
            if method not in ("GET", "HEAD") and not any(route in path for route in READ_ROUTES)
        ]


def is_large(path: str, data: bytes, limit: int = LARGE) -> bool:
    return path.endswith(".safetensors") or len(data) >= limit


class RefusedError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, code: str | None = None, message: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class Handler(BaseHTTPRequestHandler):
    """One connection to the fake."""

    protocol_version = "HTTP/1.1"
    timeout = 10
    # Head and body in one packet: two small ones would wait for each other's acknowledgement.
    wbufsize = -1
    disable_nagle_algorithm = True
    hub: FakeHub

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""

    def do_GET(self) -> None:
        self.dispatch()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def dispatch(self) -> None:
        split = urlsplit(self.path)
        path = unquote(split.path)
        chunked = self.headers.get("Transfer-Encoding", "").lower() == "chunked"
        body = self.read_chunks() if chunked else self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.hub.lock:
            self.hub.requests.append((self.command, path))
            failure = next(
                (
                    f
                    for f in self.hub.failures
                    if f.times > 0 and f.method == self.command and re.search(f.pattern, path)
                ),
                None,
            )
            if failure is not None:
                failure.times -= 1
                if failure.status is None:
                    self.close_connection = True
                    self.connection.close()
                    return
                self.answer(failure.status, failure.body, failure.headers)
                return
            try:
                self.route(path, split.path, parse_qs(split.query), body)
            except RefusedError as refused:
                headers = {}
                if refused.code:
                    headers["X-Error-Code"] = refused.code
                if refused.message:
                    headers["X-Error-Message"] = refused.message
                self.answer(refused.status, json.dumps({"error": refused.message or ""}).encode(), headers)

    def read_chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if not headers or "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: object, headers: dict[str, str] | None = None) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    # Who is asking, and for what.

    @property
    def token(self) -> str | None:
        scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
        if scheme != "Bearer":
            return None
        if token not in self.hub.tokens:
            raise RefusedError(401, None, "Invalid credentials in Authorization header")
        return token

    def must_write(self) -> None:
        if self.token is None:
            raise RefusedError(401, None, "Invalid username or password.")
        if self.token not in self.hub.writers:
            raise RefusedError(403, None, f"You need write access, and {self.token} has none")

    def repository(self, name: str) -> Repository:
        found = self.hub.repositories.get(name)
        if found is None or (found.private and self.token is None):
            raise RefusedError(401 if self.token is None else 404, "RepoNotFound", "Repository not found")
        return found

    def commit_at(self, name: str, revision: str) -> Commit:
        commit = self.repository(name).at(revision)
        if commit is None:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # The routes.

    def route(self, path: str, raw: str, query: dict[str, list[str]], body: bytes) -> None:
        method = self.command
        # A token that nobody has is refused everywhere, also where none is needed.
        token = self.token
        if path == "/api/whoami-v2":
            if token is None:
                raise RefusedError(401, None, "Invalid credentials in Authorization header")
            return self.json({"type": "user", "name": self.hub.tokens[token], "orgs": []})
        if path == "/api/validate-yaml" and method == "POST":
            return self.validate_yaml(json.loads(body)["content"])
        if path == "/api/repos/create" and method == "POST":
            return self.create(json.loads(body))
        if match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return self.lfs_batch(match[1], json.loads(body))
        if match := re.fullmatch(r"/lfs/(.+)/([0-9a-f]{64})", path):
            return self.lfs_object(match[1], match[2], body)
        if match := re.fullmatch(
            r"/api/models/(.+?)/(commit|preupload|tag|branch|paths-info|tree|revision)/([^/]+)(?:/(.*))?", raw
        ):
            name, action, revision = unquote(match[1]), match[2], unquote(match[3])
            return self.repository_route(name, action, revision, query, body)
        if match := re.fullmatch(r"/api/models/(.+)/refs", path):
            return self.refs(match[1])
        if match := re.fullmatch(r"/api/models/(.+)/lfs-files/duplicate", path):
            return self.duplicate(match[1], json.loads(body))
        if match := re.fullmatch(r"/api/models/(.+)", path):
            return self.info(match[1], "main")
        if match := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", raw):
            return self.resolve(unquote(match[1]), unquote(match[2]), unquote(match[3]))
        raise RefusedError(404, None, f"no route {path}")

    def repository_route(self, name: str, action: str, revision: str, query: dict[str, list[str]], body: bytes) -> None:
        if action == "revision":
            return self.info(name, revision)
        if action == "tree":
            commit = self.commit_at(name, revision)
            return self.json([stored.describe(path) for path, stored in sorted(commit.files.items())])
        if action == "paths-info":
            commit = self.commit_at(name, revision)
            wanted = parse_qs(body.decode())["paths"]
            return self.json([commit.files[path].describe(path) for path in wanted if path in commit.files])
        self.must_write()
        if action == "preupload":
            return self.preupload(name, revision, json.loads(body))
        if action == "tag":
            return self.tag(name, revision, json.loads(body))
        if action == "commit":
            return self.commit(name, [json.loads(line) for line in body.splitlines()])
        raise RefusedError(404, None, f"no action {action}")

    def info(self, name: str, revision: str) -> None:
        repository, commit = self.repository(name), self.commit_at(name, revision)
        siblings = []
        for path, stored in sorted(commit.files.items()):
            entry = stored.describe(path)
            sibling = {"rfilename": path, "size": entry["size"], "blobId": entry["oid"]}
            if stored.large:
                lfs = entry["lfs"]
                assert isinstance(lfs, dict)
                sibling["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
            siblings.append(sibling)
        self.json(
            {
                "id": name,
                "sha": commit.oid,
                "private": repository.private,
                "gated": "manual" if repository.gated else False,
                "siblings": siblings,
                "tags": [],
            }
        )

    def refs(self, name: str) -> None:
        repository = self.repository(name)
        tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": oid} for tag, oid in repository.tags.items()]
        main = (
            [{"name": "main", "ref": "refs/heads/main", "targetCommit": repository.head.oid}]
            if repository.commits
            else []
        )
        self.json({"branches": main, "converts": [], "tags": tags})

    def resolve(self, name: str, revision: str, path: str) -> None:
        repository, commit = self.repository(name), self.commit_at(name, revision)
        if repository.gated:
            raise RefusedError(403 if self.token else 401, "GatedRepo", f"Access to model {name} is restricted")
        stored = commit.files.get(path)
        if stored is None:
            raise RefusedError(404, "EntryNotFound", f"{path} does not exist")
        etag = stored.sha256 if stored.large else git_blob_id(stored.data)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit.oid, "Content-Length": str(len(stored.data))}
        self.answer(200, stored.data, headers)

    def validate_yaml(self, content: str) -> None:
        errors = []
        match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        try:
            if match is None or not isinstance(yaml.safe_load(match[1]), dict):
                errors.append({"message": "no metadata"})
        except yaml.YAMLError as error:
            errors.append({"message": str(error)})
        self.answer(400 if errors else 200, json.dumps({"errors": errors, "warnings": []}).encode())

    def create(self, request: dict[str, object]) -> None:
        self.must_write()
        token = self.token
        assert token is not None
        owner = request.get("organization") or self.hub.tokens[token]
        if owner != self.hub.tokens[token]:
            raise RefusedError(403, None, f"You don't have the rights to create a model under the namespace {owner}")
        name = f"{owner}/{request['name']}"
        if name in self.hub.repositories:
            raise RefusedError(409, None, "You already created this model repo")
        private = request.get("visibility") == "private" or bool(request.get("private"))
        repository = self.hub.repositories[name] = Repository(private=private)
        repository.commit({".gitattributes": Stored(b"*.safetensors filter=lfs\n", False)}, "initial commit")
        self.json({"url": f"{self.hub.url}/{name}", "id": name, "name": name})

    def preupload(self, name: str, revision: str, request: dict[str, list[dict[str, object]]]) -> None:
        commit = self.commit_at(name, revision)
        answer = []
        for file in request["files"]:
            path, size = str(file["path"]), file["size"]
            assert isinstance(size, int)
            entry: dict[str, object] = {
                "path": path,
                "uploadMode": "lfs" if path.endswith(".safetensors") or size >= LARGE else "regular",
                "shouldIgnore": False,
            }
            if path in commit.files:
                stored = commit.files[path]
                entry["oid"] = stored.sha256 if stored.large else git_blob_id(stored.data)
            answer.append(entry)
        self.json({"files": answer})

    def lfs_batch(self, name: str, request: dict[str, object]) -> None:
        self.must_write()
        repository = self.repository(name)
        objects = []
        asked = request["objects"]
        assert isinstance(asked, list)
        for item in asked:
            entry: dict[str, object] = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in repository.objects:
                href = f"{self.hub.url}/lfs/{name}/{item['oid']}"
                entry["actions"] = {"upload": {"href": href, "header": {}}, "verify": {"href": href, "header": {}}}
            objects.append(entry)
        self.json({"transfer": "basic", "objects": objects})

    def lfs_object(self, name: str, oid: str, body: bytes) -> None:
        repository = self.hub.repositories[name]
        if self.command == "PUT":
            if hashlib.sha256(body).hexdigest() != oid:
                raise RefusedError(400, None, "the bytes do not have the promised hash")
            repository.objects[oid] = body
            self.hub.uploads.append(oid)
            return self.answer(200)
        self.must_write()
        request = json.loads(body)
        if oid not in repository.objects or len(repository.objects[oid]) != request["size"]:
            raise RefusedError(404, None, "the object did not arrive")
        self.json({})

    def duplicate(self, name: str, request: dict[str, object]) -> None:
        self.must_write()
        source = self.repository(name)
        if not self.hub.can_copy:
            raise RefusedError(400, None, "Cross-region copies are not supported")
        target = request["target"]
        files = request["files"]
        assert isinstance(target, dict) and isinstance(files, list)
        destination = self.repository(target["name"])
        failed = []
        for file in files:
            if file["sha256"] in source.objects:
                destination.objects[file["sha256"]] = source.objects[file["sha256"]]
                self.hub.copies.append(file["filename"])
            else:
                failed.append({"sha256": file["sha256"], "error": "not found"})
        self.json({"success": [], "failed": failed})

    def tag(self, name: str, revision: str, request: dict[str, str]) -> None:
        repository, commit = self.repository(name), self.commit_at(name, revision)
        if request["tag"] in repository.tags:
            raise RefusedError(409, None, "Tag reference exists already")
        repository.tags[request["tag"]] = commit.oid
        self.json({})

    def commit(self, name: str, lines: list[dict[str, dict[str, object]]]) -> None:
        if self.hub.before_commit is not None:
            hook, self.hub.before_commit = self.hub.before_commit, None
            hook()
        repository = self.repository(name)
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, repository.head.oid):
            raise RefusedError(412, None, "The branch has been updated since; please refresh")
        files = dict(repository.head.files)
        for line in lines[1:]:
            key, value = line["key"], line["value"]
            path = str(value["path"])
            if key == "file":
                files[path] = Stored(base64.b64decode(str(value["content"])), False)
            elif key == "lfsFile":
                data = repository.objects.get(str(value["oid"]))
                if data is None or ("size" in value and len(data) != value["size"]):
                    raise RefusedError(400, None, f"the large file {path} was never uploaded")
                files[path] = Stored(data, True)
            elif key == "deletedFile":
                if path not in files:
                    raise RefusedError(404, "EntryNotFound", "A file with this name doesn't exist")
                del files[path]
            else:
                raise RefusedError(400, None, f"unknown operation {key}")
        made = repository.commit(files, str(header["summary"]))
        self.json({"success": True, "commitOid": made.oid, "commitUrl": f"{self.hub.url}/{name}/commit/{made.oid}"})


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    """Run a fake on a free port of the loopback interface."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)
