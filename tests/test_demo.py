"""The page where anyone sees an attack: the steps it shows, its words and pictures; and in a real browser, what a visitor meets."""

import base64
import dataclasses
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
import yaml
from conftest import PYTHON, ROOT, python
from PIL import Image

from piat_hub import attacks, cli
from piat_hub.config import InputError, ThreatModel
from piat_hub.data import to_unit
from piat_hub.demo import page, shown, space
from piat_hub.demo.attack import watched
from piat_hub.demo.panel import Trail, panel, refused
from piat_hub.records.files import file_digest, read_json, sealed
from piat_hub.records.rundir import RunDirectory

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LACKING = [name for name in ("gradio", "playwright") if not importlib.util.find_spec(name)]
LACKING += [] if CHROMIUM else ["a Chromium"]


def browser(test):
    """What needs a browser, and a page for it to open."""
    lacks = pytest.mark.skipif(bool(LACKING), reason=f"not here: {', '.join(LACKING)}")
    return pytest.mark.slow(pytest.mark.browser(lacks(test)))


@pytest.fixture(scope="module")
def digits():
    return shown.load(shown.DIGITS)


# what is shown


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("name", ["pgd", "cw"])
def test_the_last_image_is_that_of_the_whole_attack(name, norm, digits):
    """Taken a step at a time, from the image itself, it is the attack itself to the last bit."""
    model = digits[1]
    x, y = model.sees(4)
    images, answers = zip(*watched(model.model, x, y, name, norm, 0.2, 7), strict=True)
    whole = getattr(attacks, name)(model.model, x, y, 0.2, 0.05, 7, norm=norm, start=0.0)
    assert len(images) == 8 and torch.equal(images[0], x) and torch.equal(images[-1], whole)
    assert all(torch.equal(p, model.model(z).softmax(1)) for z, p in zip(images, answers, strict=True))


def test_each_step_is_a_quarter_of_eps(linear):
    """Two classes of a linear model: the worst image of the ball is x - eps sign(w_y - w_k), reached in four steps."""
    weight = torch.tensor([[1.0, -2, 3, 0.5], [-1.0, 1, 1, 0]])
    x, y = torch.full((1, 1, 2, 2), 0.5), torch.tensor([0])
    direction = (weight[1] - weight[0]).sign().view(1, 1, 2, 2)
    steps = list(watched(linear(weight), x, y, "pgd", "Linf", 0.2, 6))
    for step, (x_adv, answer) in enumerate(steps):
        assert torch.allclose(x_adv, x + direction * min(0.05 * step, 0.2), atol=1e-6)
        assert torch.allclose(answer, (x_adv.flatten(1) @ weight.T).softmax(1))


def test_without_a_budget_there_is_the_clean_image(digits):
    x, y = digits[0].sees(0)
    ((found, _),) = watched(digits[0].model, x, y, "pgd", "Linf", 0.0, 20)
    assert torch.equal(found, x)


def test_a_class_that_nobody_knows_is_the_one_seen(digits):
    model = digits[0].model
    x, _ = digits[0].sees(2)
    seen = model(x).argmax(1)
    mine, given = (list(watched(model, x, y, "pgd", "Linf", 0.15, 3)) for y in (None, seen))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(mine, given, strict=True))
    assert mine[-1][1][0, seen] < mine[0][1][0, seen]


def test_what_is_no_answer_is_refused(tiny):
    model = tiny(pixels=12)
    model.net[1].bias.data.fill_(torch.nan)
    with pytest.raises(InputError, match="NaN or Inf for this picture"):
        list(watched(model, torch.rand(1, 3, 2, 2), None, "pgd", "Linf", 0.1, 2))


def test_with_the_models_of_the_package_the_difference_strikes_the_eye(digits):
    """Under their own budget the ordinary one loses nearly all of the images offered, the robust one keeps most."""
    kept = []
    for model in digits:
        x, y = to_unit(model.tests.images), model.tests.labels
        *_, (_, answers) = watched(model.model, x, y, "pgd", "Linf", 0.15, 20)
        assert (model.model(x).argmax(1) == y).sum() >= 19 and model.threat_model == ThreatModel("Linf", 0.15)
        kept.append(int((answers.argmax(1) == y).sum()))
    assert kept[0] <= 2 and kept[1] >= 12, kept


