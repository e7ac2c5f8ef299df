"""A small hub on 127.0.0.1 that answers as the Hugging Face hub does to the requests that are made here.

Large files are redirected to a second server, as the hub redirects to its storage on another host.
"""

import contextlib
import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

# larger files are stored apart, under the sha256 of their content
LARGE = 1000
GOOD_TOKEN, STRANGERS_TOKEN = "hf_good", "hf_strangers"


@dataclass
class Repository:
    """Attributes: commits: commit -> path -> content; revisions: name -> commit; gated, private: needs `GOOD_TOKEN`."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False


@dataclass(frozen=True)
class Request:
    """What was asked: method, path without what follows `?`, token, first byte of a range, whether of the storage."""

    method: str
    path: str
    token: str
    start: int
    of_storage: bool


class HubServer:
    """Starts on a free port; `close` ends it.

    Attributes:
        url: for HF_ENDPOINT.
        requests: all so far.
        cuts: bytes after which the answers with large files end, one after the other.
        statuses: with which the next requests are answered, one after the other.
        ranges: whether ranges of files are given.
        repositories: by their names.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.cuts: list[int] = []
        self.statuses: list[int] = []
        self.ranges = True
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), self._handler(storage)) for storage in (False, True)]
        self.url, self.storage = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def add(self, repo: str, files: Path | Mapping[str, bytes], revision: str = "main", **options: bool) -> str:
        """Adds a commit to a repository, made if it is not there; returns its name.

        Args:
            repo: `owner/name`.
            files: a folder, or path -> content.
            revision: branch that is the new commit from now on.
            options: of `Repository`.
        """
        if isinstance(files, Path):
            files = {p.relative_to(files).as_posix(): p.read_bytes() for p in sorted(files.rglob("*")) if p.is_file()}
        own = self.repositories.setdefault(repo, Repository(**options))
        commit = hashlib.sha1(f"{repo}{len(own.commits)}".encode()).hexdigest()
        own.commits[commit], own.revisions[revision] = dict(files), commit
        return commit

    def fetched(self) -> list[str]:
        """Paths in their repositories of all files that were asked for, without folders of repository and revision."""
        return [request.path.split("/resolve/")[1].split("/", 1)[1] for request in self.requests
                if "/resolve/" in request.path]  # fmt: skip

    def close(self) -> None:
        """Ends it: from now on the hub can't be reached."""
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _handler(self, storage: bool) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            answer: "_Answer"

            def log_message(self, *args: object) -> None:
                """Says nothing."""

            def do_GET(self) -> None:
                self._respond(send_body=True)

            def do_HEAD(self) -> None:
                self._respond(send_body=False)

            def _respond(self, send_body: bool) -> None:
                path = unquote(urlsplit(self.path).path)
                token = (self.headers["authorization"] or "").removeprefix("Bearer ")
                start = int((self.headers["range"] or "bytes=0-").removeprefix("bytes=").rstrip("-"))
                hub.requests.append(Request(self.command, path, token, start, storage))
                raw = urlsplit(self.path).path.strip("/").split("/")
                answer = hub._storage(raw[-1]) if storage else hub._answer([unquote(segment) for segment in raw], token)
                body, status = answer.body, answer.status
                if status == 200 and start and hub.ranges:
                    answer.headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                    body, status = body[start:], 206
                self.send_response(status)
                for name, value in {**answer.headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if not send_body:
                    return
                if storage and hub.cuts:
                    body, self.close_connection = body[: hub.cuts.pop(0)], True
                with contextlib.suppress(ConnectionError):
                    # who asked may have gone
                    self.wfile.write(body)

        return Handler

    def _storage(self, sha256: str) -> "_Answer":
        for content in self._contents():
            if hashlib.sha256(content).hexdigest() == sha256:
                return _Answer(200, content)
        return _Answer(404)

    def _contents(self) -> list[bytes]:
        return [data for own in self.repositories.values() for files in own.commits.values() for data in files.values()]

    def _answer(self, segments: list[str], token: str) -> "_Answer":
        if self.statuses:
            return _Answer(self.statuses.pop(0))
        if token and token not in (GOOD_TOKEN, STRANGERS_TOKEN):
            return _Answer(401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})
        is_api = segments[:2] == ["api", "models"]
        segments = segments[2:] if is_api else segments
        repo = self.repositories.get("/".join(segments[:2]))
        if repo is None or (repo.private and token != GOOD_TOKEN):
            # without a token the hub does not say whether there is such a repository
            return _error(404 if token else 401, "RepoNotFound")
        if is_api:
            return self._api("/".join(segments[:2]), repo, segments[2:], token)
        return self._file(repo, segments[3], "/".join(segments[4:]), token)

    def _api(self, name: str, repo: Repository, segments: list[str], token: str) -> "_Answer":
        if segments == ["auth-check"]:
            return self._refused(repo, token) or _Answer(200, b"{}")
        commit = _commit(repo, segments[1] if segments else "main")
        if commit is None:
            return _error(404, "RevisionNotFound")
        siblings = [{"rfilename": path, "size": len(data), "blobId": _git_hash(data), **_large(data)}
                    for path, data in repo.commits[commit].items()]  # fmt: skip
        gated = "auto" if repo.gated else False
        info = {"id": name, "sha": commit, "gated": gated, "private": repo.private, "siblings": siblings}
        return _Answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _file(self, repo: Repository, revision: str, path: str, token: str) -> "_Answer":
        if refused := self._refused(repo, token):
            return refused
        commit = _commit(repo, revision)
        if commit is None:
            return _error(404, "RevisionNotFound")
        data = repo.commits[commit].get(path)
        if data is None:
            return _error(404, "EntryNotFound", {"X-Repo-Commit": commit})
        if len(data) <= LARGE:
            return _Answer(200, data, {"X-Repo-Commit": commit, "ETag": f'"{_git_hash(data)}"'})
        sha256 = hashlib.sha256(data).hexdigest()
        return _Answer(302, headers={
            "X-Repo-Commit": commit, "X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(data)),
            "Location": f"{self.storage}/{sha256}",
        })  # fmt: skip

    def _refused(self, repo: Repository, token: str) -> "_Answer | None":
        if not repo.gated or token == GOOD_TOKEN:
            return None
        return _error(403 if token else 401, "GatedRepo")


@dataclass
class _Answer:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def _error(status: int, code: str, headers: Mapping[str, str] | None = None) -> _Answer:
    return _Answer(status, b'{"error": "no"}', {"X-Error-Code": code, "X-Error-Message": "no", **(headers or {})})


def _commit(repo: Repository, revision: str) -> str | None:
    return revision if revision in repo.commits else repo.revisions.get(revision)


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _large(data: bytes) -> dict[str, object]:
    return {"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}} if len(data) > LARGE else {}
