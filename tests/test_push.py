"""Publishing: the real commands with the real client in a process of their own, against a Hub server on loopback."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PYTHON, ROOT, once, python
from hub_server import Fault, serve
from huggingface_hub import ModelCard

import piat_hub
from piat_hub import cli
from piat_hub.hub import card
from piat_hub.hub.push import publication
from piat_hub.hub.save import save_pretrained, save_weights
from piat_hub.records.files import CORRUPTIONS, RECORDS, UNIONS, file_digest, read_json
from piat_hub.records.labels import percent
from piat_hub.records.origin import Origin
from piat_hub.records.rundir import RunDirectory

pytestmark = pytest.mark.slow

SITE = Path(np.__file__).parent.parent  # where the libraries lie
SENT = {"POST", "PUT", "DELETE"}

SHELL = """
import contextlib, io, json, sys, time
from piat_hub import cli
with contextlib.redirect_stdout(io.StringIO()):
    cli.main([])  # as ever, the libraries' environment is set before they are imported
from piat_hub.hub import push as hub
waits = []
time.sleep = waits.append
for line in sys.stdin:
    waits.clear()
    words, hub.SILENCE = json.loads(line)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = cli.main(words)
    print(json.dumps([code, out.getvalue(), err.getvalue(), list(waits)]), flush=True)
