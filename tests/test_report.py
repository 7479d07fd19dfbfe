"""The figures and the page of real runs: drawn from run directories alone, self-contained, and readable in a browser."""

import dataclasses
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import once
from PIL import Image

from piat_hub import cli
from piat_hub.config import recipes
from piat_hub.figures import gallery, report
from piat_hub.records import files
from piat_hub.records.groups import read_run
from piat_hub.records.labels import percent

pytestmark = pytest.mark.slow

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
POINTS = 3


@pytest.fixture
def two_runs(small_digits, finished, do_evaluate, monkeypatch):
    """PGD-AT and PIAT+NMSE, trained for six epochs and evaluated; the landscape has few points."""
    monkeypatch.setattr(gallery, "SETTINGS", gallery.SETTINGS | {"points": POINTS})
    monkeypatch.setattr(gallery, "IMAGES", {"landscape": 10, "images": 3})
    plain = small_digits(train_size=128, epochs=6, method="pgd_at")
    plain = dataclasses.replace(plain, interpolation=dataclasses.replace(plain.interpolation, kind="none"))

    def make(folder):
        for name, config in (("a", plain), ("b", small_digits(train_size=128, epochs=6))):
            shutil.copytree(finished(config), folder / name)
            do_evaluate(folder / name, "pgd3", n=40)

    shutil.copytree(once("runs", make), "runs", dirs_exist_ok=True)
    return ["runs/a", "runs/b"]