def test_the_slider_fits_the_model_in_either_norm(digits):
    assert page.slider(digits[0], "Linf")["value"] == 38.25  # 0.15 of 255
    two = page.budget(digits[0], "L2")
    assert two.eps == pytest.approx(0.15 * 8 / 2)  # half of the way to a corner of the Linf ball, 8 pixels a side
    l2 = ThreatModel("L2", 0.5)
    trained = shown.Shown("", "", digits[0].model, l2, (3, 32, 32), "none")
    assert page.budget(trained) == l2 and page.budget(trained, "Linf").eps == pytest.approx(1 / (3 * 32 * 32) ** 0.5)
    for norm in page.UNITS:
        found = page.slider(trained, norm)
        ticks = found["value"] / found["step"]
        assert 0 == found["minimum"] < found["value"] <= found["maximum"] and ticks == pytest.approx(round(ticks))


# what it says


def trail(answers, names=("cat", "dog"), name="one", own=0):
    """Of a grey image that turns lighter."""
    images = [torch.full((1, 1, 2, 2), 0.25), *[torch.full((1, 1, 2, 2), 0.5)] * (len(answers) - 1)]
    return Trail(name, names, own, [(x, torch.tensor([answer])) for x, answer in zip(images, answers, strict=True)])


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2]], "one still sees cat, at 80.00 %"),
        ([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]], "one is misled at step 2, from cat into dog"),
        ([[0.9, 0.1], [0.1, 0.9], [0.8, 0.2]], "one is misled at step 1, from cat into dog"),
        ([[0.4, 0.6], [0.1, 0.9]], "one sees dog without any attack"),
        ([[0.9, 0.1]], "one sees cat, at 90.00 %"),
    ],
)
def test_a_sentence_says_what_happened(answers, told):
    assert trail(answers).told() == told


def test_where_nobody_knows_the_class_it_is_the_one_seen_at_first():
    found = trail([[0.4, 0.6], [0.7, 0.3]], own=None)
    assert found.told() == "one is misled at step 1, from dog into cat" and found.trust == pytest.approx([0.6, 0.3])


def pngs(html):
    """The pictures in a panel, as levels."""
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in found]