"""


class Shell:
    """A process that carries out one command line after another, and only notes how long it would have waited."""

    def __init__(self, environment):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
        self.process = subprocess.Popen([PYTHON, "-c", SHELL], env=environment, **pipes)

    def __call__(self, line, silence=600.0):
        self.process.stdin.write(json.dumps([line.split(), silence]) + "\n")
        self.process.stdin.flush()
        self.code, self.out, self.err, self.waits = json.loads(self.process.stdout.readline())
        assert "hf_secret" not in self.out + self.err
        return self


@pytest.fixture(scope="module")
def endpoint():
    with serve({}) as hub:
        yield hub


@pytest.fixture(scope="module")
def private():
    """A trained and evaluated run, its data and its start named by paths of this machine."""

    def make(folder):
        train = f"train digits --output {folder} --epochs 2 --clean-epochs 0 --train-size 64 --holdout 32 --steps 2"
        for line in (train, f"evaluate {folder} --attacks clean pgd2 --n 40"):
            assert cli.main([*line.split(), "--threads", "1"]) == 0
        config = read_json(folder / "config.json")
        config["piat"] |= {"dataset": "/secret-place/my-digits", "init_from": "/secret-place/older"}
        (folder / "config.json").write_text(json.dumps(config))

    return once("private", make)


@pytest.fixture(scope="module")
def shell(endpoint, tmp_path_factory):
    shell = Shell(endpoint.environment(tmp_path_factory.mktemp("home")))
    yield shell
    shell.process.stdin.close()
    assert shell.process.wait() == 0


@pytest.fixture(autouse=True)
def empty(endpoint):
    endpoint.repositories.clear()
    endpoint.faults.clear()
    endpoint.log.clear()


@pytest.fixture
def run(private, tmp_path):
    return Path(shutil.copytree(private, tmp_path / "run"))


def test_a_push_is_one_commit_of_what_lies_there(endpoint, shell, run):
    assert shell(f"push {run} org/net").code == 0, shell.err
    first, new = endpoint.commits("models/org/net")[::-1]
    assert shell.out == f"pushed  {endpoint}/org/net/commit/{new}\n"
    files = endpoint.files("models/org/net")
    records = {p.name for p in run.iterdir() if p.is_file()} | {".gitattributes"}
    unmeasured = {"sweep.png", "corruptions.png", "results_best.json", "verdicts_best.npz"}
    unmeasured |= {*UNIONS.values(), *CORRUPTIONS.values()}
    assert set(files) == records == {".gitattributes", *RECORDS} - unmeasured
    for name in records - {"config.json", "README.md", ".gitattributes"}:
        assert files[name] == (run / name).read_bytes()
    assert not any(body.startswith(b"\x80") or b"hf_secret" in body for body in files.values())
    text = files["config.json"] + files["README.md"]
    assert b"secret-place" not in text and b"my-digits" in text and b"older" in text
    assert first == endpoint.commits("models/org/net", first)[0]
    endpoint.log.clear()
    assert shell(f"push {run} org/net").out == f"nothing new at {endpoint}/org/net/commit/{new}\n"
    assert not [r for r in endpoint.log if r.method == "PUT" or "/commit/" in r.path]
    assert len(endpoint.commits("models/org/net")) == 2


def test_pictures_of_what_was_measured_on_other_weights_stay_here(run):
    (run / "sweep.png").touch(), (run / "corruptions.png").touch()
    assert not {"sweep.png", "corruptions.png"} & set(publication(RunDirectory.read(run), "ORG/NAME"))
    assert (
        cli.main(f"evaluate {run} --dataset digits --attacks clean pgd2 --n 40 --sweep-eps 0.1 --threads 1".split())
        == 0
    )
    sent = set(publication(RunDirectory.read(run), "ORG/NAME"))
    assert "sweep.png" in sent and "corruptions.png" not in sent


def test_what_a_run_no_longer_has_is_deleted_in_the_same_commit(endpoint, shell, run):
    assert shell(f"push {run} org/net").code == 0
    with torch.no_grad():
        model = piat_hub.from_pretrained(run)
        model.fc.bias += 1
    save_weights(model, run / "model.safetensors")  # results.json is of other weights now
    assert shell(f"push {run} org/net").code == 0
    files = endpoint.files("models/org/net")
    assert "results.json" not in files and "verdicts.npz" not in files
    assert b"Nothing has been measured" in files["README.md"] and len(endpoint.commits("models/org/net")) == 3
    assert [r.path for r in endpoint.log if r.method == "PUT"].count("/lfs/models/org/net") <= 6


def test_results_in_the_hubs_own_form_come_and_go_and_others_stay(endpoint, shell, run):
    for name, change in (("config.json", {"dataset": "cifar10"}), ("results.json", {"name": "cifar10"})):
        content = read_json(run / name)
        content["piat" if name == "config.json" else "dataset"] |= change
        (run / name).write_text(json.dumps(content))
    assert shell(f"push {run} org/net").code == 0, shell.err
    ours = {path for path in endpoint.files("models/org/net") if path.startswith(".eval_results/")}
    assert ours == {
        f".eval_results/piat-uoft-cs--cifar10-{task}-first-40.yaml" for task in ("clean", "pgd-2-linf-eps-0.15")
    }
    repository = endpoint.repositories["models/org/net"]
    others = (".eval_results/theirs.yaml", "onnx/config.json", "docs/README.md", "a/b/results.json")
    tree = repository.tree("main") | {path: repository.store(b"[]") for path in (*others, "old/results.json")}
    repository.refs["refs/heads/main"] = repository.commit(tree, repository.resolve("main"))
    (run / "results.json").unlink()
    assert shell(f"push {run} org/net").code == 0, shell.err
    left = endpoint.files("models/org/net")
    assert {path for path in left if "/" in path} == set(others) and "results.json" not in left


def test_what_was_pushed_is_on_a_board_without_its_weights_and_can_be_verified(endpoint, shell, run):
    (run / "more").mkdir()
    for name in ("results.json", "verdicts.npz"):
        shutil.copy(run / name, run / "more" / name)
    assert shell(f"push {run} org/net").code == 0, shell.err
    endpoint.log.clear()
    board = run.parent / "board"
    assert shell(f"leaderboard org/net@main {run} --output {board}").code == 0, shell.err
    (table,) = read_json(board / "board.json")["tables"]
    theirs, ours = ([row for row in table["models"] if row["model"] == name] for name in ("org/net", run.name))
    assert [row["weights"] for row in theirs] == ["last", "more/last"]
    assert {row["hub"] for row in theirs} == {f"org/net@{endpoint.commits('models/org/net')[0]}"}
    about = {"model", "hub", "beside_the_first"}
    for one, other in zip(theirs, ours, strict=True):
        assert {k: v for k, v in one.items() if k not in about} == {k: v for k, v in other.items() if k not in about}
    assert [r.path for r in endpoint.log if "safetensors" in r.path and r.method == "GET"] == [
        f"/org/net/resolve/{endpoint.commits('models/org/net')[0]}/model.safetensors"  # for its header
    ]
    assert "models:\n- org/net\n" in (board / "README.md").read_text()
    assert 'href="https://huggingface.co/org/net"' in (board / "index.html").read_text()
    assert shell("verify org/net --n 20 --attacks pgd2 --dataset digits").code == 0, shell.err
    assert "the claim stands" in shell.out and "20 of the 40 images of digits" in shell.out
    assert shell(f"leaderboard {run} org/none --output {run.parent / 'other'}").code == 2
    assert "no config.json for 'org/none'" in shell.err and not (run.parent / "other").exists()
    endpoint.faults.append(Fault("GET", "/tree/", 500, times=99))
    assert shell(f"leaderboard org/net --output {run.parent / 'other'}").code == 2
    assert "org/net cannot be looked through" in shell.err and len(shell.err.splitlines()) == 1
    endpoint.faults.clear()
    repository = endpoint.repositories["models/org/net"]
    tree = repository.tree("main")
    tree |= {f"{folder}/results.json": tree["results.json"] for folder in range(300)}
    repository.refs["refs/heads/main"] = repository.commit(tree, repository.resolve("main"))
    endpoint.log.clear()
    assert shell(f"leaderboard org/net --output {run.parent / 'other'}").code == 2
    assert "which no model has; leave it out" in shell.err and len(endpoint.log) < 10


LOADERS = """
import sys, torch, timm, piat_hub.backbones
x = torch.load("x.pt", weights_only=True)
ours, path = piat_hub.from_pretrained("org/net"), piat_hub.from_pretrained(sys.argv[1])
found = [m(x) for m in (ours, path, timm.create_model("hf-hub:org/net", pretrained=True).eval())]
found.append(timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()(x))
new = timm.create_model("hf-hub:org/net", pretrained=True, num_classes=3)
assert torch.equal(new.state_dict()["conv1.weight"], ours.state_dict()["conv1.weight"]) and new(x).shape == (len(x), 3)
assert ours.label_names == tuple("0123456789") and ours.piat["threat_model"]["eps"] == "0.15"
torch.save(torch.stack(found).detach(), "found.pt")
"""
PLAIN = """
import importlib.util, torch
assert importlib.util.find_spec("piat_hub") is None
{lines}
with torch.no_grad():
    torch.save(model(torch.load("x.pt", weights_only=True)), "plain.pt")