class Page(HTMLParser):
    """What a page holds: its tags with their attributes, ids and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "br", "use", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text.append(data.strip())


def test_figures_come_from_run_directories_alone(two_runs, capsys, monkeypatch):
    assert cli.main(["figures", *two_runs, "--output", "out"]) == 0
    shown = capsys.readouterr().out
    drawn = {"epochs", "gaps", "scatter", "landscape", "images"}
    assert {p.name for p in Path("out").iterdir()} == {f"{name}.{kind}" for name in drawn for kind in ("svg", "png")}
    assert "interpolation: not drawn: no method has runs with and without PIAT" in shown
    assert "lambda: not drawn" in shown and "mu: not drawn" in shown
    for path in Path("out").glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
    for path in Path("out").glob("*.png"):
        assert Image.open(path).size[0] >= 600
    kept = files.read_json(Path("runs/a/landscape.json"))
    assert len(kept["losses"]) == POINTS and kept["n"] == 10
    monkeypatch.setattr(
        "piat_hub.figures.probes.surface", None
    )  # what was measured on these weights is not measured again
    assert cli.main(["figures", *two_runs, "--output", "out", "--only", "landscape"]) == 0


def test_a_landscape_of_other_weights_is_measured_again(two_runs, do_train, small_digits):
    (run,) = [read_run("runs/b")]
    first = gallery.surface(run, False)
    assert gallery.surface(run, False) == first
    path = Path("runs/b/landscape.json")
    kept = json.loads(path.read_text())
    kept.pop("checksum")
    kept["of"]["weights_sha256"], kept["losses"] = "other", [[0.0] * POINTS] * POINTS
    path.write_text(json.dumps(kept))
    assert gallery.surface(run, False) == first
    path.write_text("{")
    assert gallery.surface(run, False) == first and gallery.surface(run, True).filterwise
    assert Path("runs/b/landscape-filterwise.json").exists()


def test_more_than_two_runs_have_no_landscape(two_runs):
    runs = [read_run(one) for one in two_runs]
    runs.append(dataclasses.replace(runs[0], config=dataclasses.replace(runs[0].config, seed=1)))
    drawn = {one.name: one for one in gallery.draw(runs)}
    assert drawn["landscape"].figure is None and "3 are given" in drawn["landscape"].why
    assert drawn["epochs"].figure is not None


def test_a_report_is_one_page_that_fetches_nothing(two_runs, capsys):
    assert cli.main(["report", *two_runs]) == 0
    assert capsys.readouterr().out == "report   report.html\n"
    text = Path("report.html").read_text()
    page = Page(text)
    tags = {tag for tag, _ in page.tags}
    assert not {"script", "link", "iframe", "img"} & tags
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), f"{tag} {name}={value[:60]}"
    assert "@import" not in text and not re.search(r"url\((?!#|\"?data:)", text)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | {
        h[1:] for _, a in page.tags if (h := a.get("xlink:href", "")).startswith("#")
    }
    assert used <= set(ids)
    assert sum(tag == "figure" for tag, _ in page.tags) == 5


def test_a_report_says_what_was_measured(two_runs):
    runs = [read_run(one) for one in two_runs]
    text = " ".join(Page(report.render(runs, {})).text)
    for run in runs:
        found = run.figures("pgd3")
        assert percent(found["accuracy"]) in text and percent(found["ci95"][0]) in text
    assert "digits, Linf eps 0.15" in text and "minus PGD-AT, seed 0" in text
    assert "method pgd_at nmse" in text and "interpolation.kind none piat" in text  # what differs
    assert "Not checked for gradient masking: 2 of 2 runs" in text and "piat train digits" in text
    assert "as published" not in text


def test_published_rows_stand_only_under_runs_on_the_papers_data(two_runs):
    run = read_run("runs/b")
    real = recipes.get("resnet18-cifar10")
    paper, copy = (
        dataclasses.replace(run, config=dataclasses.replace(real, dataset=d)) for d in ("cifar10", "cifar10-jpeg")
    )
    text = report.render([paper, copy], {})
    first, second = re.split(r"<h2>cifar10-jpeg, Linf eps 8/255</h2>", text)
    assert first.count("PIAT+NMSE, as published") == 1 and "48.80 %" in first and "as published" not in second


def test_what_strangers_wrote_is_text(two_runs):
    path = Path("runs/b/config.json")
    config = files.read_json(path)
    config["piat"]["dataset"] = "<script>alert(1)</script>"
    path.write_text(json.dumps(config))
    text = report.render([read_run("runs/b")], {})
    assert "<script" not in text and "&lt;script&gt;" in text


def test_what_was_measured_elsewhere_stands_apart(two_runs, do_evaluate):
    do_evaluate("runs/b", "pgd2", n=30, eps=0.05, output="runs/b/weak")
    text = report.render([read_run("runs/b")], {})
    own, other = text.split("<h2>On other images, or under another threat model</h2>")
    assert "weak/last" not in own and "weak/last" in other and "digits (test), Linf eps 0.05" in other


def test_paths_of_this_machine_stay_here(two_runs, capsys):
    assert cli.main(["report", *(str(Path(one).absolute()) for one in two_runs), "--only", "gaps"]) == 0
    assert str(Path.cwd()) not in Path("report.html").read_text()


def test_a_run_named_twice_is_one_run(two_runs, capsys):
    assert cli.main(["report", "runs/a", str(Path("runs/a").absolute()), "--only", "gaps"]) == 0
    assert "1 run; written" in Path("report.html").read_text()


def test_images_of_another_kind_are_told_of(two_runs):
    drawn = list(gallery.draw([read_run("runs/b")], ["landscape", "images"], dataset="cifar10"))
    assert all(one.figure is None and one.why for one in drawn)


def test_runs_of_several_seeds_have_a_table_of_means(two_runs):
    runs = [read_run("runs/b")]
    runs.append(dataclasses.replace(runs[0], config=dataclasses.replace(runs[0].config, seed=1)))
    text = " ".join(Page(report.render(runs, {})).text)
    assert "By configuration" in text and "oscillation" in text


def test_an_unwritable_report_costs_nothing(two_runs, capsys):
    Path("file").write_text("mine")
    assert cli.main(["report", *two_runs, "--output", "file/report.html"]) == 2
    assert "file cannot be made: file is a file" in capsys.readouterr().err
    assert not Path("runs/a/landscape.json").exists()


@pytest.mark.skipif(not BROWSER, reason="no Chromium here")
@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it_in_both_themes_and_widths(two_runs, width, dark):
    assert cli.main(["report", *two_runs, "--only", "epochs", "gaps"]) == 0
    theme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},1600"]
    where = Path("report.html").resolve()
    subprocess.run([BROWSER, *options, *theme, "--screenshot=shot.png", f"file://{where}"], check=True)
    picture = Image.open("shot.png").convert("RGB")
    assert picture.size == (width, 1600)
    page, colours = picture.getpixel((2, 2)), {c for _, c in picture.getcolors(2**24)}
    assert page == ((18, 22, 27) if dark else (255, 255, 255))
    wanted = (88, 166, 232) if dark else (0, 114, 178)  # PIAT's line
    assert wanted in colours


def test_a_landscape_says_how_long_it_takes(two_runs, capsys):
    assert cli.main(["figures", "runs/a", "--output", "out", "--only", "landscape"]) == 0
    line = f"landscape: {POINTS**2} points, each PGD-10 on 10 images: about 1 min; --only leaves it out"
    assert line in capsys.readouterr().err
    assert cli.main(["figures", "runs/a", "--output", "out", "--only", "landscape"]) == 0  # kept: nothing takes long
    assert "about" not in capsys.readouterr().err