def test_a_panel_holds_the_exact_pictures_and_says_how_far_the_change_is_magnified():
    html = panel([trail([[0.9, 0.1], [0.2, 0.8]])], "PGD-1", ThreatModel("Linf", 0.25), 1)
    clean, change, attacked = pngs(html)
    assert (clean == 64).all() and (attacked == 128).all()
    assert (change == 255).all() and "perturbation ×\u00a02" in html  # 0.5 + 2 * 0.25
    assert "PGD-1, Linf eps 0.25: one is misled at step 1, from cat into dog." in html
    colour = torch.rand(1, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    found = Trail("one", (), 0, [(colour, torch.tensor([[0.9, 0.1]]))])
    clean, change, attacked = pngs(panel([found], "PGD-1", None, 1))
    assert np.array_equal(clean, np.rint(255 * colour[0].permute(1, 2, 0).numpy())) and np.array_equal(clean, attacked)
    assert (change == 128).all()


def test_a_panel_under_way_says_how_far_it_is():
    html = panel([trail([[0.9, 0.1], [0.8, 0.2]])], "PGD-4", ThreatModel(), 4)
    assert "Step 1 of 4. PGD-4, Linf eps 8/255: one still sees cat" in html
    assert re.search(r'points="30\.0,23\.0 120\.0,36\.0"', html)  # from the left edge, a quarter of the way


def test_names_are_text():
    hostile = ("<img src=x onerror=alert(1)>", "${alert(1)} {{value}}")
    html = panel([trail([[0.9, 0.1]], names=hostile, name="<script>")], "PGD-1", None, 1)
    assert "<script>" not in html and "<img src=x" not in html and "&lt;script&gt;" in html
    assert "<b>" not in refused("<b>")


# pictures and models


def png(width, height, mode="RGB", **save):
    out = io.BytesIO()
    Image.new(mode, (width, height)).save(out, "PNG", **save)
    return out.getvalue()


PICTURES = {  # what is uploaded, and what is said of it
    "broken.png": (png(20, 20)[:50], r"^broken.png is not an image file \(.+\); drop it, or save it anew$"),
    "words.png": (b"no picture", r"^words.png is not an image file \(its format is none of BMP, GIF,"),
    "wide.png": (
        png(20_000, 20_000, "1"),
        r"^wide.png is not an image file \(it has more pixels than Pillow opens, 178,956,970\)",
    ),
    "long.png": (png(20_000, 2, "1"), r"^long.png has 20,000 x 2 pixels, more than 10,000 a side; make it smaller$"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_that_cannot_be_shown_is_refused_in_words(name, digits, tmp_path):
    content, said = PICTURES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        digits[0].sees(str(tmp_path / name))
    (html,) = page.attacked(digits, str(tmp_path / name), "Linf", 38.25, "pgd", 5)
    assert 'role="alert"' in html and name in html and str(tmp_path) not in html


def test_a_picture_comes_in_each_models_size_and_colour(tmp_path, digits):
    picture = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "p.png")
    coloured = shown.Shown("", "", torch.nn.Flatten(), None, (3, 24, 40), "none")
    assert coloured.sees(str(tmp_path / "p.png"))[0].shape == (1, 3, 24, 40)
    (x, y), (test, label) = digits[0].sees(str(tmp_path / "p.png")), digits[0].sees(3)
    assert x.shape == test.shape == (1, 1, 8, 8) and y is None and label.shape == (1,)


MODELS = """
import torch

grey = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
half = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).bfloat16()
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """mine.py in the current directory, with models of anyone's."""
    (tmp_path / "mine.py").write_text(MODELS)
    sys.modules.pop("mine", None)  # another test's
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield
    sys.modules.pop("mine", None)


def test_anyones_model_is_shown_on_the_data_that_are_named(mine):
    models = shown.load(["mine:grey", "mine:half", shown.DIGITS[1]], "digits")
    assert [model.name for model in models] == ["mine-grey", "mine-half", "robust"]
    assert {model.shape for model in models} == {(1, 8, 8)}
    *_, html = page.attacked(models, 0, "L2", 0.6, "cw", 3)
    assert len(pngs(html)) == 9 and f"CW-3, {ThreatModel('L2', 0.6)}: mine-grey" in html


def test_models_of_one_name_are_told_apart(tmp_path):
    (tmp_path / "a").mkdir()
    shutil.copytree(shown.DIGITS[1], tmp_path / "a" / "robust")
    assert [model.name for model in shown.load(["a/robust", shown.DIGITS[1]])] == ["a/robust", shown.DIGITS[1]]


def test_a_model_without_its_data_is_shown_on_pictures_alone(tmp_path, digits):
    """A model from elsewhere may not choose a folder of this machine; with pictures it is shown all the same."""
    shutil.copytree(shown.DIGITS[1], tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["piat"]["dataset"] = "/etc"
    (tmp_path / "m" / "config.json").write_text(json.dumps(sealed(config)))
    models = shown.load(["m", shown.DIGITS[0]])
    assert all("may not choose" in model.tests for model in models)
    Image.new("L", (30, 30), 200).save(tmp_path / "p.png")
    assert "Choose a picture first." in next(page.attacked(models, None, "Linf", 8, "pgd", 2))
    *_, html = page.attacked(models, str(tmp_path / "p.png"), "Linf", 8, "pgd", 2)
    assert "Probability of the class seen at first" in html and len(pngs(html)) == 6
    with pytest.raises(InputError, match="no data set 'nowhere'"):
        shown.load(["m"], "nowhere")


def test_models_of_other_data_are_no_pair(tmp_path, monkeypatch, digits):
    others = iter([digits[0].tests, dataclasses.replace(digits[0].tests, name="other")])
    monkeypatch.setattr(shown, "evaluation_data", lambda *_: next(others))
    with pytest.raises(InputError, match="ordinary is for digits and .*robust is for other: they share no test images"):
        shown.load(shown.DIGITS)


# the command


BAD = [
    ("demo --port 0", "--port must be from 1 to 65535, got 0"),
    ("demo --prot 7", "unknown argument '--prot' .did you mean '--port'"),
    ("demo nowhere", "'nowhere' is no Hub id"),
    ("demo mine:grey", "mine:grey does not say what images it takes; name its data with --dataset"),
    ("demo --dataset nowhere", "no data set 'nowhere'"),
    ("demo --export full", "full holds something already"),
    ("demo local-dir:m --export new", "local-dir:m is a folder on this machine, which a Space has not; push it"),
    ("demo mine:grey --export new", "mine:grey is code on this machine, which a Space has not"),
    ("demo --dataset full --export new", "full is a folder on this machine, which a Space has not"),
    ("demo nowhere --export new", "'nowhere' is no Hub id"),
    ("demo --export full/x", "full/x is a file"),
]


@pytest.mark.parametrize(("line", "message"), BAD, ids=[line for line, _ in BAD])
def test_bad_input_is_one_line_and_leaves_nothing(line, message, mine, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("piat_hub.cli.demo.find_spec", lambda name: name)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    before = sorted(tmp_path.iterdir())
    assert cli.main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(f"piat demo: error: .*{message}.*\n", err), err
    assert sorted(path for path in tmp_path.iterdir() if path.name != "__pycache__") == before


def test_without_gradio_a_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("piat_hub.cli.demo.find_spec", lambda name: None)
    assert cli.main(["demo"]) == 2
    assert (
        capsys.readouterr().err
        == "piat demo: error: the page needs one more package: pip install 'PATH/TO/piat_hub[demo]'\n"
    )


# in a browser


WATCHED = """
import sys

def note(event, given):
    if event in ("socket.connect", "socket.getaddrinfo"):
        address = given[0] if event == "socket.getaddrinfo" else given[1]
        print("asked", address if isinstance(address, str) else address[0], flush=True)

sys.addaudithook(note)
from piat_hub.cli import main
sys.exit(main(["demo", "--no-browser", *sys.argv[1:]]))
"""


class Served:
    """`piat demo`, in a process that tells whom it asks for something."""

    def __init__(self, *words):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "http_proxy": "http://127.0.0.1:9"}  # where nobody is
        command = [PYTHON, "-c", WATCHED, *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, **pipes)
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.match(r"page +(http://127\.0\.0\.1:(\d+)/) \(Ctrl-C ends it\)$", line):
                self.url, self.port = found[1], int(found[2])
                return
        raise AssertionError(self.process.stderr.read())

    def end(self, number=signal.SIGINT):
        """(exit code, what it said after it was open, its errors)."""
        self.process.send_signal(number)
        out, err = self.process.communicate()
        return self.process.returncode, [*self.lines, *out.splitlines()], err


@pytest.fixture(scope="module")
def served():
    found = Served()
    yield found
    found.end()


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags, timeout=600_000)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, served):
    """Opens the page as another visitor, once both models have answered; its `asked` are the addresses it asked for."""
    contexts = []

    def open_page(**options):
        contexts.append(chromium.new_context(**options))
        contexts[-1].set_default_timeout(600_000)  # milliseconds, for the busiest of machines
        found = contexts[-1].new_page()
        found.asked, found.errors = [], []
        found.on("request", lambda request: found.asked.append(request.url))
        found.on("pageerror", lambda error: found.errors.append(str(error)))
        found.goto(served.url)
        answered(found, "PGD-20, Linf eps 0.15")
        return found

    yield open_page
    for context in contexts:
        context.close()


def answered(visited, begins):
    """The sentence, once it begins so: the attack is at its end."""
    visited.wait_for_function("begins => document.querySelector('.said')?.innerText.startsWith(begins)", arg=begins)
    return visited.inner_text(".said")


def shown_pngs(visited):
    """The pictures that the page shows: clean, perturbation and attacked of each model."""
    return pngs(visited.inner_html("#seen"))


def upload(visited, name, content):
    """Give the page a file, as a visitor does."""
    Path(name).write_bytes(content)  # each test has a folder of its own
    visited.set_input_files("#upload input", name)


def drawn(seed):
    """A picture of its own for each seed, 40 x 30."""
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


@browser
def test_the_page_opens_with_an_attack_and_asks_nobody_else(visit, served):
    visited = visit()
    said = answered(visited, "PGD-20")
    assert "ordinary is misled at step" in said and "robust still sees" in said
    assert len(shown_pngs(visited)) == 6 and visited.locator(".curve polyline").count() == 2
    upload(visited, "mine.png", drawn(0))
    visited.wait_for_selector("text=class seen at first")
    assert len(visited.asked) > 20 and not visited.errors
    assert {urlsplit(address).hostname for address in visited.asked} - {None} == {"127.0.0.1"}  # None: data:


@browser
def test_a_visitor_takes_a_test_image_and_any_setting(visit, digits):
    visited = visit()
    before = visited.get_attribute(".models img >> nth=0", "src")
    visited.click("#tests button >> nth=3")
    visited.wait_for_function("before => document.querySelector('.models img').src != before", arg=before)
    label = digits[0].tests.label_names[digits[0].tests.labels[3]]
    assert re.search(rf"from {label} into|sees {label},", answered(visited, "PGD-20, Linf eps 0.15"))
    assert np.array_equal(shown_pngs(visited)[0], digits[0].tests.images[3, 0].numpy())
    visited.click("#attack >> text=CW")
    answered(visited, "CW-20, Linf eps 0.15")
    visited.fill("#steps input[type=number]", "5")
    answered(visited, "CW-5, Linf eps 0.15")
    visited.click("#norm >> text=L2")
    answered(visited, f"CW-5, {ThreatModel('L2', 0.6)}")
    assert "levels" not in visited.inner_text("#eps")
    visited.click("#norm >> text=Linf")
    answered(visited, "CW-5, Linf eps 0.15")


@browser
def test_the_slider_at_eps_0_gives_the_clean_image(visit):
    visited = visit()
    clean, _, attacked = shown_pngs(visited)[:3]
    assert not np.array_equal(clean, attacked)
    visited.press("#eps input[type=range]", "Home")
    said = answered(visited, "No change, eps 0: ordinary sees ")
    assert "misled" not in said
    for clean, change, attacked in zip(*[iter(shown_pngs(visited))] * 3, strict=True):
        assert np.array_equal(clean, attacked) and (change == 128).all()


@browser
def test_what_cannot_be_shown_is_refused_in_words_and_the_page_goes_on(visit):
    visited = visit()
    for name, (content, _) in PICTURES.items():
        upload(visited, name, content)
        visited.wait_for_selector(f"[role=alert]:has-text('{name} ')")
        visited.click("#upload [aria-label=Clear]")
    upload(visited, "large.png", bytes(21 * 10**6))
    visited.wait_for_selector("text=exceed the maximum allowed size of 20")
    upload(visited, "words.txt", b"hello")
    visited.wait_for_selector("text=Only image allowed")
    visited.reload()
    answered(visited, "PGD-20")
    upload(visited, "good.png", drawn(1))
    visited.wait_for_selector("text=class seen at first")


@browser
def test_visitors_at_once_do_not_mix(visit):
    """Each sees an answer to the own picture, also where all press at the same time; and it is the same as alone."""
    visitors, alone = [visit() for _ in range(3)], []
    for seed, visited in enumerate(visitors):
        upload(visited, "mine.png", drawn(seed))
        visited.wait_for_selector("text=class seen at first")
        answered(visited, "PGD-20")
        alone.append((visited.inner_text(".said"), [picture.tolist() for picture in shown_pngs(visited)]))
    assert len({str(pictures) for _, pictures in alone}) == 3
    for visited in visitors:
        visited.fill("#steps input[type=number]", "100")
    for visited in visitors:
        answered(visited, "PGD-100")
        visited.fill("#steps input[type=number]", "20")
    together = [
        (answered(visited, "PGD-20"), [picture.tolist() for picture in shown_pngs(visited)]) for visited in visitors
    ]
    assert together == alone


@browser
def test_on_a_telephone_nothing_leaves_the_screen(visit):
    visited = visit(viewport={"width": 390, "height": 844}, color_scheme="dark")
    assert visited.evaluate("document.documentElement.scrollWidth") == 390
    boxes = [visited.locator(name).bounding_box() for name in ("#go", "#eps", "#tests", ".models article >> nth=1")]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in boxes)


