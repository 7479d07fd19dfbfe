"""The site: it builds without a warning, nothing on it comes from another host, and what its guides show is run or parsed."""

import argparse
import contextlib
import re
import shlex
import sys

import pytest
from conftest import ROOT, python
from PIL import Image

from piat_hub import attacks, cli, methods
from piat_hub.cli.flags import Parser
from piat_hub.config import recipes

DOCS = ROOT / "docs"
SPHINX = ("sphinx", "-W", "--keep-going", "-q", "-b", "html")
PAGES = [*sorted((DOCS / "guides").glob("*.md")), DOCS / "interpolation.md", *sorted((DOCS / "methods").glob("*.md"))]
STOPS = {  # command -> what it calls once its flags are read and hold together; others end with the parser
    "train": "piat_hub.cli.train.run_training",
    "evaluate": "piat_hub.evaluation.request.prepare",
    "push": "piat_hub.cli.publish.say_pushed",
    "study": "piat_hub.study.sweep.members_of",
}
ROOMS = ("attacks", "backbones", "config", "data", "demo", "evaluation", "hub", "methods", "records", "training")


class Parsed(Exception):
    """A command line was read to its end."""


def stop(*args, **options):
    raise Parsed


def blocks(page, *languages):
    """The code of a page's fenced blocks in these languages."""
    return [code for name, code in re.findall(r"```(\w+)\n(.*?)```", page.read_text(), re.S) if name in languages]


def parse(line, monkeypatch):
    """Feed one shell line to the real parsers. Raises InputError, or SystemExit by a launcher's own parser, if it does not fit."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    words = launched(words)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), line
        return
    if words[:4] == ["python", "-m", "pip", "install"]:
        return
    if words[0] == "python" and words[1] in ("train.py", "evaluate.py"):
        words = ["piat", words[1].removesuffix(".py"), *words[2:]]
    assert words[0] == "piat", f"{line}: no command of ours; teach tests/test_site.py to check it"
    command = words[1]
    if command == "--help":
        assert cli.main(words[1:]) == 0
        return
    with monkeypatch.context() as patch:
        if command in STOPS:
            patch.setattr(STOPS[command], stop)
        else:
            whole = Parser.parse_all
            patch.setattr(Parser, "parse_all", lambda self, argv: stop(whole(self, argv)))
        patch.setattr("piat_hub.cli.entry._fail", lambda prog, error, code: pytest.fail(f"{line}: {error}"))
        with pytest.raises(Parsed):
            cli.main(words[1:])


def launched(words):
    """The words that a launcher starts, once its own parser has taken its own; other words as they are."""
    if words[:2] == ["accelerate", "launch"]:
        from accelerate.commands.launch import launch_command_parser

        given = launch_command_parser().parse_args(words[2:])
        if given.module:
            assert given.training_script == "piat_hub"
            return ["piat", *given.training_script_args]
        return ["python", given.training_script, *given.training_script_args]
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        given = get_args_parser().parse_args(words[1:])
        return ["python", given.training_script, *given.training_script_args]
    return words


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_stands_alone(tmp_path):
    """One test, as one build takes half a minute; warnings are errors, as in `make docs`."""
    python("-m", *SPHINX, "-d", tmp_path / "trees", DOCS, tmp_path / "html", check=True)
    nothing_comes_from_another_host(tmp_path / "html")
    formulas_are_mathml(tmp_path / "html")
    the_reference_has_every_module_of_its_rooms(tmp_path / "html")


def nothing_comes_from_another_host(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        assert not foreign(page.read_text()), page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text()), sheet.name


def formulas_are_mathml(site):
    for name in methods.names():
        html = (site / "methods" / f"{name}.html").read_text()
        assert '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">' in html, name
        assert "\\" not in "".join(re.findall(r"<math.*?</math>", html, re.S)), f"{name}: LaTeX that was not understood"


def the_reference_has_every_module_of_its_rooms(site):
    """A room that exports names is documented by them, any other module by module."""
    for room in ROOMS:
        html = (site / "api" / f"{room}.html").read_text()
        package = ROOT / "piat_hub" / room
        exported = "\nfrom " in (package / "__init__.py").read_text()
        names = {f"piat_hub.{room}"} if exported else {f"piat_hub.{room}.{p.stem}" for p in package.glob("[a-z]*.py")}
        assert not {name for name in names if f'id="module-{name}"' not in html}


def foreign(html):
    """Scripts, styles, fonts, images and frames that a page would load from another host; plain links are none."""
    return re.findall(
        r"<(?:script|img|link|iframe|source|object|embed)\b[^>]*(?:src|href|data)=\"(?:https?:)?//[^\"]*", html
    )


def test_a_script_from_another_host_would_be_found():
    assert foreign('<script async src="https://cdn.example/mathjax.js"></script>')
    assert foreign('<link rel="stylesheet" href="//fonts.example/a.css">')
    assert not foreign('<a href="https://example.org/">a link</a> <script src="_static/a.js"></script>')


def test_every_method_has_a_page():
    assert {page.stem for page in (DOCS / "methods").glob("*.md")} == set(methods.names())


def test_a_warning_fails_the_build(tmp_path):
    """Without the package's pages, which take their time: a link that leads nowhere, and a page outside the contents."""
    (tmp_path / "conf.py").write_text((DOCS / "conf.py").read_text().replace("html_static_path", "_static_path"))
    (tmp_path / "index.md").write_text("# A\n\n[nowhere](nowhere.md)\n")
    (tmp_path / "lost.md").write_text("# B\n\n```{eval-rst}\n.. automodule:: undocumented\n```\n")
    (tmp_path / "undocumented.py").write_text('"""A module."""\n\n\ndef f():\n    pass\n')
    text = (tmp_path / "conf.py").read_text().replace('startswith("piat_hub")', 'startswith("undocumented")')
    (tmp_path / "conf.py").write_text(f"import sys\n\nsys.path.insert(0, {str(tmp_path)!r})\n{text}")
    done = python("-m", *SPHINX, tmp_path, tmp_path / "o")
    assert done.returncode == 1
    for said in ("nowhere.md", "isn't included in any toctree", "undocumented.f has no docstring"):
        assert said in done.stderr, said