"""


def blocks(text):
    return re.findall("```python\n(.*?)```", text, re.DOTALL)


def test_every_loader_gives_the_same_bits(endpoint, shell, run, tmp_path):
    assert shell(f"push {run} org/net").code == 0
    x = torch.rand(5, 1, 8, 8)
    torch.save(x, "x.pt")
    environment = endpoint.environment(tmp_path / "home")
    python("-c", LOADERS, run, check=True, **environment)
    logits = piat_hub.from_pretrained(run)(x).detach()
    assert all(torch.equal(found, logits) for found in torch.load("found.pt", weights_only=True))
    offline = environment | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    python("-c", LOADERS, run, check=True, **offline)
    # the card's own lines, where piat_hub is not installed
    lines = blocks(endpoint.files("models/org/net")["README.md"].decode())[2]
    bare = (
        os.environ | environment | {"PYTHONPATH": str(SITE)}
    )  # without site.py (-S) no installed package adds itself to the path
    subprocess.run([sys.executable, "-S", "-c", PLAIN.format(lines=lines)], env=bare, check=True)
    assert torch.equal(torch.load("plain.pt", weights_only=True), logits)


PULL = "import time; time.sleep = lambda s: None; import piat_hub; print(piat_hub.from_pretrained('org/net').weights_sha256)"


def test_a_pull_survives_cuts_and_a_silent_network(endpoint, shell, run, tmp_path):
    """Cut while it downloads, it goes on; once there, a Hub that hangs up or is gone is no obstacle."""
    assert shell(f"push {run} org/net").code == 0
    environment = endpoint.environment(tmp_path / "home")

    def pull():
        return python("-c", PULL, **environment)

    endpoint.faults.append(Fault("GET", "model.safetensors", cut=100_000, times=2))
    whole = file_digest(run / "model.safetensors")
    assert pull().stdout.strip() == whole
    endpoint.faults.append(Fault("GET|HEAD", "resolve", 0, times=99))
    assert pull().stdout.strip() == whole
    environment["HF_ENDPOINT"] = "http://127.0.0.1:9"
    assert pull().stdout.strip() == whole
    environment["HF_HOME"] = str(tmp_path / "other")
    gone = pull()
    assert gone.returncode == 1 and "no config.json for 'org/net'" in gone.stderr.splitlines()[-1]


def test_a_damaged_download_is_noticed(endpoint, shell, run, tmp_path):
    assert shell(f"push {run} org/net").code == 0
    repository = endpoint.repositories["models/org/net"]
    oid = repository.tree("main")["model.safetensors"]
    body = bytearray(repository.objects[oid])
    body[-1000] ^= 4
    repository.objects[oid] = bytes(body)
    got = python("-c", PULL, **endpoint.environment(tmp_path / "home"))
    assert got.returncode == 1 and "is damaged (its content is not what its checksum says)" in got.stderr


def test_private_branch_and_pull_request(endpoint, shell, run):
    assert shell(f"push {run} org/net --private").code == 0
    assert endpoint.repositories["models/org/net"].private
    with torch.no_grad():
        model = piat_hub.from_pretrained(run)
        model.fc.bias += 1
    save_weights(model, run / "model.safetensors")
    main = endpoint.commits("models/org/net")
    assert shell(f"push {run} org/net --create-pr").code == 0 and "discussions/1" in shell.out
    assert shell(f"push {run} org/net --revision trial").code == 0
    assert endpoint.commits("models/org/net") == main
    for revision in ("refs/pr/1", "trial"):
        sent = endpoint.files("models/org/net", revision)["model.safetensors"]
        assert sent == (run / "model.safetensors").read_bytes()
    assert shell(f"push {run} org/net --revision a --create-pr").code == 2 and "leave out" in shell.err
    endpoint.repositories["models/org/net"].private = False
    assert shell(f"push {run} org/net --private").code == 2 and "is public already" in shell.err


FAILING = {  # what goes wrong -> (faults, words of the line)
    "no token": ([Fault("POST", "/create$", 401)], "run `hf auth login` or set HF_TOKEN"),
    "no right": ([Fault("POST", "/create$", 403)], "the token may not write to org/net"),
    "gone": ([Fault("POST", "/preupload/", 404)], "there is no org/net, or the token may not see it"),
    "conflict": ([Fault("POST", "/commit/", 409)], "a conflict over org/net"),
    "changed meanwhile": ([Fault("POST", "/commit/", 412)], "changed by somebody else meanwhile; push again"),
    "card refused": ([Fault("POST", "/validate-yaml", 400)], "Invalid metadata"),
    "too large": ([Fault("POST", "/preupload/", 413)], "the Hub refuses (413): a fault on purpose"),
    "too often": ([Fault("POST", "/commit/", 429, times=99)], "the Hub asks for a pause"),
    "broken": ([Fault("POST", "/commit/", 500, times=99)], "the Hub answers with 500"),
    "upload refused": ([Fault("PUT", "", 403)], "the token may not write"),
    "uploads cut": (
        [Fault("PUT", "", 0, times=99)],
        "check the network and push again: what has arrived is not sent twice",
    ),
    "silent": (
        [Fault("POST", "/commit/", stall=math.inf, status=500, times=99)],
        "timed out; check the network and push again",
    ),
    "commit cut": (
        [Fault("POST", "/commit/", 0, times=99)],
        "check the network and push again: what has arrived is not sent twice",
    ),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_failed_push_is_one_line_and_publishes_nothing(endpoint, shell, run, name):
    faults, words = FAILING[name]
    endpoint.faults += faults
    shell(f"push {run} org/net", silence=0.5 if name == "silent" else 600.0)
    assert shell.code == 2 and words in shell.err and len(shell.err.splitlines()) == 1, shell.err
    assert "the run is whole" not in shell.err
    if "models/org/net" in endpoint.repositories:
        assert set(endpoint.files("models/org/net")) == {".gitattributes"}
    endpoint.faults.clear()
    endpoint.log.clear()
    assert shell(f"push {run} org/net").code == 0, shell.err
    assert set(RECORDS) > set(endpoint.files("models/org/net")) - {".gitattributes"}
    if "commit" in name or name in (
        "silent",
        "changed meanwhile",
        "broken",
        "too often",
    ):  # the weights were there already
        assert not [r for r in endpoint.log if r.method == "PUT"]


class Watched(list):
    """A log of requests that tells when all of these objects' uploads have arrived."""

    def __init__(self, oids):
        super().__init__()
        self.oids, self.missing, self.complete = list(oids), set(oids), threading.Event()

    def append(self, request):
        super().append(request)
        for oid in self.oids if request.method == "PUT" else ():  # from several threads
            if oid in request.path:
                self.missing.discard(oid)
        if not self.missing:
            self.complete.set()