@browser
def test_no_file_is_given_out_or_read_but_what_was_uploaded(visit, served):
    """Neither by its address nor by naming it as if it had been uploaded."""
    visited = visit()
    for path in ("/etc/hostname", f"{ROOT}/README.md", "README.md"):
        with pytest.raises(urllib.error.HTTPError, match="403|404"):
            urllib.request.urlopen(f"{served.url}gradio_api/file={path}")
    ask = """async path => {
        const post = (to, body) => fetch('/gradio_api/' + to, {method: 'POST', body, headers});
        let headers = {};
        if (path === null) {
            const form = new FormData();
            form.append('files', new File(['x'], 'x.png'));
            [path] = await (await post('upload', form)).json();
        }
        const {dependencies} = await (await fetch('/config')).json();
        const fn_index = dependencies.find(one => one.targets.some(([_, event]) => event == 'upload')).id;
        const data = [{path, meta: {_type: 'gradio.FileData'}}];
        const session_hash = Math.random().toString(36);
        headers = {'Content-Type': 'application/json'};
        await post('queue/join', JSON.stringify({fn_index, data, session_hash}));
        return await (await fetch('/gradio_api/queue/data?session_hash=' + session_hash)).text();
    }"""
    assert re.search(r'"success": ?true', visited.evaluate(ask, None))  # what was uploaded is taken so
    assert re.search(r'"success": ?false', visited.evaluate(ask, "/etc/hostname"))