@pytest.fixture
def place(tmp_path, trained, small_digits):
    """A folder as the guides assume it: runs/demo, a digits run of two epochs, and photographs of two sizes."""
    trained(small_digits(epochs=2), tmp_path / "runs" / "demo")
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (folder := tmp_path / "photographs" / split / label).mkdir(parents=True)
            for side in (32, 40):
                Image.new("RGB", (side, 32), {"cat": "black", "dog": "white"}[label]).save(folder / f"{side}.png")
    return tmp_path


@contextlib.contextmanager
def registers_put_back():
    """What a page registers is forgotten after it, for the tests that go over all that is registered."""
    from piat_hub.methods import base

    known = (base._METHODS, attacks.ATTACKS, recipes.RECIPES)
    before = [dict(register) for register in known]
    yield
    for register, content in zip(known, before, strict=True):
        register.clear()
        register.update(content)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.stem)
def test_the_python_of_a_page_runs(page, place, monkeypatch):
    """Block after block in one namespace; one that begins with `# NAME.py` is written to that file first."""
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.setitem(sys.modules, "guide", type(sys)("guide"))  # where a page's dataclasses live
    scope = {"__name__": "guide"}
    with registers_put_back():
        for code in blocks(page, "python"):
            if name := re.match(r"# (\w+\.py)\n", code):
                (place / name[1]).write_text(code)
            exec(compile(code, str(page), "exec"), scope)


def test_a_page_whose_python_fails_would_be_caught(place, monkeypatch):
    (place / "page.md").write_text("```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError):
        test_the_python_of_a_page_runs(place / "page.md", place, monkeypatch)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "bash", "console")], ids=lambda p: p.stem)
def test_the_commands_of_a_page_are_commands(page, monkeypatch):
    lines = "\n".join(blocks(page, "bash", "console")).replace("\\\n", " ").splitlines()
    for line in filter(str.strip, lines):
        parse(line.removeprefix("$ "), monkeypatch)


WRONG = [
    "piat train digits --epoch 3",
    "piat train digits --method trades --method.mu 3",
    "piat evaluate runs/demo --attack pgd20",
    "piat push runs/demo ORG/NAME --publicly",
    "piat study lambda --sedes 3",
    "piat figures runs/demo --only landscap",
    "piat robustbench RUN",
    "accelerate launch --multi_gpus train.py digits",
    "accelerate launch --num_processes 2 train.py digits --epoch 3",
    "torchrun --nproc 2 --no-such-flag train.py digits",
    "torchrun --nproc_per_node 2 train.py digits --epoch 3",
    "make tests",
    "pyat train",
]


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_line_would_be_caught(line, monkeypatch):
    with pytest.raises((pytest.fail.Exception, AssertionError, SystemExit, argparse.ArgumentError)):
        parse(line, monkeypatch)
