"""The board: what it says is what the records say, ranks hold among the same images, and whatever a record says is text."""

import base64
import collections
import contextlib
import hashlib
import html
import importlib.util
import json
import random
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import once
from test_hostile import NASTY as ODD, places, with_value

import piat_hub
from piat_hub import cli
from piat_hub.config import InputError
from piat_hub.leaderboard import page
from piat_hub.leaderboard.board import content, read
from piat_hub.records.compare import compare
from piat_hub.records.files import read_json
from piat_hub.records.results import read_record, read_results, verdicts_digest
from piat_hub.records.statistics import proportion

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
IMAGES = {"name": "digits", "split": "test", "n": 30}
NASTY = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;{{ 7 * 7 }}"


def changed(directory, change, checkpoint="results.json"):
    """Change a directory's results.json as `change` does."""
    content = read_json(directory / checkpoint)
    change(content)
    (directory / checkpoint).write_text(json.dumps(content))


def measured(directory, verdicts, **facts):
    """Give a directory these verdicts as its results, and an attack these facts."""
    n = len(next(iter(verdicts.values())))
    labels = np.load(directory / "verdicts.npz")["label"][:n]
    np.savez(directory / "verdicts.npz", index=np.arange(n), label=labels, **verdicts)

    def change(content):
        content["dataset"]["n"] = n
        before = content["attacks"]
        content["attacks"] = {
            a: before.get(a, {}) | facts.get(a, {}) | proportion(int(v.sum()), n) for a, v in verdicts.items()
        }
        worst = np.logical_and.reduce(list(verdicts.values()))
        content["worst_case"] = proportion(int(worst.sum()), n) | {"attacks": list(verdicts)}
        content["per_class"] = {}

    changed(directory, change)


@pytest.fixture(scope="module")
def shelf(evaluated_once):
    """The run `a`, `b` that withstands more of PGD-3, and `c`, which is results and verdicts alone."""

    def make(folder):
        for name in "ab":
            shutil.copytree(evaluated_once, folder / name)
        (folder / "c").mkdir()
        for name in ("results.json", "verdicts.npz"):
            shutil.copy(evaluated_once / name, folder / "c")
        _, kept = read_results(folder / "b")
        kept["pgd3"] = kept["clean"].copy()
        measured(folder / "b", kept)
        _, kept = read_results(folder / "c")
        measured(folder / "c", {"clean": kept["clean"]})

    return once("board/shelf", make)


@pytest.fixture
def models(shelf, tmp_path):
    return Path(shutil.copytree(shelf, tmp_path / "models"))


def board(*sources):
    """The content of board.json for these sources."""
    assert cli.main(["leaderboard", *map(str, sources), "--output", "board"]) == 0
    return read_json(Path("board/board.json"))


def refused(capsys, *sources, output="board"):
    """The one line by which these sources are refused; nothing is written."""
    before = {path: path.read_bytes() for path in Path(output).rglob("*") if path.is_file()}
    assert cli.main(["leaderboard", *map(str, sources), "--output", output]) == 2
    assert {path: path.read_bytes() for path in Path(output).rglob("*") if path.is_file()} == before
    (line,) = capsys.readouterr().err.splitlines()
    return line