@browser
def test_ctrl_c_ends_it_cleanly_and_nothing_was_asked_or_left(capsys):
    served = Served()
    assert cli.main(["demo", "--no-browser", "--port", str(served.port)]) == 2
    assert f"port {served.port} of 127.0.0.1 is taken; choose another with --port" in capsys.readouterr().err
    with urllib.request.urlopen(f"{served.url}config") as answer:
        uploads = Path(re.search(r'"(/[^"]*/piat-demo-\w+)/', answer.read().decode())[1])
    assert uploads.is_dir()
    code, said, errors = served.end()
    assert (code, errors) == (0, "")
    assert {line.split()[1] for line in said if line.startswith("asked")} <= {"127.0.0.1"}
    assert not uploads.exists()


@browser
def test_a_space_runs_as_it_stands(tmp_path):
    """In a folder of its own, with its own copy of the package, by the command that the Hub runs."""
    assert cli.main(["demo", "--export", "s"]) == 0
    place = tmp_path / "s"
    head, _, _ = (place / "README.md").read_text().removeprefix("---\n").partition("\n---\n")
    card = yaml.safe_load(head)
    assert card["sdk"] == "gradio" and card["app_file"] == "app.py" and "models" not in card
    needed = (place / "requirements.txt").read_text()
    assert "torch>=" in needed and "gradio" not in needed and "pytest" not in needed
    with (place / "piat_hub" / "demo" / "__init__.py").open("a") as copy:
        copy.write('print("the folder\'s own")\n')
    bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True, "cwd": place}
    app = subprocess.Popen([PYTHON, "-u", "app.py"], env=bare, **pipes)
    assert next(app.stdout) == "the folder's own\n"
    address = next(line for line in app.stdout if "Running on" in line).split()[-1]
    with urllib.request.urlopen(f"{address}/config") as answer:
        assert json.load(answer)["title"] == "See an attack"
    app.kill()
    app.communicate()


