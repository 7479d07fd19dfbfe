"""A small Hugging Face Hub on loopback, in memory: the real client reads, creates, pushes, and meets failures.

with serve({"models/org/net": {"config.json": b"…"}, "datasets/org/data": {…}}) as hub:
    HfApi(endpoint=hub, token="hf_secret").create_tag("org/net", tag="v1")  # hub is the endpoint's URL, a str
    hub.files("models/org/net", "v1")            # {path: bytes}
    hub.commits("models/org/net")                # ids, the newest first
    hub.log                                      # [Request(method, path, size), …]
    hub.faults.append(Fault("PUT", "/lfs/", 503))
    hub.tokens["hf_other"] = ["other", "team"]   # a user, then their organisations
    hub.repositories["models/org/net"].private = True

The client reads its environment when it is imported: see Hub.environment.
"""

import base64
import contextlib
import hashlib
import json
import math
import re
import select
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

LFS = (".safetensors", ".npz", ".png", ".parquet", ".pt2", ".onnx")
LFS_SIZE = 10 << 20  # bytes; larger files of any name are LFS too


class Request(NamedTuple):
    """One that arrived; its path is unquoted and without the query, its size that of the body in bytes."""

    method: str
    path: str
    size: int


@dataclass
class Fault:
    """What becomes of the next `times` requests that match: a wait of `stall` seconds, then one of three replies.

    The wait ends when the client hangs up; math.inf waits for that.

    With `status`, that one, and nothing is done (0: the server hangs up without a word). With `cut`, the true one up to
    so many bytes of its body, then the server hangs up; a commit is made, and its sender does not know. Else the true
    one. The request's body has been received in every case.
    """

    method: str  # a pattern for all of it, as "GET|HEAD"
    path: str  # a pattern for any part of Request.path
    status: int | None = None
    times: int = 1  # counts down to 0
    headers: dict[str, str] = field(default_factory=dict)  # e.g. {"Retry-After": "1"}
    cut: int | None = None
    stall: float = 0.0


class Refusal(Exception):
    """A reply that says no."""

    def __init__(self, status, message, **headers):
        self.status, self.message, self.headers = status, message, headers


def missing(code, message="", **headers):
    return Refusal(404, message or code, X_Error_Code=code, **headers)


class Repository:
    """A git repository in short: objects {oid: bytes}, commits {id: (parent, {path: oid})}, refs {name: id}.

    An oid is git's sha1, or for a file in LFS its sha256: what the client compares to leave unchanged files out.
    """

    def __init__(self, files, private=False):
        self.private, self.objects, self.commits, self.refs = private, {}, {}, {}
        self.refs["refs/heads/main"] = self.commit({p: self.store(b, is_lfs(p, len(b))) for p, b in files.items()})

    def store(self, body, lfs=False):
        oid = hashlib.sha256(body).hexdigest() if lfs else git_oid(body)
        self.objects[oid] = body
        return oid

    def commit(self, tree, parent=None):
        """The new commit's id; no ref points to it yet."""
        sha = hashlib.sha1(repr((len(self.commits), parent, tree)).encode()).hexdigest()
        self.commits[sha] = parent, tree
        return sha

    def resolve(self, revision):
        """The commit's id for a branch, tag, refs/pr/N or commit id."""
        for ref in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if ref in self.refs:
                return self.refs[ref]
        if revision not in self.commits:
            raise missing("RevisionNotFound")
        return revision

    def tree(self, revision):
        return self.commits[self.resolve(revision)][1]

    def entry(self, path, oid):
        """A file as the tree view has it."""
        size = len(self.objects[oid])
        if len(oid) == 40:
            return {"type": "file", "path": path, "size": size, "oid": oid}
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n".encode()
        lfs = {"oid": oid, "size": size, "pointerSize": len(pointer)}
        return {"type": "file", "path": path, "size": size, "oid": git_oid(pointer), "lfs": lfs}

    def listing(self, revision, folder="", recursive=True):
        """Files and folders below `folder`, or only the direct ones, as the tree view has them."""
        base = f"{folder}/" if folder else ""
        below = {path: oid for path, oid in self.tree(revision).items() if path.startswith(base)}
        folders = {path[:k] for path in below for k in range(len(base), len(path)) if path[k] == "/"}
        entries = [self.entry(path, oid) for path, oid in below.items()]
        entries += [{"type": "directory", "path": f, "size": 0, "oid": "0"} for f in sorted(folders)]
        return [e for e in entries if recursive or "/" not in e["path"][len(base) :]]


