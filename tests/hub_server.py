"""A small Hugging Face Hub on loopback, read side: repositories in memory, served to the real client.

with serve({"models/org/net": {"config.json": b"…"}, "datasets/org/data": {…}}) as endpoint: …
"""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?$")
FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")


def commit(files):
    """A revision's id: the digest of its files."""
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def reply(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in (
            {"Content-Length": len(body)} | {k.replace("_", "-"): v for k, v in headers.items()}
        ).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reply_json(self, value):
        self.reply(200, json.dumps(value).encode(), Content_Type="application/json")

    def missing(self, code):
        self.reply(404, b"{}", X_Error_Code=code, X_Error_Message=f"{code}: {self.path}")

    def repository(self, kind, name, revision):
        """The files at a revision ("main" or the commit's id), or None after a 404."""
        files = self.server.repositories.get(f"{kind}/{name}")
        if files is None:
            return self.missing("RepoNotFound")
        if revision not in (None, "main", commit(files)):
            return self.missing("RevisionNotFound")
        return files

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if match := API.match(path):
            kind, name, view, revision, folder = match.groups()
            files = self.repository(kind, name, revision)
            if files is None:
                return None
            if view == "tree":
                listed = listing(files, folder or "", "recursive=true" in self.path.lower())
                return self.reply_json(listed) if listed else self.missing("EntryNotFound")
            facts = {"_id": "0", "id": name, "modelId": name, "sha": commit(files), "private": False, "tags": []}
            facts |= {"siblings": [{"rfilename": p} for p in files], "downloads": 0, "likes": 0, "gated": False}
            return self.reply_json(
                facts | {"disabled": False, "lastModified": "2026-01-01T00:00:00.000Z", "cardData": {}}
            )
        if match := FILE.match(path):
            kind, name, revision, file = match.groups()
            files = self.repository("datasets" if kind else "models", name, revision)
            if files is None:
                return None
            if file not in files:
                return self.missing("EntryNotFound")
            body, headers = files[file], {"X_Repo_Commit": commit(files), "Accept_Ranges": "bytes"}
            headers["ETag"] = f'"{hashlib.sha256(body).hexdigest()}"'
            if wanted := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                first, last = int(wanted[1]), min(int(wanted[2] or len(body)), len(body) - 1)
                headers["Content_Range"] = f"bytes {first}-{last}/{len(body)}"
                return self.reply(206, body[first : last + 1], **headers)
            return self.reply(200, body, **headers)
        return self.missing("RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if match := API.match(unquote(urlsplit(self.path).path)):
            kind, name, view, revision, _ = match.groups()
            files = self.repository(kind, name, revision)
            if files is not None and view == "paths-info":
                form = json.loads(body) if body.startswith(b"{") else parse_qs(body.decode())
                wanted = form["paths"] if isinstance(form["paths"], list) else [form["paths"]]
                return self.reply_json([entry(p, files[p]) for p in wanted if p in files])
        return self.missing("RepoNotFound")

    def log_message(self, *_):
        pass


def entry(path, body):
    return {"type": "file", "path": path, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}


def listing(files, folder, recursive):
    """Files and folders below `folder`, or only the direct ones, as the tree view has them."""
    base = f"{folder}/" if folder else ""
    below = [p for p in files if p.startswith(base)]
    folders = {p[:k] for p in below for k in range(len(base), len(p)) if p[k] == "/"}
    entries = [entry(p, files[p]) for p in below] + [
        {"type": "directory", "path": f, "size": 0, "oid": "0"} for f in folders
    ]
    return [e for e in entries if recursive or "/" not in e["path"][len(base) :]]


@contextmanager
def serve(repositories):
    """Serve {"models/org/name" or "datasets/org/name": {path: bytes}}; gives the endpoint's URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.repositories = repositories
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