def test_a_space_names_models_of_the_hub_and_holds_the_others(tmp_path, monkeypatch, digits):
    hub = [dataclasses.replace(digits[0], spec="ORG/NAME@v1"), dataclasses.replace(digits[1], spec=shown.DIGITS[1])]
    monkeypatch.setattr(space, "load", lambda *_: hub)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "6.31.0")
    space.export(["ORG/NAME@v1", shown.DIGITS[1]], tmp_path / "a" / "s")
    written = tmp_path / "a" / "s"
    assert "launch(load(['ORG/NAME@v1', str(HERE / 'models/robust')], None))" in (written / "app.py").read_text()
    copied, given = (RunDirectory.read(folder) for folder in (written / "models" / "robust", shown.DIGITS[1]))
    assert copied.config == given.config and copied.model.label_names == given.model.label_names
    assert file_digest(copied.directory / "model.safetensors") == file_digest(given.directory / "model.safetensors")
    assert "models:\n- ORG/NAME\n" in (written / "README.md").read_text()
    assert not list(tmp_path.rglob("__pycache__")) and sorted(path.name for path in written.parent.iterdir()) == ["s"]


def test_a_space_of_models_of_one_name_names_no_path_of_this_machine(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    shutil.copytree(shown.DIGITS[1], tmp_path / "a" / "robust")
    config = read_json(tmp_path / "a/robust/config.json")
    config["piat"]["dataset"] = str(tmp_path / "of a customer")
    (tmp_path / "a/robust/config.json").write_text(json.dumps(sealed(config)))
    monkeypatch.setattr("importlib.metadata.version", lambda name: "6.31.0")
    space.export([str(tmp_path / "a/robust"), shown.DIGITS[1]], tmp_path / "s")
    app, readme = ((tmp_path / "s" / name).read_text() for name in ("app.py", "README.md"))
    assert "[str(HERE / 'models/robust'), str(HERE / 'models/robust-2')]" in app
    shutil.copytree(shown.DIGITS[1], tmp_path / "robust-2")
    taken = [
        str(tmp_path / "robust-2"),
        str(tmp_path / "a/robust"),
        shown.DIGITS[1],
    ]  # the name that a second would get
    assert sorted(path.name for path in (space.export(taken, tmp_path / "t") / "models").iterdir()) == [
        "robust", "robust-2", "robust-3",
    ]  # fmt: skip
    assert "a step at a time: robust, robust." in readme and str(tmp_path) not in app + readme
    held = (tmp_path / "s/models/robust/config.json").read_text()
    assert str(tmp_path) not in held and '"dataset": "of a customer"' in held


# what is written about it


def test_the_models_of_the_package_are_those_that_were_measured():
    for name, spec in zip(("ordinary", "robust"), shown.DIGITS, strict=True):
        record = json.loads((ROOT / "docs" / "results" / "demo_models" / f"{name}.json").read_text())
        assert record["weights_sha256"] == file_digest(Path(spec) / "model.safetensors")


NOTEBOOK = ROOT / "docs" / "notebooks" / "first_robust_model.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path):
    """In a fresh folder and process, with fewer epochs and images, and without AutoAttack."""
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] for cell in cells if "print(" in "".join(cell["source"]))  # as executed
    code = "\n\n".join("".join(cell["source"]) for cell in cells)
    for usual, small in (("EPOCHS = 80", "EPOCHS = 2"), ("N = 400", "N = 20"), ('"pgd20", "aa"]', '"pgd20"]')):
        assert usual in code
        code = code.replace(usual, small)
    (tmp_path / "notebook.py").write_text(code + "\nassert interpolation.epoch == 2 and len(rows) == 3\n")
    assert "robust, pgd20, Linf eps 0.15" in python("notebook.py", check=True).stdout