def git_oid(body):
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def is_lfs(path, size):
    """Never an empty file: the client sends those as regular ones."""
    return size > LFS_SIZE or (size > 0 and path.endswith(LFS))


class Hub(str):
    """The endpoint's URL, with what the server keeps; repositories are named "models/org/net" or "datasets/org/data"."""

    def __init__(self, _):
        self.repositories: dict[str, Repository] = {}
        self.tokens = {"hf_secret": ["org"]}  # the namespaces a token may write to, the user's own first
        self.faults: list[Fault] = []
        self.log: list[Request] = []
        self.lock = threading.Lock()  # one request is carried out at a time

    def environment(self, home, token="hf_secret"):
        """Variables for a process with a client: this Hub, a cache of its own (a folder), uploads without Xet."""
        names = {"HF_ENDPOINT": str(self), "HF_HOME": str(home), "HF_TOKEN": token, "HF_HUB_OFFLINE": "0"}
        return names | dict.fromkeys(["HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY"], "1")

    def files(self, name, revision="main"):
        repository = self.repositories[name]
        return {path: repository.objects[oid] for path, oid in repository.tree(revision).items()}

    def commits(self, name, revision="main"):
        """Ids of a revision's commits, the newest first."""
        repository = self.repositories[name]
        shas = [repository.resolve(revision)]
        while parent := repository.commits[shas[-1]][0]:
            shas.append(parent)
        return shas

    def page(self, name):
        return f"{self}/{name.removeprefix('models/')}"

    def fault(self, method, path):
        """The first rule that matches and is not used up, counted down; or one that does nothing."""
        for fault in self.faults:
            if fault.times > 0 and re.fullmatch(fault.method, method) and re.search(fault.path, path):
                fault.times -= 1
                return fault
        return Fault(method, path)


ROUTES = []  # (method, pattern of the whole path, function); the pattern's groups are the function's arguments
API = r"/api/((?:models|datasets)/[^/]+/[^/]+)"
PAGE = r"/(datasets/)?([^/]+/[^/]+?)"


def route(method, pattern):
    def register(function):
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


