"""Docstrings of the contract's rooms: a function that takes three things or more says of each what it is."""

import ast
from pathlib import Path

import pytest

import piat_hub

ROOT = Path(piat_hub.__file__).parent
ROOMS = ("attacks", "methods", "data", "backbones", "evaluation", "training", "demo", "leaderboard")
FILES = (
    "hub/load.py",
    "hub/save.py",
    "hub/push.py",
    "hub/eval_results.py",
    "hub/remote.py",
    "records/results.py",
    "records/statistics.py",
)


def parameters(function):
    """The names a caller gives, without self, cls and those that begin with an underscore."""
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg) if a]
    return [name for name in names if name not in ("self", "cls") and not name.startswith("_")]


def functions(body, owner=None):
    """(name, parameters, docstring) of public functions and methods; of a class, what its constructor takes."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from functions(node.body, node)
        elif isinstance(node, ast.FunctionDef) and owner and node.name == "__init__":
            yield owner.name, parameters(node), ast.get_docstring(owner) or ""
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            name = f"{owner.name}.{node.name}" if owner else node.name
            yield name, parameters(node), ast.get_docstring(node) or ""


def entries(docstring):
    """The names in its Args section."""
    _, _, rest = docstring.partition("\nArgs:\n")
    section = rest.split("\n\n")[0].splitlines()
    return [line.partition(":")[0].strip(" *") for line in section if line[:4].isspace() and not line[4:5].isspace()]


def lacking(source):
    """{function: parameters that its Args do not name} of a module's source."""
    found = {
        name: [one for one in names if one not in entries(text)]
        for name, names, text in functions(ast.parse(source).body)
        if len(names) >= 3
    }
    return {name: missing for name, missing in found.items() if missing}


MODULES = sorted({*(path for room in ROOMS for path in (ROOT / room).rglob("*.py")), *(ROOT / name for name in FILES)})


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(ROOT)) for path in MODULES])
def test_every_parameter_is_described(path):
    assert lacking(path.read_text(encoding="utf-8")) == {}


SOURCE = '''
class Copy:
    """A copy.

    Args:
        model: what is copied.
        decay: in [0, 1).
        **options: of deepcopy.
    """

    def __init__(self, model, decay, **options): ...

    def step(self, x, y, *, eps=8 / 255):
        """Attack.

        Args:
            x: (B, C, H, W) in [0, 1]; those of
                one batch.
            y: (B,).
            eps: in pixel units.

        Returns:
            steps: none.
        """
'''


def test_whole_sections_pass():
    assert lacking(SOURCE) == {}


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("            eps: in pixel units.\n", {"Copy.step": ["eps"]}),
        ("        decay: in [0, 1).\n", {"Copy": ["decay"]}),
        ("        **options: of deepcopy.\n", {"Copy": ["options"]}),
        ("        Args:\n", {"Copy.step": ["x", "y", "eps"]}),
    ],
)
def test_an_entry_that_is_removed_is_missed(line, missing):
    assert line in SOURCE
    assert lacking(SOURCE.replace(line, "")) == missing