def test_a_killed_upload_goes_on_where_it_stopped(endpoint, shell, run, tmp_path, monkeypatch):
    """One file's upload never ends and the process is killed: nothing is published, and only that file is sent again."""
    large = ("model.safetensors", "model_best.safetensors", "verdicts.npz", "curves.png")
    oids = {name: file_digest(run / name) for name in large}
    endpoint.faults.append(Fault("PUT", oids["model_best.safetensors"], status=0, stall=math.inf))
    monkeypatch.setattr(endpoint, "log", Watched(oids.values()))
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | endpoint.environment(tmp_path / "home")
    push = subprocess.Popen([PYTHON, "-m", "piat_hub", "push", run, "org/net"], env=environment)
    while not endpoint.log.complete.wait(0.1):
        assert push.poll() is None, "it ended before"
    push.kill()
    push.wait()
    assert set(endpoint.files("models/org/net")) == {".gitattributes"}
    endpoint.log.clear()
    assert shell(f"push {run} org/net").code == 0, shell.err
    sent = [r.path for r in endpoint.log if r.method == "PUT"]
    assert len(sent) == 1 and oids["model_best.safetensors"] in sent[0]
    assert endpoint.files("models/org/net")["model_best.safetensors"] == (run / "model_best.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("fault", "waited"),
    [
        (Fault("POST", "/commit/", 429, headers={"Retry-After": "7"}), [7.0]),
        (Fault("POST", "/commit/", 503), [1.0]),
        (Fault("POST", "/create$", 500), [1.0]),
        (Fault("POST", "/commit/", 0), [1.0]),
        (Fault("POST", "/commit/", cut=0), [1.0]),  # it arrived, the answer did not
    ],
)
def test_a_passing_failure_is_tried_again(endpoint, shell, run, fault, waited):
    endpoint.faults.append(fault)
    assert shell(f"push {run} org/net").code == 0, shell.err
    assert shell.waits == waited and len(endpoint.commits("models/org/net")) == 2


