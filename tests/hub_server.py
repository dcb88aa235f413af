"""A server on this machine that speaks as much of the Hugging Face hub's protocol as downloads need."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Repository:
    """A model repository: its files by revision, who may read it, and how its downloads fail.

    token: without it, the hub acts as if there were no such repository. gated: access needs a permission.
    broken: names of files whose first download ends after half of the bytes. hidden: files that are listed, but not given.
    """

    def __init__(self, folder: Path, token: str | None = None, gated: bool = False):
        self.token, self.gated, self.broken, self.hidden = token, gated, set(), set()
        self.revisions = {"main": {file.name: file.read_bytes() for file in folder.iterdir()}}

    def commit(self, revision: str) -> str | None:
        """The commit, of 40 hex digits, of a branch, a tag or a commit."""
        commits = {name: hashlib.sha1(f"{name}{sorted(files)}".encode()).hexdigest()
                   for name, files in self.revisions.items()}
        return commits.get(revision) or (revision if revision in commits.values() else None)

    def files(self, commit: str) -> dict[str, bytes]:
        return next(files for name, files in self.revisions.items() if self.commit(name) == commit)


class HubServer(ThreadingHTTPServer):
    """Serves `repositories`, by name; `requests` lists method, path and Range header of every request."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, Repository]):
        self.repositories, self.requests = repositories, []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def downloads(self) -> list[tuple[str, str | None]]:
        """Name and Range of every file that was asked for."""
        return [(path.rsplit("/", 1)[1], part) for method, path, part in self.requests
                if method == "GET" and "/resolve/" in path]


@contextmanager
def serve(repositories: dict[str, Repository]):
    server = HubServer(repositories)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_args) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path, self.headers.get("Range")))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            name, kind, revision = match[1], match[2], match[3] or "main"
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            name, kind, revision = match[1], "file", match[2]
        else:
            return self._fail(404, "BadPath")
        repository = self.server.repositories.get(name)
        if repository is None or repository.token not in (None, (self.headers.get("Authorization") or "").partition(" ")[2]):
            return self._fail(401, "RepoNotFound")
        if repository.gated:
            return self._fail(403, "GatedRepo")
        if (commit := repository.commit(revision)) is None:
            return self._fail(404, "RevisionNotFound")
        files = repository.files(commit)
        if kind == "file":
            return self._file(repository, commit, match[3], files)
        listed = [{"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                  for name, data in files.items()]
        answer = listed if kind == "tree" else {"id": name, "modelId": name, "sha": commit, "private": False, "tags": [],
                                                "siblings": [{"rfilename": file["path"]} for file in listed]}
        return self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _file(self, repository: Repository, commit: str, name: str, files: dict[str, bytes]) -> None:
        if name not in files or name in repository.hidden:
            return self._fail(404, "EntryNotFound")
        data, headers = files[name], {"ETag": f'"{hashlib.sha1(files[name]).hexdigest()}"', "X-Repo-Commit": commit,
                                      "Accept-Ranges": "bytes"}
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, stop = int(part[1]), int(part[2]) + 1 if part[2] else len(data)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            return self._send(206, data[start:stop], headers)
        cut = None
        if self.command == "GET" and name in repository.broken:
            repository.broken.discard(name)
            cut = len(data) // 2
        return self._send(200, data, headers, cut)

    def _fail(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, data: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[:cut])
        if cut is not None:
            # the connection drops before the promised bytes
            self.close_connection = True
