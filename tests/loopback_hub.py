"""A stand-in for the hub on the loopback: models and data sets from folders, some of them gated, missing or cut short."""

import base64
import hashlib
import http.server
import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

COMMITS = {"main": "a" * 40, "v1": "b" * 40}
"""Branch or tag -> commit; the files of `v1` lie in the folder `<repository>@v1`."""


@dataclass
class Hub:
    """What the server knows; requests are counted by path.

    Attributes:
        root: holds `models/<owner>/<name>` and `datasets/<owner>/<name>`.
        gated: repositories that ask for a login.
        cut: file names that break off in the middle.
    """

    root: Path
    gated: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    address: str = ""

    def folder(self, kind: str, repository: str, revision: str) -> Path | None:
        """The files of a repository at a branch, tag or commit."""
        names = {**{name: name for name in COMMITS}, **{commit: name for name, commit in COMMITS.items()}}
        if revision not in names:
            return None
        name = names[revision]
        return self.root / kind / (repository if name == "main" else f"{repository}@{name}")


class Handler(http.server.BaseHTTPRequestHandler):
    """The few routes that the libraries ask for."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Be silent."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_POST(self) -> None:
        """Uploads: a repository is made, files are sent inside the commit, whatever their size."""
        data = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        path = unquote(self.path.split("?")[0]).strip("/")
        self.hub.requests.append(path)
        repository = "/".join(path.split("/")[2:4])
        if path == "api/repos/create":
            asked = json.loads(data)
            made = f"{asked.get('organization') or 'me'}/{asked['name']}"
            (self.hub.root / "models" / made).mkdir(parents=True, exist_ok=True)
            self.send_json({"url": f"{self.hub.address}/{made}", "id": made}, body=True)
        elif path == "api/validate-yaml":
            self.send_json({"errors": [], "warnings": []}, body=True)
        elif "/preupload/" in path:
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(data)["files"]]
            self.send_json({"files": files}, body=True)
        elif "/commit/" in path:
            for line in map(json.loads, data.splitlines()):
                if line["key"] == "file":
                    target = self.hub.root / "models" / repository / line["value"]["path"]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(base64.b64decode(line["value"]["content"]))
            where = f"{self.hub.address}/{repository}/commit/{COMMITS['main']}"
            self.send_json({"commitUrl": where, "commitOid": COMMITS["main"], "commitId": COMMITS["main"]}, body=True)
        else:
            self.refuse(404, "RepoNotFound")

    def answer(self, body: bool) -> None:
        path = unquote(self.path.split("?")[0]).strip("/")
        self.hub.requests.append(path)
        parts, kind = path.split("/"), "models"
        is_api = parts[0] == "api"
        parts = parts[1:] if is_api else parts
        if parts[0] in ("models", "datasets"):
            kind, parts = parts[0], parts[1:]
        owned = len(parts) > 1 and parts[1] not in ("resolve", "revision", "tree")
        repository = "/".join(parts[: 1 + owned])
        rest = parts[repository.count("/") + 1 :]
        if repository in self.hub.gated:
            return self.refuse(401, "GatedRepo")
        if not (self.hub.root / kind / repository).is_dir():
            return self.refuse(404, "RepoNotFound")
        revision = rest[1] if len(rest) > 1 else "main"
        folder = self.hub.folder(kind, repository, revision)
        if folder is None or not folder.is_dir():
            return self.refuse(404, "RevisionNotFound")
        commit = COMMITS.get(revision, revision)
        if is_api:
            return self.send_json(self.describe(folder, repository, commit, rest), body)
        return self.send_file(folder / "/".join(rest[2:]), commit, body)

    def describe(self, folder: Path, repository: str, commit: str, rest: list[str]) -> object:
        """What the API says of a repository, or of the files below one of its folders."""
        files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
        if rest[:1] in (["tree"], ["paths-info"]):
            below = "/".join(rest[2:])
            listed = [file for file in files if not below or file.startswith(f"{below}/")]
            return [{"type": "file", "path": file, "size": (folder / file).stat().st_size, "oid": "0" * 40} for file in listed]
        siblings = [{"rfilename": file} for file in files]
        return {"id": repository, "sha": commit, "private": False, "gated": False, "tags": [], "siblings": siblings}

    def send_json(self, value: object, body: bool) -> None:
        data = json.dumps(value).encode()
        self.start(200, {"Content-Type": "application/json", "Content-Length": str(len(data))})
        self.wfile.write(data if body else b"")

    def send_file(self, file: Path, commit: str, body: bool) -> None:
        if not file.is_file():
            return self.refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
        data = file.read_bytes()
        length = {"Content-Length": str(len(data)), "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        self.start(200, {"X-Repo-Commit": commit, "Content-Type": "application/octet-stream", **length})
        if body and file.name in self.hub.cut:
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif body:
            self.wfile.write(data)
        return None

    def refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self.start(status, {"X-Error-Code": code, "X-Error-Message": code, "Content-Length": "0", **(headers or {})})

    def start(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def serve(hub: Hub) -> http.server.ThreadingHTTPServer:
    """Start the server in the background; `hub.address` becomes its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("OwnHandler", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