def test_with_a_lost_answer_there_is_no_second_pull_request(endpoint, shell, run):
    endpoint.faults.append(Fault("POST", "/commit/", cut=0))
    assert shell(f"push {run} org/net --create-pr").code == 2
    assert [r for r in endpoint.repositories["models/org/net"].refs if "pr" in r] == ["refs/pr/1"]


def test_a_model_that_others_trained_is_published_as_theirs(endpoint, shell, tmp_path):
    """And is updated later: what piat_hub pushed it knows again, although it trained nothing there."""
    model = piat_hub.create_model("cifar_resnet8", in_chans=1)
    save_pretrained(model, tmp_path / "m", input_size=(1, 8, 8), origin=Origin(name="net", authors="Jane Doe"))
    assert shell(f"push {tmp_path / 'm'} org/net").code == 0, shell.err
    files = endpoint.files("models/org/net")
    assert b"that Jane Doe trained" in files["README.md"] and b"Jane Doe" in files["config.json"]
    assert shell(f"push {tmp_path / 'm'} org/net").out.startswith("nothing new")


def test_others_repositories_are_left_alone(endpoint, shell, run):
    assert shell(f"push {run} other/net").code == 2 and "may not write to other/net" in shell.err
    with serve({"models/org/net": {"config.json": b'{"architecture": "bert"}', "model.safetensors": b"1"}}) as theirs:
        endpoint.repositories["models/org/net"] = theirs.repositories["models/org/net"]
    for flags in ("", " --revision new"):
        assert shell(f"push {run} org/net{flags}").code == 2 and "holds something that piat_hub did not" in shell.err
    assert set(endpoint.repositories["models/org/net"].refs) == {"refs/heads/main"}
    assert len(endpoint.commits("models/org/net")) == 1


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (
            lambda run: (run / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:-9]),
            "not a whole",
        ),
        (lambda run: (run / "model_best.safetensors").write_bytes(b""), "not a whole"),
        (lambda run: (run / "model.safetensors").unlink(), "no model.safetensors"),
        (lambda run: (run / "results.json").write_text("{"), "results.json is damaged"),
        (lambda run: (run / "verdicts.npz").write_bytes(b"noise"), "verdicts.npz cannot be read together"),
        (lambda run: (run / "metrics.jsonl").write_bytes(b"\0noise"), "metrics.jsonl is damaged in line 1"),
        (lambda run: (run / "config.json").unlink(), "is no run directory"),
    ],
)
def test_a_damaged_run_is_not_pushed(endpoint, shell, run, break_it, words):
    break_it(run)
    assert shell(f"push {run} org/net").code == 2 and words in shell.err
    assert not endpoint.log and not endpoint.repositories