class Page(HTMLParser):
    """A page's tags with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.said = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.said.append(data)

    @property
    def text(self):
        return " ".join("".join(self.said).split())


def test_the_board_says_what_the_records_say(models):
    (table,) = board("models")["tables"]
    record, kept = read_results(models / "a")
    assert (table["dataset"], table["threat_model"]) == (IMAGES, {"norm": "Linf", "eps": "0.15"})
    assert table["images_sha256"] == record.images and table["attacks"] == ["clean", "PGD-3", "AutoAttack"]
    rows = {row["model"]: row for row in table["models"]}
    a = rows["models/a"]
    for name, attack in (("clean", "clean"), ("PGD-3", "pgd3"), ("AutoAttack", "aa")):
        assert a["attacks"][name].items() >= record.attacks[attack].items()
        assert a["attacks"][name]["verdicts_sha256"] == verdicts_digest(kept[attack])
    assert a["worst_case"] == record.worst_case and a["weights_sha256"] == record.weights
    model = piat_hub.from_pretrained(models / "a")
    assert a["parameters"] == sum(p.numel() for p in model.parameters()) and a["architecture"] == "cifar_resnet8"
    assert (a["method"], a["extra_data"], a["checks"]) == ("PIAT+NMSE", "none", [])
    assert a["training"]["time"] and a["device"] == record.environment["device"] and a["seconds"] == record.seconds


def test_what_a_model_learnt_from_beside_its_data_is_said(models):
    content = read_json(models / "a" / "config.json")
    content["piat"] |= {"extra_data": "/home/me/edm", "extra_images": 1_000_000, "init_from": "imagenet"}
    (models / "a" / "config.json").write_text(json.dumps(content))
    (row,) = board("models/a")["tables"][0]["models"]
    assert row["extra_data"] == "edm, 1,000,000 images; weights of imagenet"
    assert "edm, 1,000,000 images" in Page(Path("board/index.html").read_text()).text


def test_an_imported_model_is_on_the_board_as_its_authors(models):
    content = read_json(models / "a" / "config.json")
    del content["piat"]
    content["piat_origin"] = {"name": "A2024Robust", "authors": f"A. Author {NASTY}", "extra_data": True}
    (models / "a" / "config.json").write_text(json.dumps(content))
    (row,) = board("models/a")["tables"][0]["models"]
    assert (row["method"], row["extra_data"], row["architecture"]) == (f"of A. Author {NASTY}", "some", "cifar_resnet8")
    assert row["parameters"] and row["training"] is None
    text = Path("board/index.html").read_text()
    assert "<script>alert" not in text and f"of A. Author {NASTY}" in Page(text).text
    content["piat_origin"]["authors"] = "x" * 10_000
    (models / "a" / "config.json").write_text(json.dumps(content))
    board("models/a")
    assert "x" * 201 not in Path("board/index.html").read_text()


def test_models_are_ranked_and_paired_by_one_attack_on_the_same_images(models):
    (table,) = board("models")["tables"]
    aa = read_record(models / "a" / "results.json").attacks["aa"]
    assert table["ranked_by"] == "AutoAttack"  # of two attacks on two models the one that leaves less
    assert [(row["model"], row["rank"]) for row in table["models"]] == [
        ("models/a", 1),
        ("models/b", 1),  # alike under it
        ("models/c", None),  # was not attacked
    ]
    _, second, third = table["models"]
    (pair,) = [pair for pair in compare(models / "a", models / "b") if pair.attack == "aa"]
    assert second["beside_the_first"]["ci95"] == list(pair.ci95) and second["beside_the_first"]["n"] == 30
    assert second["attacks"]["AutoAttack"]["correct"] == aa["correct"] and third["beside_the_first"] is None


def test_an_attack_run_otherwise_is_another_column(models):
    _, kept = read_results(models / "b")
    measured(models / "b", kept, pgd3={"step_size": "0.01"})
    (table,) = board("models/a", "models/b")["tables"]
    names = [f"PGD-3, steps 3, step_size {size}, restarts 1" for size in ("0.0375", "0.01")]
    assert set(table["attacks"]) == {"clean", "AutoAttack", *names}
    assert [set(names) & set(row["attacks"]) for row in table["models"]] == [{names[0]}, {names[1]}]


def test_other_images_are_another_table_and_unknown_ones_are_not_ranked(models):
    _, kept = read_results(models / "b")
    measured(models / "b", {attack: verdicts[:20] for attack, verdicts in kept.items()})
    changed(models / "c", lambda content: content.pop("images_sha256"))
    tables = board("models")["tables"]
    assert [(t["dataset"]["n"], [row["model"] for row in t["models"]]) for t in tables] == [
        (30, ["models/c"]),
        (30, ["models/a"]),
        (20, ["models/b"]),
    ]
    assert [t["ranked_by"] for t in tables] == [None, "AutoAttack", "AutoAttack"]
    text = Page(Path("board/index.html").read_text()).text
    assert "Not ranked: these results do not say of which images they are." in text


def test_the_page_shows_n_and_interval_of_each_figure_and_says_what_is_missing(models):
    changed(models / "a", lambda content: content.update(notes=["its answers are random"]))
    check = {"check": "steps", "passed": False, "found": "more steps leave more", "n": 30}
    changed(models / "b", lambda content: content.update(checks=[check, check | {"check": "eps", "passed": True}]))
    board("models")
    page = Page(Path("board/index.html").read_text())
    correct = read_record(models / "a" / "results.json").attacks["aa"]
    low, high = (f"{100 * end:.2f} %" for end in correct["ci95"])
    assert f"{100 * correct['accuracy']:.2f} % {low} to {high} n 30" in re.sub(" +", " ", " ".join(page.said))
    for said in (
        "note: its answers are random",
        "1 of 2",
        "steps: more steps leave more",
        "not checked",
        "not measured",
        "method not recorded",
        "training not recorded",
        "not paired",
    ):
        assert said in page.text, said


def test_the_page_asks_nobody_and_its_own_policy_holds_it_to_that(models):
    board("models")
    text = Path("board/index.html").read_text()
    for tag, attributes in Page(text).tags:
        assert not {"src", "action", "style", "onclick", "onload"} & set(attributes), tag
        assert attributes.get("href", "board.json") == "board.json"
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    assert policy.startswith("default-src 'none';")
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        hashed = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{hashed}';" in policy


def test_the_folder_is_a_static_space(models):
    board("models")
    assert sorted(path.name for path in Path("board").iterdir()) == ["README.md", "board.json", "index.html"]
    front = yaml.safe_load(Path("board/README.md").read_text().split("---")[1])
    assert front["sdk"] == "static" and front["app_file"] == "index.html"
    assert {"title", "emoji", "colorFrom", "colorTo"} <= set(front)


def test_sources_are_directories_folders_of_them_and_lists(models):
    Path("list.txt").write_text("# ours\n\nmodels/b\n  models/a\n")
    rows = board("list.txt", "models/a")["tables"][0]["models"]
    assert sorted(row["model"] for row in rows) == ["models/a", "models/b"]
    again = board("models/a", "./models/a", "models/a/", models / "a", "models/b")["tables"][0]["models"]
    assert sorted(row["model"] for row in again) == ["models/a", "models/b"]  # once, as it was first called
    absolute = board(models / "c")["tables"][0]["models"]
    assert [row["model"] for row in absolute] == ["c"]  # nobody's page tells where a folder lies
    shutil.copytree(models / "c", models.parent / "others/c")
    with pytest.raises(InputError, match="c and .*others/c would both be called c, .* name them from a folder above"):
        content(read(str(models.parent / place / "c")) for place in (models.name, "others"))


TEXTS = {  # where a record may say anything -> how a text is put there
    "data set": lambda content, text: content["dataset"].update(name=text),
    "split": lambda content, text: content["dataset"].update(split=text),
    "device": lambda content, text: content.update(device=text),
    "note": lambda content, text: content.update(notes=[text]),
    "check": lambda content, text: content.update(checks=[{"check": text, "passed": False, "found": text, "n": 3}]),
    "images": lambda content, text: content.update(images_sha256=text),
    "version": lambda content, text: content["attacks"]["aa"].update(version=text),
}


def everywhere(directory, text):
    """Put a text wherever a board shows one of a record."""
    for put in TEXTS.values():
        changed(directory, lambda content, put=put: put(content, text))
    content = read_json(directory / "config.json")
    content["piat"]["init_from"] = text
    (directory / "config.json").write_text(json.dumps(content))


def test_hostile_texts_are_shown_as_text(models):
    board("models/a")
    plain = Page(Path("board/index.html").read_text())
    everywhere(models / "a", NASTY)
    (nasty := models / "<b>&'\"b").mkdir()
    shutil.copytree(models / "a", nasty, dirs_exist_ok=True)
    board(nasty)
    text = Path("board/index.html").read_text()
    page = Page(text)
    new = collections.Counter(tag for tag, _ in page.tags) - collections.Counter(tag for tag, _ in plain.tags)
    assert not set(new) - {"small", "span", "div", "p"}
    assert "<script>alert" not in text and "<img" not in text and page.text.count(NASTY) >= len(TEXTS)
    assert html.escape("<b>&'\"b", quote=False) in text.replace("&#39;", "'").replace("&#34;", '"')
    assert read_json(Path("board/board.json"))["tables"][0]["models"][0]["notes"][0] == NASTY


def test_long_texts_are_cut_on_the_page_alone(models):
    everywhere(models / "a", "x" * 10_000)
    board("models/a")
    text = Path("board/index.html").read_text()
    assert "x" * 200 + "…" in text and "x" * 201 not in text and len(text) < 20_000
    assert "x" * 10_000 in Path("board/board.json").read_text()


@pytest.mark.parametrize("text", ["a\nb", "a\u202eb"])
@pytest.mark.parametrize("place", TEXTS)
def test_what_cannot_be_printed_is_refused(models, capsys, place, text):
    changed(models / "a", lambda content: TEXTS[place](content, text))
    assert "is no printable text" in refused(capsys, "models")


def test_any_value_anywhere_is_shown_or_refused_in_a_line(models):
    rng, shown = random.Random(0), 0
    for name in ("results.json", "config.json"):
        whole = read_json(models / "a" / name)
        for path in rng.sample(list(places(whole)), 40):
            (models / "a" / name).write_text(json.dumps(with_value(whole, path, rng.choice(ODD))))
            with contextlib.suppress(InputError):
                shown += len(page.render(content([read("models/a")]))) > 0
        (models / "a" / name).write_text(json.dumps(whole))
    assert 0 < shown < 80


def test_a_source_that_cannot_be_read_is_named_and_nothing_written(models, capsys, tmp_path):
    assert "no such directory, and 'nosuch' is no Hub id" in refused(capsys, "models/a", "nosuch")
    (models / "bin").write_bytes(b"\xff\xfe")
    assert "models/bin is no list of models" in refused(capsys, "models/bin")
    (tmp_path / "empty").mkdir()
    assert "empty holds no model, nor do the folders in it" in refused(capsys, "empty")
    (models / "a\nb").mkdir()
    assert "is no printable name" in refused(capsys, Path(shutil.move(models / "b", models / "a\nb")))
    (models / "c" / "verdicts.npz").unlink()
    assert "models/c/results.json and verdicts.npz cannot be read together" in refused(capsys, "models/c")
    changed(models / "a", lambda content: content.update(weights_sha256="0" * 64))
    assert "models/a has no results on the weights that lie there" in refused(capsys, "models/a")
    (models / "a" / "results.json").write_text("{")
    assert "models/a/results.json is damaged" in refused(capsys, "models/a")


def test_a_board_replaces_a_board_and_nothing_else(models, capsys, monkeypatch):
    assert "models/a holds a README.md that is no board's" in refused(capsys, "models/b", output="models/a")
    board("models/a", "models/b")
    first = Path("board/index.html").read_text()
    written = Path.write_text

    def full(self, *args, **options):
        if "index" in self.name:
            raise OSError(28, "No space left on device")
        return written(self, *args, **options)

    monkeypatch.setattr(Path, "write_text", full)
    assert cli.main(["leaderboard", "models/a", "--output", "board"]) == 1
    monkeypatch.setattr(Path, "write_text", written)
    assert "No space left on device" in capsys.readouterr().err
    assert Path("board/index.html").read_text() == first
    assert len(read_json(Path("board/board.json"))["tables"][0]["models"]) == 2
    assert sorted(path.name for path in Path("board").iterdir()) == ["README.md", "board.json", "index.html"]
    board("models/a")
    assert Path("board/index.html").read_text() != first


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(
    not CHROMIUM or not importlib.util.find_spec("playwright"), reason="no Playwright or no Chromium here"
)
def test_the_keyboard_sorts_and_what_is_missing_stays_last(models):
    from playwright.sync_api import sync_playwright

    board("models")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=600_000)
        page = browser.new_page(viewport={"width": 390, "height": 800})
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(Path("board/index.html").resolve().as_uri())
        heads = page.locator("thead th")

        def order():
            return page.locator("tbody th").evaluate_all("cells => cells.map(cell => cell.dataset.value)")

        assert heads.nth(0).get_attribute("aria-sort") == "ascending"
        page.get_by_role("button", name="PGD-3").focus()
        page.keyboard.press("Enter")
        assert order() == ["models/b", "models/a", "models/c"]
        assert heads.nth(3).get_attribute("aria-sort") == "descending" and page.locator("[aria-sort]").count() == 1
        page.keyboard.press("Space")
        assert order() == ["models/a", "models/b", "models/c"]
        assert heads.nth(3).get_attribute("aria-sort") == "ascending"
        assert page.evaluate("document.documentElement.scrollWidth") == 390 and len(asked) == 1
        browser.close()