class Handler(BaseHTTPRequestHandler):
    """Requests: each route gives what to reply with 200, JSON or (bytes, status, headers), or raises a Refusal."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: without this each reply waits 40 ms

    def handle_request(self):
        self.hub, self.body = self.server.hub, self.receive()
        url = urlsplit(self.path)
        request = Request(self.command, unquote(url.path), len(self.body))
        self.query = parse_qs(url.query)
        with self.hub.lock:
            self.hub.log.append(request)
            fault = self.hub.fault(request.method, request.path)
        if fault.stall:  # the request has been received, so what can be read is that the client has hung up
            select.select([self.connection], [], [], fault.stall if fault.stall < math.inf else None)
        if fault.status == 0:
            self.close_connection = True
            return
        try:
            if fault.status:
                headers = {key.replace("-", "_"): text for key, text in fault.headers.items()}
                raise Refusal(fault.status, "a fault on purpose", **headers)
            with self.hub.lock:
                value = self.answer(url.path)
        except Refusal as no:
            value = json.dumps({"error": no.message}).encode(), no.status, {"X_Error_Message": no.message} | no.headers
        body, status, headers = value if isinstance(value, tuple) else (json.dumps(value).encode(), 200, {})
        self.send_response(status)
        for key, text in ({"Content_Type": "application/json", "Content_Length": len(body)} | headers).items():
            self.send_header(key.replace("_", "-"), str(text))
        if fault.cut is not None:
            body, self.close_connection = body[: fault.cut], True
        try:
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else body)
        except ConnectionError:  # the client did not wait for it
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def log_message(self, *_):
        pass

    def receive(self):
        """The request's body, all of it, whether it comes with its length or in chunks."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def answer(self, path):
        for method, pattern, function in ROUTES:
            if method == self.command.replace("HEAD", "GET") and (match := pattern.fullmatch(path)):
                return function(self, *(group and unquote(group) for group in match.groups()))
        raise missing("RepoNotFound", f"no such address: {path}")

    # Who asks, and for what

    def namespaces(self):
        """Those of the token, none without one; an unknown token may not even read."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.tokens.get(token, [])

    def writer(self, namespace=None):
        """The token's namespaces, which must have some, and `namespace` among them if that is given."""
        mine = self.namespaces()
        if not mine:  # the client takes a 401 for a missing repository over https only; the code has it do so here
            code = {"X_Error_Code": "RepoNotFound"} if self.path.startswith(("/api/models/", "/api/datasets/")) else {}
            raise Refusal(401, "Invalid username or password.", **code)
        if namespace and namespace not in mine:
            raise Refusal(403, f"the token of {mine[0]} has no right to write to {namespace}")
        return mine

    def repository(self, name, right="read"):
        """The repository, if the request has that right: "read", "propose" (any token, where it may read) or "write"."""
        mine = self.namespaces() if right == "read" else self.writer()
        repository, owner = self.hub.repositories.get(name), name.split("/")[1]
        if repository is None or (repository.private and owner not in mine):
            raise Refusal(404 if mine else 401, "Repository not found", X_Error_Code="RepoNotFound")
        if right == "write":
            self.writer(owner)
        return repository

    @route("GET", "/api/whoami-v2")
    def whoami(self):
        name, *organisations = self.writer()
        return {"type": "user", "name": name, "orgs": [{"type": "org", "name": o} for o in organisations]}

    # Repositories and their refs

    def named(self, form):
        """The repository that a form names, in the user's own namespace unless it says otherwise."""
        return f"{form.get('type', 'model')}s/{form['organization'] or self.writer()[0]}/{form['name']}"

    @route("POST", "/api/repos/create")
    def create(self):
        form = json.loads(self.body)
        name = self.named(form)
        self.writer(name.split("/")[1])
        if name in self.hub.repositories:
            return json.dumps({"url": self.hub.page(name)}).encode(), 409, {}
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS)
        first = {".gitattributes": attributes.encode()}  # the Hub's own first commit
        self.hub.repositories[name] = Repository(first, private=form.get("visibility") == "private")
        return {"url": self.hub.page(name)}

    @route("DELETE", "/api/repos/delete")
    def delete(self):
        name = self.named(json.loads(self.body))
        self.repository(name, "write")
        del self.hub.repositories[name]
        return {}

    @route("GET", API + "/refs")
    def refs(self, name):
        found = {"branches": [], "tags": [], "pullRequests": [], "converts": []}
        kinds = {"heads": "branches", "tags": "tags", "pr": "pullRequests"}
        for ref, sha in self.repository(name).refs.items():
            _, kind, short = ref.split("/", 2)
            found[kinds[kind]].append({"name": short, "ref": ref, "targetCommit": sha})
        return found

    @route("POST", API + "/(tag|branch)/([^/]+)")
    def name_commit(self, name, kind, word):
        """A tag's revision or a branch's name is in the address, the other in the form."""
        repository, form = self.repository(name, "write"), json.loads(self.body)
        tag = kind == "tag"
        ref = f"refs/tags/{form['tag']}" if tag else f"refs/heads/{word}"
        if ref in repository.refs:
            raise Refusal(409, f"{ref} exists already")
        repository.refs[ref] = repository.resolve(word if tag else form.get("startingPoint", "main"))
        return {}

    # Reading

    @route("GET", API + "(?:/revision/([^/]+))?")
    def info(self, name, revision):
        repository, short = self.repository(name), name.split("/", 1)[1]
        facts = {"_id": "0", "id": short, "modelId": short, "private": repository.private, "tags": [], "cardData": {}}
        facts |= {"downloads": 0, "likes": 0, "gated": False, "disabled": False}
        facts |= {"sha": repository.resolve(revision or "main"), "lastModified": "2026-01-01T00:00:00.000Z"}
        return facts | {"siblings": [{"rfilename": path} for path in repository.tree(facts["sha"])]}

    @route("GET", API + "/tree/([^/]+)(?:/(.*))?")
    def list_tree(self, name, revision, folder):
        recursive = self.query.get("recursive", [""])[0].lower() == "true"
        listed = self.repository(name).listing(revision, folder or "", recursive)
        if folder and not listed:
            raise missing("EntryNotFound")
        return listed

    @route("POST", API + "/paths-info/([^/]+)")
    def paths_info(self, name, revision):
        wanted = parse_qs(self.body.decode())["paths"]
        return [e for e in self.repository(name).listing(revision) if e["path"] in wanted]

    @route("GET", PAGE + "/resolve/([^/]+)/(.+)")
    def download(self, kind, name, revision, path):
        repository = self.repository((kind or "models/") + name)
        sha = repository.resolve(revision)
        oid = repository.tree(sha).get(path)
        if oid is None:
            raise missing("EntryNotFound", X_Repo_Commit=sha)
        body, status = repository.objects[oid], 200
        headers = {"X_Repo_Commit": sha, "ETag": f'"{oid}"', "Accept_Ranges": "bytes"}
        headers["Content_Type"] = "application/octet-stream"
        if len(oid) == 64:
            headers |= {"X_Linked_Etag": f'"{oid}"', "X_Linked_Size": len(body)}
        if wanted := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2] or len(body)), len(body) - 1)
            headers["Content_Range"] = f"bytes {first}-{last}/{len(body)}"
            body, status = body[first : last + 1], 206
        return body, status, headers

    # Pushing, in the client's order

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self):
        return {"errors": [], "warnings": []}

    @route("POST", API + "/preupload/([^/]+)")
    def preupload(self, name, revision):
        tree = self.repository(name, "propose" if "create_pr" in self.query else "write").tree(revision)
        files = json.loads(self.body)["files"]
        for file in files:
            mode = "lfs" if is_lfs(file["path"], file["size"]) else "regular"
            file |= {"uploadMode": mode, "shouldIgnore": False, "oid": tree.get(file["path"])}
        return {"files": files}

    @route("POST", PAGE + r"\.git/info/lfs/objects/batch")
    def lfs_batch(self, kind, name):
        name, form = (kind or "models/") + name, json.loads(self.body)
        repository = self.repository(name, "write" if "ref" in form else "propose")  # a pull request names no ref
        objects = [{"oid": wanted["oid"], "size": wanted["size"]} for wanted in form["objects"]]
        for wanted in objects:
            if wanted["oid"] not in repository.objects:
                href = f"{self.hub}/lfs/{name}/{wanted['oid']}"
                wanted["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
        return {"transfer": "basic", "objects": objects}

    @route("PUT", "/lfs/(.+)/([0-9a-f]{64})")
    def lfs_put(self, name, oid):
        """No token comes with it."""
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, f"these {len(self.body)} bytes are not {oid}")
        self.hub.repositories[name].store(self.body, lfs=True)
        return {}

    @route("POST", "/lfs/(.+)/([0-9a-f]{64})/verify")
    def lfs_verify(self, name, oid):
        if oid not in self.repository(name, "propose").objects:
            raise missing("EntryNotFound")
        return {}

    @route("POST", API + "/commit/([^/]+)")
    def commit(self, name, revision):
        pull = "create_pr" in self.query
        repository = self.repository(name, "propose" if pull else "write")
        ref = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
        if ref not in repository.refs:
            raise missing("RevisionNotFound")
        lines = [json.loads(line) for line in self.body.splitlines()]
        parent, expected = repository.refs[ref], lines[0]["value"].get("parentCommit")
        if pull and expected:
            parent = repository.resolve(expected)
        elif expected and not parent.startswith(expected):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(repository.commits[parent][1])
        for line in lines[1:]:
            path = line["value"]["path"].rstrip("/")
            if line["key"] == "file":
                tree[path] = repository.store(base64.b64decode(line["value"]["content"]))
            elif line["key"] == "lfsFile":
                tree[path] = line["value"]["oid"]
                if tree[path] not in repository.objects:
                    raise Refusal(400, f"{path} was not uploaded")
            else:  # deletedFile, deletedFolder
                gone = [p for p in tree if (p == path if line["key"] == "deletedFile" else p.startswith(f"{path}/"))]
                if not gone:
                    raise missing("EntryNotFound", "A file with this name doesn't exist")
                for p in gone:
                    del tree[p]
        number = 1 + sum(r.startswith("refs/pr/") for r in repository.refs)
        sha = repository.refs[f"refs/pr/{number}" if pull else ref] = repository.commit(tree, parent)
        page = self.hub.page(name)
        return {"commitOid": sha, "commitUrl": f"{page}/commit/{sha}", "pullRequestUrl": f"{page}/discussions/{number}"}


@contextlib.contextmanager
def serve(repositories):
    """Serve {"models/org/name" or "datasets/org/name": {path: bytes}}; gives the Hub."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = server.hub = Hub(f"http://127.0.0.1:{server.server_port}")
    hub.repositories |= {name: Repository(files) for name, files in repositories.items()}
    thread = threading.Thread(target=server.serve_forever, args=[0.05], daemon=True)  # shutdown is seen that soon
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