def test_training_pushes_at_its_end_and_asks_before_it_begins(endpoint, shell, tmp_path):
    flags = "--epochs 2 --clean-epochs 0 --train-size 64 --holdout 0 --steps 1 --threads 1"
    line = f"train digits {flags} --output {tmp_path / 'r'} --push-to-hub"
    assert shell(f"{line} other/net").code == 2 and "this token writes to org" in shell.err
    assert shell(f"{line} net").code == 2 and "it must be ORG/NAME" in shell.err
    assert not (tmp_path / "r").exists()
    assert shell(f"{line} org/net --private").code == 0, shell.err
    assert shell.out.splitlines()[-1].startswith("pushed  ") and endpoint.repositories["models/org/net"].private
    assert ModelCard(endpoint.files("models/org/net")["README.md"].decode()).data.eval_results is None  # not measured
    assert shell(f"evaluate {tmp_path / 'r'} --attacks clean --n 30 --threads 1").code == 0
    assert shell(f"push {tmp_path / 'r'} org/net").code == 0
    data = ModelCard(endpoint.files("models/org/net")["README.md"].decode()).data
    assert data.model_name == "net" and len(data.eval_results) == 1
    endpoint.faults.append(Fault("POST", "/commit/", 403))
    again = line.replace("/r ", "/s ")
    assert shell(f"{again} org/two").code == 2 and f"the run is whole in {tmp_path / 's'}" in shell.err
    assert shell(f"push {tmp_path / 's'} org/two").code == 0


REGISTERED = """
import json, sys, torch, timm, piat_hub.backbones
x = torch.load("x.pt", weights_only=True)
pinned = piat_hub.from_pretrained("org/net")(x)
by_tag = timm.create_model("cifar_resnet8.piat_digits", pretrained=True, in_chans=1).eval()(x)
now = piat_hub.from_pretrained("org/net@main")(x)
(row,) = piat_hub.list_pretrained()
print(json.dumps([torch.equal(pinned, by_tag), torch.equal(pinned, now), row["model"], row["clean_acc"]]))
print(timm.list_pretrained("cifar*"))
"""


def test_published_models_are_pinned_and_verified(endpoint, shell, run, tmp_path):
    """With a row in published.json: its revision although main has moved on, its checksum, its tag in timm."""
    assert shell(f"push {run} org/net").code == 0
    row = card.summary(run) | {"revision": endpoint.commits("models/org/net")[0], "tag": "piat_digits"}
    with torch.no_grad():
        model = piat_hub.from_pretrained(run)
        model.fc.bias += 1
    save_weights(model, run / "model.safetensors")
    assert shell(f"push {run} org/net").code == 0
    shutil.copytree(ROOT / "piat_hub", tmp_path / "lib/piat_hub")
    registry = tmp_path / "lib/piat_hub/records/published.json"
    registry.write_text(json.dumps({"org/net": row}))
    torch.save(torch.rand(5, 1, 8, 8), "x.pt")
    environment = endpoint.environment(tmp_path / "home") | {"PYTHONPATH": tmp_path / "lib"}
    shown = python("-c", REGISTERED, check=True, **environment)
    facts, tags = shown.stdout.splitlines()
    assert json.loads(facts) == [True, False, "org/net", row["clean_acc"]] and tags == "['cifar_resnet8.piat_digits']"
    listed = python("-m", "piat_hub", "list", **environment).stdout
    assert "org/net" in listed and percent(row["clean_acc"]) + " of 40" in listed
    registry.write_text(json.dumps({"org/net": row | {"weights_sha256": {"last": "0" * 64}}}))
    refused = python("-m", "piat_hub", "evaluate", "org/net", "--dataset", "digits", **environment)
    assert refused.returncode == 2 and "is not what we published as org/net" in refused.stderr
