"""A small Hugging Face Hub on the loopback, for the real huggingface_hub client to talk to.

It speaks the part of the Hub's protocol that saving and loading models uses: creating a repository, preupload, LFS
batch and upload, the commit as NDJSON, tags, model info, the tree, and resolving files with etags. Repositories live in
memory, each as a list of commits; a commit is made whole or not at all.

    with serve() as hub:
        subprocess.run(..., env={"HF_ENDPOINT": hub.url, "HF_TOKEN": "any", "HF_HUB_DISABLE_XET": "1"})

`POST /-/refuse` with a regular expression makes the server answer 403 to every request whose "METHOD /path" it finds,
until the next such post; an empty body ends it. `GET /-/log` lists the requests since it was last asked for.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LFS_NAMES = (".safetensors", ".bin", ".png")


@dataclass
class Repository:
    """Commits by hash, each a dictionary path -> content, and the names that point at them."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        listing = [f"{len(self.commits)}", *(f"{path} {sha(content)}" for path, content in sorted(files.items()))]
        oid = hashlib.sha1("\n".join(listing).encode()).hexdigest()
        self.commits[oid] = files
        self.refs["main"] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        oid = self.refs.get(revision, revision)
        return oid if oid in self.commits else None


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Hub(ThreadingHTTPServer):
    """The server and all that it remembers."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # of LFS, by sha256
        self.refused: str = ""
        self.log: list[str] = []


class Handler(BaseHTTPRequestHandler):
    """One request; the routes are tried in order."""

    protocol_version = "HTTP/1.1"
    server: Hub

    ROUTES = [
        ("POST", r"/-/refuse", "refuse"),
        ("GET", r"/-/log", "show_log"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>.+))?", "info"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)", "tree"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/tag/(?P<revision>[^/]+)", "tag"),
        ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/-/lfs/(?P<oid>[0-9a-f]{64})", "lfs_upload"),
        ("HEAD", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
        ("GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    ]

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b"".join(self.chunks())
        if not path.startswith("/-/log"):
            self.server.log.append(f"{self.command} {path}")
        if self.server.refused and re.search(self.server.refused, f"{self.command} {path}") and path != "/-/refuse":
            return self.answer(403, {"error": "refused"})
        for method, pattern, name in self.ROUTES:
            found = re.fullmatch(pattern, path)
            if found and method == self.command:
                return getattr(self, name)(**found.groupdict())
        self.answer(404, {"error": f"no route for {self.command} {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def answer(self, status: int, content: dict | list | bytes = b"", **headers: str) -> None:
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers["Content_Type"] = "application/json"
        self.send_response(status)
        for name, value in {"Content_Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def missing(self, what: str) -> None:
        self.answer(404, {"error": f"{what} not found"}, X_Error_Code=f"{what}NotFound")

    def log_message(self, *args) -> None:
        pass

    # ------------------------------------------------------------------------------------------- for tests

    def refuse(self) -> None:
        self.server.refused = self.body.decode()
        self.answer(200, {})

    def show_log(self) -> None:
        self.answer(200, self.server.log)
        self.server.log = []

    # --------------------------------------------------------------------------------------------- writing

    def may_write(self) -> bool:
        if not self.headers.get("Authorization", "").startswith("Bearer "):
            self.answer(401, {"error": "no token"})
            return False
        return True

    def create(self) -> None:
        if not self.may_write():
            return
        asked = json.loads(self.body)
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if repo in self.server.repositories:
            return self.answer(409, {"error": "exists", "url": f"{self.server.url}/{repo}"})
        self.server.repositories[repo] = Repository()
        self.server.repositories[repo].commit({".gitattributes": b""})
        self.answer(200, {"url": f"{self.server.url}/{repo}", "name": repo})

    def validate(self) -> None:
        self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, repo: str, revision: str) -> None:
        if repo not in self.server.repositories:
            return self.missing("Repo")
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_NAMES) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        self.answer(200, {"files": files})

    def lfs_batch(self, repo: str) -> None:
        objects = []
        for one in json.loads(self.body)["objects"]:
            known = one["oid"] in self.server.objects
            upload = {"upload": {"href": f"{self.server.url}/-/lfs/{one['oid']}"}}
            objects.append({"oid": one["oid"], "size": one["size"], **({} if known else {"actions": upload})})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def lfs_upload(self, oid: str) -> None:
        if sha(self.body) != oid:
            return self.answer(400, {"error": "another sha256"})
        self.server.objects[oid] = self.body
        self.answer(200)

    def commit(self, repo: str, revision: str) -> None:
        if not self.may_write():
            return
        repository = self.server.repositories[repo]
        files = dict(repository.commits[repository.refs[revision]])
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        oid = repository.commit(files)
        self.answer(
            200,
            {
                "commitUrl": f"{self.server.url}/{repo}/commit/{oid}",
                "commitOid": oid,
                "hookOutput": "",
                "success": True,
            },
        )

    def tag(self, repo: str, revision: str) -> None:
        repository = self.server.repositories[repo]
        repository.refs[json.loads(self.body)["tag"]] = repository.resolve(revision)
        self.answer(200, {})

    # --------------------------------------------------------------------------------------------- reading

    def find(self, repo: str, revision: str | None) -> tuple[str, dict[str, bytes]] | None:
        """The commit that is meant and its files, or an answer that there is none."""
        repository = self.server.repositories.get(repo)
        if repository is None:
            self.missing("Repo")
            return None
        oid = repository.resolve(revision or "main")
        if oid is None:
            self.missing("Revision")
            return None
        return oid, repository.commits[oid]

    def info(self, repo: str, revision: str | None) -> None:
        if found := self.find(repo, revision):
            oid, files = found
            siblings = [{"rfilename": path} for path in sorted(files)]
            self.answer(200, {"id": repo, "modelId": repo, "sha": oid, "private": False, "siblings": siblings})

    def tree(self, repo: str, revision: str) -> None:
        if found := self.find(repo, revision):
            entries = []
            for path, content in sorted(found[1].items()):
                entry = {"type": "file", "path": path, "size": len(content), "oid": etag(content)}
                if path.endswith(LFS_NAMES):
                    entry["lfs"] = {"oid": sha(content), "size": len(content), "pointerSize": 130}
                entries.append(entry)
            self.answer(200, entries)

    def resolve(self, repo: str, revision: str, path: str) -> None:
        if not (found := self.find(repo, revision)):
            return
        oid, files = found
        if path not in files:
            return self.answer(404, {"error": "no such file"}, X_Error_Code="EntryNotFound", X_Repo_Commit=oid)
        content = files[path]
        headers = {"X_Repo_Commit": oid, "ETag": f'"{etag(content)}"'}
        if path.endswith(LFS_NAMES):
            headers |= {"X_Linked_ETag": f'"{sha(content)}"', "X_Linked_Size": str(len(content))}
        self.answer(200, content, **headers)


def etag(content: bytes) -> str:
    """As git names a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serve() -> Iterator[Hub]:
    """A Hub of its own, on a free port, for the length of the block."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


def on_hub(name: str, words: list[str], folder, there: dict[str, dict[str, bytes]]) -> dict[str, bytes]:
    """What a command leaves in a repository, run in a process of its own that knows no other Hub."""
    code = f"import sys; from profusion_pipeline.cli import main; sys.exit(main({words!r}))"
    with serve() as hub:
        for other, files in there.items():
            hub.repositories[other] = Repository()
            hub.repositories[other].commit(files)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": "any", "HF_HOME": str(folder), "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        repository = hub.repositories[name]
        return repository.commits[repository.refs["main"]]
