"""The Hub that tests push to, seen by the real client: what it keeps, whom it refuses, how it fails on purpose."""

import hashlib
import http.client
import math
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx2
import huggingface_hub
import pytest
from conftest import python
from hub_server import Fault, serve
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

NET = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 40, "img/a.png": b"a", "README.md": b"---\n---\n"}


pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own way to PUT


@pytest.fixture
def waits(monkeypatch):
    """The client of this process, online and without Xet; gives the seconds it would have waited between retries."""
    seconds = []
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name, value in {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    for module in ("utils._http", "file_download"):
        monkeypatch.setattr(f"huggingface_hub.{module}.time", SimpleNamespace(sleep=seconds.append))
    return seconds


@pytest.fixture
def hub(waits):
    with serve({"models/org/net": NET, "datasets/org/data": {"README.md": b"old"}, "models/team/net": {}}) as hub:
        yield hub


def push(hub, files, token="hf_secret", name="org/net", **options):
    """Commit files, those that are None by deletion."""
    operations = [
        CommitOperationDelete(path) if body is None else CommitOperationAdd(path, body) for path, body in files.items()
    ]
    return HfApi(endpoint=hub, token=token).create_commit(name, operations, commit_message="push", **options)


def refused(status, kind, function, *args, **options):
    with pytest.raises(kind) as caught:
        function(*args, **options)
    assert caught.value.response.status_code == status
    return str(caught.value)


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_pushed_folder_comes_back(hub, kind, tmp_path):
    api = HfApi(endpoint=hub, token="hf_secret")
    url = api.create_repo("org/new", repo_type=kind)
    assert api.create_repo("org/new", repo_type=kind, exist_ok=True) == url
    first = api.repo_info("org/new", repo_type=kind).sha
    for path, body in NET.items():
        (tmp_path / "up" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "up" / path).write_bytes(body)
    commit = api.upload_folder(repo_id="org/new", repo_type=kind, folder_path=tmp_path / "up", parent_commit=first)
    name = f"{kind}s/org/new"
    assert hub.commits(name) == [commit.oid, first] and hub.files(name, first).keys() == {".gitattributes"}
    assert hub.files(name) == hub.files(name, first) | NET
    folder = snapshot_download("org/new", repo_type=kind, endpoint=hub, cache_dir=tmp_path / "cache")
    assert {p: (Path(folder) / p).read_bytes() for p in hub.files(name)} == hub.files(name)
    uploaded = [request.size for request in hub.log if request.method == "PUT"]
    assert sorted(uploaded) == [1, len(NET["model.safetensors"])]
    api.delete_repo("org/new", repo_type=kind)
    assert not api.repo_exists("org/new", repo_type=kind)


def test_an_identical_push_sends_no_file_and_makes_no_commit(hub):
    head = hub.commits("models/org/net")
    assert push(hub, NET).oid == head[0] and hub.commits("models/org/net") == head
    assert not [request for request in hub.log if request.method == "PUT" or "/commit/" in request.path]
    hub.log.clear()
    push(hub, NET | {"config.json": b"{ }"})
    assert [r.path for r in hub.log if r.method == "PUT" or "/commit/" in r.path] == ["/api/models/org/net/commit/main"]
    assert hub.commits("models/org/net")[1:] == head


def test_a_commit_is_made_as_a_whole_or_not(hub):
    wrong = {"new.txt": b"1", "model.safetensors": b"other", "none.txt": None}
    refused(404, HfHubHTTPError, push, hub, wrong)
    assert hub.files("models/org/net") == NET
    push(hub, {"new.txt": b"1", "config.json": None, "img/": None})
    assert hub.files("models/org/net").keys() == {"model.safetensors", "README.md", "new.txt"}


def test_a_stale_parent_is_refused(hub):
    head = hub.commits("models/org/net")[0]
    push(hub, {"new.txt": b"1"}, parent_commit=head)
    assert "commit has happened since" in refused(412, HfHubHTTPError, push, hub, {"new.txt": b"2"}, parent_commit=head)
    assert hub.files("models/org/net")["new.txt"] == b"1"


def test_revisions_keep_their_files(hub, tmp_path):
    api = HfApi(endpoint=hub, token="hf_secret")
    api.create_tag("org/net", tag="v1")
    refused(409, HfHubHTTPError, api.create_tag, "org/net", tag="v1")
    api.create_branch("org/net", branch="dev/x", revision="v1")
    refused(409, HfHubHTTPError, api.create_branch, "org/net", branch="dev/x")
    shas = {"v1": hub.commits("models/org/net")[0]}
    shas["main"] = push(hub, {"config.json": b"main"}).oid
    shas["dev/x"] = push(hub, {"config.json": b"dev/x"}, revision="dev/x").oid
    pull = push(hub, {"config.json": b"pull"}, create_pr=True, parent_commit=shas["v1"])
    assert pull.pr_revision == "refs/pr/1" and hub.commits("models/org/net", "refs/pr/1") == [pull.oid, shas["v1"]]
    for revision, body in {"v1": b"{}", "main": b"main", "dev/x": b"dev/x", "refs/pr/1": b"pull"}.items():
        sha = shas.get(revision, pull.oid)
        assert api.model_info("org/net", revision=revision).sha == sha
        for name in (revision, sha):
            file = hf_hub_download("org/net", "config.json", revision=name, endpoint=hub, cache_dir=tmp_path)
            assert Path(file).read_bytes() == body and sha in file
    refs = api.list_repo_refs("org/net", include_pull_requests=True)
    found = {ref.name: ref.target_commit for ref in (*refs.branches, *refs.tags)}
    assert found == shas and [ref.target_commit for ref in refs.pull_requests] == [pull.oid]
    refused(404, RevisionNotFoundError, push, hub, {"config.json": b"2"}, revision="v9")


def test_who_may_write(hub):
    hub.tokens["hf_team"] = ["someone", "team"]
    before = hub.files("models/team/net")
    create = {token: HfApi(endpoint=hub, token=token).create_repo for token in (False, "hf_wrong", "hf_secret")}
    refused(401, RepositoryNotFoundError, push, hub, NET, token=False, name="team/net")
    refused(401, HfHubHTTPError, create[False], "team/other")
    assert "Invalid credentials" in refused(401, HfHubHTTPError, push, hub, NET, token="hf_wrong", name="team/net")
    assert "no right to write" in refused(403, HfHubHTTPError, push, hub, NET, name="team/net")
    refused(403, HfHubHTTPError, create["hf_secret"], "team/other")
    assert hub.files("models/team/net") == before and "models/team/other" not in hub.repositories
    assert push(hub, NET, name="team/net", create_pr=True).pr_num == 1  # asks for no right but to read
    push(hub, NET, token="hf_team", name="team/net")
    assert hub.files("models/team/net") == NET


def test_a_private_repository_is_hidden_from_others(hub, tmp_path):
    hub.tokens["hf_team"] = ["team"]
    HfApi(endpoint=hub, token="hf_secret").create_repo("org/mine", private=True)
    push(hub, NET, name="org/mine")
    fetch = dict(repo_id="org/mine", filename="config.json", endpoint=hub, cache_dir=tmp_path)
    refused(401, RepositoryNotFoundError, hf_hub_download, **fetch, token=False)
    refused(404, RepositoryNotFoundError, hf_hub_download, **fetch, token="hf_team")
    assert Path(hf_hub_download(**fetch, token="hf_secret")).read_bytes() == b"{}"


def test_failures_that_the_client_outlasts(hub, waits):
    hub.faults += [Fault("POST", "/preupload/", 429, headers={"Retry-After": "3"}), Fault("PUT", "/lfs/", 503, times=2)]
    hub.faults += [Fault("POST", "/verify$", 0)]
    push(hub, {"model.safetensors": b"other"})
    assert hub.files("models/org/net")["model.safetensors"] == b"other"
    assert waits == [4, 1, 2, 1] and not any(fault.times for fault in hub.faults)


def test_failures_of_a_commit_are_final(hub, waits):
    files, head = {"model.safetensors": b"other"}, hub.commits("models/org/net")
    hub.faults.append(Fault("POST", "/commit/", 503, headers={"X-Error-Message": "out for lunch"}))
    assert "out for lunch" in refused(503, HfHubHTTPError, push, hub, files)
    hub.faults.append(Fault("POST", "/commit/", 0))
    with pytest.raises(httpx2.RemoteProtocolError):
        push(hub, files)
    assert hub.commits("models/org/net") == head
    hub.faults.append(Fault("POST", "/commit/", cut=0))  # it is made, and the reply is lost
    with pytest.raises(httpx2.RemoteProtocolError):
        push(hub, files)
    assert hub.commits("models/org/net")[1:] == head and hub.files("models/org/net") == NET | files
    assert waits == []


def test_a_cut_download_goes_on_where_it_stopped(hub, waits, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 2000)  # only whole chunks (of 10 MB) are kept
    fetch = dict(repo_id="org/net", filename="model.safetensors", endpoint=hub, cache_dir=tmp_path)
    hub.faults.append(Fault("GET", "/resolve/", cut=2500, times=99))
    assert Path(hf_hub_download(**fetch)).read_bytes() == NET["model.safetensors"]
    assert waits == [1] * 4  # 10240 bytes in five replies
    hub.faults[:] = [Fault("GET", "/resolve/", cut=1000, times=99)]
    with pytest.raises(httpx2.RemoteProtocolError):
        hf_hub_download(**fetch, force_download=True)
    assert waits == [1] * 9


def test_a_hub_that_stalls_gives_way_to_the_cache(hub, tmp_path):
    fetch = dict(repo_id="org/net", filename="config.json", endpoint=hub, cache_dir=tmp_path)
    file = hf_hub_download(**fetch)
    hub.faults.append(Fault("HEAD", "/resolve/", stall=math.inf))
    assert hf_hub_download(**fetch, etag_timeout=0.05) == file and [request.method for request in hub.log][2:] == [
        "HEAD"
    ]


def test_an_upload_in_chunks(hub):
    body, url = b"weights", urlsplit(hub)
    path = f"/lfs/models/org/net/{hashlib.sha256(body).hexdigest()}"
    connection = http.client.HTTPConnection(url.hostname, url.port)
    connection.request("PUT", path, iter([body[:3], body[3:]]), {"Transfer-Encoding": "chunked"}, encode_chunked=True)
    assert connection.getresponse().status == 200 and hub.log == [("PUT", path, 7)]
    connection.close()
    push(hub, {"new.safetensors": body})
    assert hub.files("models/org/net")["new.safetensors"] == body and [r.method for r in hub.log].count("PUT") == 1


PROCESS = """
import huggingface_hub as h
h.create_repo("org/new")
h.upload_file(path_or_fileobj=b"weights", path_in_repo="model.safetensors", repo_id="org/new")
print(open(h.hf_hub_download("org/new", "model.safetensors")).read())
"""


def test_a_process_of_its_own_needs_the_environment_only(hub, tmp_path):
    done = python("-c", PROCESS, check=True, **hub.environment(tmp_path))
    assert done.stdout.split() == ["weights"]
    assert hub.files("models/org/new")["model.safetensors"] == b"weights" and "PUT" in {r.method for r in hub.log}
