"""What the loopback Hub keeps: accounts, repositories, commits and files; and what it refuses."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gz", ".zip", ".model", ".npz")


@dataclass(frozen=True)
class StoredFile:
    """One file of one commit."""

    content: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def blob_id(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.blob_id


@dataclass
class Commit:
    """A commit: its message and its whole tree."""

    oid: str
    message: str
    files: dict[str, StoredFile]
    parent: str | None = None


@dataclass
class Repository:
    """A model repository; new ones hold one commit with .gitattributes, as on the Hub."""

    name: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    num_pull_requests: int = 0

    def __post_init__(self) -> None:
        attributes = "".join(f"*{suffix} filter=lfs\n" for suffix in LFS_SUFFIXES)
        files = {".gitattributes": StoredFile(attributes.encode(), False)}
        self.refs["refs/heads/main"] = self.add_commit("initial commit", files, None).oid

    def add_commit(self, message: str, files: dict[str, StoredFile], parent: str | None) -> Commit:
        tree = sorted((path, file.etag) for path, file in files.items())
        oid = hashlib.sha1(repr((self.name, parent, message, tree)).encode()).hexdigest()
        self.commits[oid] = Commit(oid, message, files, parent)
        return self.commits[oid]

    def find(self, revision: str) -> Commit | None:
        for ref in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if ref in self.refs:
                return self.commits[self.refs[ref]]
        return self.commits.get(revision)

    def files(self, revision: str = "main") -> dict[str, StoredFile]:
        commit = self.find(revision)
        assert commit is not None, f"no revision {revision}"
        return commit.files


@dataclass
class Account:
    """Who a token belongs to."""

    name: str
    role: str = "write"


@dataclass(frozen=True)
class Request:
    """One request as it came in."""

    method: str
    path: str
    account: str | None


@dataclass
class Fault:
    """An answer to give instead of the right one: a status, or a body cut off or changed."""

    method: str
    pattern: str
    times: int
    status: int | None = None
    cut_after: int | None = None
    change: Callable[[bytes], bytes] | None = None


class Refusal(Exception):
    """An error answer."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {"X-Error-Message": message, **headers}
        if code:
            self.headers["X-Error-Code"] = code
