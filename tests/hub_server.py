"""A Hub on loopback: what huggingface_hub's client needs to push and to pull, kept in memory.

Repositories, commits, branches, tags and pull requests are plain objects that a test can look into,
and every request is on record. Large files travel as git-LFS objects, whole or in parts, or, where
`xet=True`, through a content-addressed store (tests/hub/xet_storage.py). It answers errors with the
status, the headers and the words that huggingface.co uses.

What it does not do: redirect to a CDN, paginate, validate anything about git.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.hub.hub_state import (
    LFS_SUFFIXES,
    Account,
    Commit,
    Fault,
    Refusal,
    Repository,
    Request,
    StoredFile,
)
from tests.hub.xet_storage import XetStorage

LFS_SIZE = 10 * 2**20  # larger files go to LFS whatever their names
COMMIT = re.compile(r"[0-9a-f]{40}")


class HubServer:
    """The server; use it as a context manager.

    `part_size` makes LFS uploads come in parts of that many bytes, as for very large files.
    """

    def __init__(self, xet: bool = False, part_size: int | None = None) -> None:
        self.xet = XetStorage() if xet else None
        self.part_size = part_size
        self.accounts = {"hf_writer": Account("user"), "hf_reader": Account("reader", "read")}
        self.repositories: dict[str, Repository] = {}
        self.lfs: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.error_message = "The server is out of order"
        self.lock = threading.RLock()
        handler = type("Handler", (HubHandler,), {"hub": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self) -> "HubServer":
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def create(self, name: str, **options: bool) -> Repository:
        self.repositories[name] = Repository(name, **options)
        return self.repositories[name]

    def fail(self, method: str, pattern: str, status: int, times: int = 1) -> None:
        """Answer the next matching requests with an error."""
        self.faults.append(Fault(method, pattern, times, status=status))

    def cut(self, method: str, pattern: str, after: int, times: int = 1) -> None:
        """Break the connection off after some bytes of the next matching answers."""
        self.faults.append(Fault(method, pattern, times, cut_after=after))

    def damage(self, pattern: str, change: Callable[[bytes], bytes], times: int = 1) -> None:
        """Send other bytes than the right ones, under the right hash and size."""
        self.faults.append(Fault("GET", pattern, times, change=change))

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and re.search(fault.pattern, path):
                    fault.times -= 1
                    return fault
        return None

    def count(self, method: str, pattern: str) -> int:
        """Count the requests so far that match."""
        return len([r for r in self.requests if r.method == method and re.search(pattern, r.path)])

    def read_large_file(self, sha256: str) -> bytes | None:
        if self.xet is not None and sha256 in self.xet.file_hashes:
            return self.xet.read_file(self.xet.file_hashes[sha256])
        return self.lfs.get(sha256)


ROUTES: list[tuple[str, re.Pattern[str], str]] = []


def route(method: str, pattern: str) -> Callable[[Any], Any]:
    """Say which requests a method of the handler answers."""

    def register(function: Any) -> Any:
        ROUTES.append((method, re.compile(pattern), function.__name__))
        return function

    return register


REPO = r"(?P<repo>[^/]+/[^/]+)"
API = rf"/api/models/{REPO}"


class HubHandler(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *arguments: object) -> None:
        """Print nothing; requests are on record."""

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self.read_chunks()
        else:
            self.body = self.rfile.read(length)
        parts = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        path = parts.path
        self.fault = self.hub.take_fault(self.command, path)
        try:
            self.account = None
            self.account = self.find_account(path)
            name = self.account.name if self.account else None
            self.hub.requests.append(Request(self.command, self.path, name))
            if self.fault and self.fault.status:
                raise Refusal(self.fault.status, self.hub.error_message)
            for method, pattern, name in ROUTES:
                match = pattern.fullmatch(path)
                if match and method in (self.command, "GET" if self.command == "HEAD" else ""):
                    values = {key: unquote(value) for key, value in match.groupdict("").items()}
                    return getattr(self, name)(**values)
            raise Refusal(404, f"Sorry, we can't find {self.command} {path}")
        except Refusal as refusal:
            self.send_json({"error": refusal.message}, refusal.status, refusal.headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def read_chunks(self) -> bytes:
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def send_bytes(
        self, content: bytes, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        if self.fault and self.fault.change:
            content = self.fault.change(content)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            cut_after = self.fault.cut_after if self.fault else None
            self.wfile.write(content if cut_after is None else content[:cut_after])
            if cut_after is not None:
                self.close_connection = True

    def send_json(
        self, content: Any, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        data = json.dumps(content).encode()
        self.send_bytes(data, status, {"Content-Type": "application/json", **(headers or {})})

    # Who asks, and for what

    def find_account(self, path: str) -> Account | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ").strip()
        if not token or path.startswith(("/xet/", "/lfs/")):
            return None
        if token not in self.hub.accounts:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.accounts[token]

    def find_repository(self, name: str, reads_files: bool = False) -> Repository:
        repository = self.hub.repositories.get(name)
        own = self.account is not None and self.account.name == name.split("/")[0]
        if repository is None or (repository.private and not own):
            if self.account is None:
                # huggingface.co leaves the code out; the client then goes by the https address.
                raise Refusal(401, "Invalid username or password.", "RepoNotFound")
            raise Refusal(404, "Repository not found", "RepoNotFound")
        if repository.gated and not own and reads_files:
            message = f"Access to model {name} is restricted."
            raise Refusal(403 if self.account else 401, message, "GatedRepo")
        return repository

    def find_writable(self, name: str) -> Repository:
        repository = self.find_repository(name)
        if self.account is None:
            raise Refusal(401, "Invalid username or password.")
        if self.account.role == "read" or self.account.name != name.split("/")[0]:
            raise Refusal(403, "Forbidden: you must use a write token to upload to a repository")
        return repository

    def find_commit(self, repository: Repository, revision: str) -> Commit:
        commit = repository.find(revision)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # Accounts and repositories

    @route("GET", "/api/whoami-v2")
    def get_account(self) -> None:
        if self.account is None:
            raise Refusal(401, "Invalid username or password.")
        token = {"displayName": "tests", "role": self.account.role}
        self.send_json(
            {
                "type": "user",
                "name": self.account.name,
                "orgs": [],
                "auth": {"type": "access_token", "accessToken": token},
            }
        )

    @route("POST", "/api/repos/create")
    def create_repository(self) -> None:
        if self.account is None:
            raise Refusal(401, "Invalid username or password.")
        wanted = json.loads(self.body)
        owner = wanted.get("organization") or self.account.name
        name = f"{owner}/{wanted['name']}"
        if self.account.role == "read" or owner != self.account.name:
            raise Refusal(403, f"You don't have the rights to create a model under {owner}")
        url = f"{self.hub.endpoint}/{name}"
        with self.hub.lock:
            if name in self.hub.repositories:
                message = "You already created this model repo"
                return self.send_json({"error": message, "url": url}, 409)
            private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
            self.hub.create(name, private=private)
        self.send_json({"url": url, "name": name})

    @route("POST", "/api/validate-yaml")
    def validate_card(self) -> None:
        match = re.match(r"---\n(.*?)\n---", json.loads(self.body)["content"], re.DOTALL)
        errors = []
        try:
            metadata = yaml.safe_load(match.group(1)) if match else {}
            if not isinstance(metadata, dict):
                errors.append({"message": "metadata is no mapping"})
        except yaml.YAMLError as error:
            errors.append({"message": str(error)})
        self.send_json({"errors": errors, "warnings": []}, 400 if errors else 200)

    @route("GET", rf"{API}(/revision/(?P<revision>[^/]+))?")
    def get_model(self, repo: str, revision: str) -> None:
        repository = self.find_repository(repo)
        commit = self.find_commit(repository, revision or "main")
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        content = {"_id": repo, "id": repo, "modelId": repo, "sha": commit.oid, "tags": []}
        gated = "manual" if repository.gated else False
        content |= {"private": repository.private, "gated": gated, "siblings": siblings}
        self.send_json(content)

    @route("GET", rf"{API}/refs")
    def list_refs(self, repo: str) -> None:
        refs = [
            {"name": ref.split("/", 2)[2], "ref": ref, "targetCommit": oid}
            for ref, oid in sorted(self.find_repository(repo).refs.items())
        ]
        kinds = {"branches": "refs/heads/", "tags": "refs/tags/", "pullRequests": "refs/pr/"}
        content = {k: [r for r in refs if r["ref"].startswith(v)] for k, v in kinds.items()}
        self.send_json({**content, "converts": []})

    @route("GET", rf"{API}/commits/(?P<revision>[^/]+)")
    def list_commits(self, repo: str, revision: str) -> None:
        repository = self.find_repository(repo)
        commit: Commit | None = self.find_commit(repository, revision)
        found = []
        while commit is not None:
            entry = {"id": commit.oid, "title": commit.message, "message": "", "authors": []}
            found.append({**entry, "date": "2026-01-01T00:00:00.000Z"})
            commit = repository.commits.get(commit.parent or "")
        self.send_json(found)

    @route("POST", rf"{API}/branch/(?P<branch>[^/]+)")
    def create_branch(self, repo: str, branch: str) -> None:
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        self.create_ref(repo, f"refs/heads/{branch}", start)

    @route("POST", rf"{API}/tag/(?P<revision>[^/]+)")
    def create_tag(self, repo: str, revision: str) -> None:
        self.create_ref(repo, f"refs/tags/{json.loads(self.body)['tag']}", revision)

    def create_ref(self, repo: str, ref: str, start: str) -> None:
        repository = self.find_writable(repo)
        commit = self.find_commit(repository, start)
        with self.hub.lock:
            if ref in repository.refs:
                raise Refusal(409, f"Reference already exists: {ref}")
            repository.refs[ref] = commit.oid
        self.send_json({})

    # Reading files

    def describe(self, path: str, file: StoredFile) -> dict[str, Any]:
        entry = {"type": "file", "oid": file.blob_id, "size": len(file.content), "path": path}
        if file.is_lfs:
            entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}
        return entry

    @route("GET", rf"{API}/tree/(?P<revision>[^/]+)/?(?P<folder>.*)")
    def list_tree(self, repo: str, revision: str, folder: str) -> None:
        commit = self.find_commit(self.find_repository(repo), revision)
        top = f"{folder}/" if folder else ""
        found = [self.describe(p, f) for p, f in sorted(commit.files.items()) if p.startswith(top)]
        if self.query.get("recursive", "").lower() not in ("true", "1"):
            found = [entry for entry in found if "/" not in entry["path"].removeprefix(top)]
        self.send_json(found)

    @route("POST", rf"{API}/paths-info/(?P<revision>[^/]+)")
    def list_paths(self, repo: str, revision: str) -> None:
        commit = self.find_commit(self.find_repository(repo), revision)
        if self.headers.get("Content-Type", "").startswith("application/json"):
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode()).get("paths", [])
        self.send_json([self.describe(p, commit.files[p]) for p in paths if p in commit.files])

    @route("GET", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def get_file(self, repo: str, revision: str, path: str) -> None:
        repository = self.find_repository(repo, reads_files=True)
        commit = self.find_commit(repository, revision)
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if path not in commit.files:
            raise Refusal(404, "Entry not found", "EntryNotFound", **headers)
        file = commit.files[path]
        headers["ETag"] = f'"{file.etag}"'
        if file.is_lfs:
            headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
            if self.hub.xet is not None and file.sha256 in self.hub.xet.file_hashes:
                token = f"{self.hub.endpoint}/api/models/{repo}/xet-read-token/{commit.oid}"
                headers["X-Xet-Hash"] = self.hub.xet.file_hashes[file.sha256]
                headers["Link"] = f'<{token}>; rel="xet-auth"'
        self.send_range(file.content, headers)

    def send_range(self, content: bytes, headers: dict[str, str]) -> None:
        """Send the bytes that a Range header asks for, or all of them."""
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if match is None:
            return self.send_bytes(content, 200, headers)
        first, last = int(match[1]), min(int(match[2] or len(content) - 1), len(content) - 1)
        if first >= len(content):
            headers = {**headers, "Content-Range": f"bytes */{len(content)}"}
            return self.send_bytes(b"", 416, headers)
        headers = {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"}
        self.send_bytes(content[first : last + 1], 206, headers)

    # Writing files

    @route("POST", rf"{API}/preupload/(?P<revision>[^/]+)")
    def choose_upload_modes(self, repo: str, revision: str) -> None:
        repository = self.find_writable(repo)
        known = self.find_commit(repository, revision).files
        answers = []
        for file in json.loads(self.body)["files"]:
            is_large = file["path"].endswith(LFS_SUFFIXES) or file["size"] > LFS_SIZE
            mode = "lfs" if is_large else "regular"
            oid = known[file["path"]].etag if file["path"] in known else None
            entry = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            answers.append({**entry, "oid": oid})
        self.send_json({"files": answers})

    @route("POST", rf"/{REPO}\.git/info/lfs/objects/batch")
    def negotiate_upload(self, repo: str) -> None:
        self.find_writable(repo)
        wanted = json.loads(self.body)
        if self.hub.xet is not None and "xet" in wanted["transfers"]:
            objects = [{"oid": o["oid"], "size": o["size"]} for o in wanted["objects"]]
            return self.send_json({"transfer": "xet", "objects": objects})
        objects = []
        for wanted_object in wanted["objects"]:
            oid, size = wanted_object["oid"], wanted_object["size"]
            entry = {"oid": oid, "size": size}
            if oid not in self.hub.lfs:
                href = f"{self.hub.endpoint}/lfs/{oid}"
                verify = {"href": f"{self.hub.endpoint}/{repo}.git/info/lfs/verify"}
                upload: dict[str, Any] = {"href": href}
                if self.hub.part_size:
                    count = -(-size // self.hub.part_size)
                    parts = {str(n): f"{href}/{n}" for n in range(1, count + 1)}
                    upload["header"] = {"chunk_size": str(self.hub.part_size), **parts}
                entry["actions"] = {"upload": upload, "verify": verify}
            objects.append(entry)
        self.send_json({"transfer": "basic", "objects": objects})

    @route("PUT", r"/lfs/(?P<oid>\w+)")
    def upload_object(self, oid: str) -> None:
        self.store_object(oid, self.body)
        self.send_bytes(b"", 200, {"ETag": f'"{oid}"'})

    @route("PUT", r"/lfs/(?P<oid>\w+)/(?P<number>\d+)")
    def upload_part(self, oid: str, number: str) -> None:
        with self.hub.lock:
            self.hub.parts.setdefault(oid, {})[int(number)] = self.body
        self.send_bytes(b"", 200, {"ETag": hashlib.md5(self.body).hexdigest()})

    @route("POST", r"/lfs/(?P<oid>\w+)")
    def complete_object(self, oid: str) -> None:
        parts = self.hub.parts[oid]
        named = [part["partNumber"] for part in json.loads(self.body)["parts"]]
        self.store_object(oid, b"".join(parts[number] for number in named))
        self.send_json({})

    def store_object(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, f"The content is not that of {oid}")
        self.hub.lfs[oid] = content

    @route("POST", rf"/{REPO}\.git/info/lfs/verify")
    def verify_object(self, repo: str) -> None:
        wanted = json.loads(self.body)
        if len(self.hub.lfs.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refusal(404, f"Object {wanted['oid']} was not uploaded")
        self.send_json({})

    @route("POST", rf"{API}/commit/(?P<revision>[^/]+)")
    def commit(self, repo: str, revision: str) -> None:
        repository = self.find_writable(repo)
        with self.hub.lock:
            parent = self.find_commit(repository, revision)
            lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
            header = lines[0]["value"]
            if header.get("parentCommit") not in (None, parent.oid):
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            files = dict(parent.files)
            for line in lines[1:]:
                self.apply_operation(files, line["key"], line["value"])
            commit = repository.add_commit(header["summary"], files, parent.oid)
            answer = {"success": True, "commitOid": commit.oid, "hookOutput": ""}
            answer["commitUrl"] = f"{self.hub.endpoint}/{repo}/commit/{commit.oid}"
            if self.query.get("create_pr"):
                repository.num_pull_requests += 1
                number = repository.num_pull_requests
                repository.refs[f"refs/pr/{number}"] = commit.oid
                answer["pullRequestUrl"] = f"{self.hub.endpoint}/{repo}/discussions/{number}"
            elif COMMIT.fullmatch(revision) or f"refs/heads/{revision}" not in repository.refs:
                raise Refusal(404, f"{revision} is no branch", "RevisionNotFound")
            else:
                repository.refs[f"refs/heads/{revision}"] = commit.oid
        self.send_json(answer)

    def apply_operation(
        self, files: dict[str, StoredFile], key: str, value: dict[str, Any]
    ) -> None:
        path = value["path"]
        if key == "file":
            files[path] = StoredFile(base64.b64decode(value["content"]), False)
        elif key == "lfsFile":
            content = self.hub.read_large_file(value["oid"])
            if content is None:
                raise Refusal(400, f"LFS pointer points to a file that does not exist: {path}")
            files[path] = StoredFile(content, True)
        elif key == "deletedFile":
            if files.pop(path, None) is None:
                raise Refusal(404, f"{path} does not exist", "EntryNotFound")
        elif key == "deletedFolder":
            for name in [name for name in files if name.startswith(path.rstrip("/") + "/")]:
                del files[name]
        else:
            raise Refusal(400, f"Unknown operation {key}")

    # Xet

    @route("GET", rf"{API}/xet-(?P<kind>read|write)-token/(?P<revision>.+)")
    def get_xet_token(self, repo: str, kind: str, revision: str) -> None:
        if self.hub.xet is None:
            raise Refusal(404, "This repository has no Xet storage")
        if kind == "write":
            self.find_writable(repo)
        else:
            self.find_repository(repo, reads_files=True)
        url, token, expiry = f"{self.hub.endpoint}/xet", f"xet-{kind}", 4_102_444_800
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token}
        headers["X-Xet-Token-Expiration"] = str(expiry)
        content = {"casUrl": url, "accessToken": token, "exp": expiry}
        self.send_json(content, headers=headers)

    @route("POST", r"/xet/v1/xorbs/default/(?P<xorb>\w+)")
    def upload_xorb(self, xorb: str) -> None:
        self.send_json({"was_inserted": self.hub.xet.add_xorb(xorb, self.body)})

    @route("POST", r"/xet/v1/shards")
    def upload_shard(self) -> None:
        self.hub.xet.add_shard(self.body)
        self.send_json({"result": 1})

    @route("GET", r"/xet/v1/reconstructions/(?P<file_hash>\w+)")
    def get_reconstruction(self, file_hash: str) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        wanted = (int(match[1]), int(match[2]) + 1) if match else None
        plan = self.hub.xet.plan_reconstruction(file_hash, wanted, f"{self.hub.endpoint}/xet")
        if plan is None:
            raise Refusal(416 if file_hash in self.hub.xet.files else 404, "No such range or file")
        self.send_json(plan)

    @route("GET", r"/xet/data/(?P<xorb>\w+)")
    def get_xorb(self, xorb: str) -> None:
        self.send_range(self.hub.xet.xorbs[xorb], {})
