"""The import arrows of the house: what stands on the left may be imported by what stands to its right, never back."""

import ast
import subprocess
import sys
from pathlib import Path

import piat_hub

ROOT = Path(piat_hub.__file__).parent
MAY_IMPORT = {
    "config": set(),
    "files": {"config"},
    "recipes": {"config"},
    "attacks": {"config"},
    "interpolation": {"config"},
    "awp": set(),
    "tensors": {"config", "files"},
    "untrusted": {"config", "files", "tensors"},
    "data": {"config"},
    "small_image": {"config"},
    "backbones": {"config", "small_image", "published"},
    "methods": {"config", "attacks", "interpolation", "data", "backbones"},
    "engine": {"config", "attacks", "interpolation", "awp", "data", "backbones", "methods"},
    "results": {"config", "files", "data"},
    "evaluation": {"config", "attacks", "data", "results"},
    "checks": {"config", "attacks", "data", "evaluation"},
    "plain_timm": set(),
    "published": set(),
    "card": {"config", "files", "recipes", "plain_timm"},
    "hub": {"config", "files", "results", "tensors", "untrusted", "small_image", "backbones", "card", "published"},
    "export": {"config", "files"},
    "layouts": {"config", "tensors", "small_image", "backbones", "hub"},
    "leaderboard": {"config", "files", "data", "published", "evaluation", "checks", "card", "hub"},
    "records": {"config", "files", "methods", "published", "card"},
    "probes": {"config", "attacks", "data"},
    "figures": {"config", "files", "card", "records", "probes"},
    "state": {"config", "files", "tensors", "methods"},
    "run": {
        *("config", "files", "attacks", "interpolation", "data", "backbones", "methods"),
        *("engine", "evaluation", "hub", "state"),
    },
    "request": {"config", "data", "small_image", "evaluation", "results", "checks", "card", "hub", "run", "tensors"},
    "gallery": {"config", "files", "data", "evaluation", "records", "probes", "figures", "request"},
    "study": {"config", "files", "recipes", "data", "evaluation", "methods", "published", "card", "records", "run"},
    "report": {"config", "files", "results", "published", "card", "records", "figures", "gallery"},
}
ANYTHING = {"cli", "__init__", "__main__"}


def part(path: Path) -> str:
    """The room a file belongs to: its folder below the package, or its own name."""
    inside = path.relative_to(ROOT)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def imported_parts(source: str) -> set[str]:
    """Which rooms of piat_hub a source text imports, also inside its functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "piat_hub":
            names = [f"piat_hub.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("piat_hub.")}
    return found


def test_every_import_follows_an_arrow():
    files = sorted(ROOT.rglob("*.py"))
    assert len(files) > 15
    for path in files:
        room = part(path)
        if room in ANYTHING:
            continue
        assert room in MAY_IMPORT, f"{path.name} has no place in the house; give it one here"
        beyond = imported_parts(path.read_text()) - MAY_IMPORT[room] - {room}
        assert not beyond, f"{path.relative_to(ROOT)} imports {sorted(beyond)}"


def test_the_check_sees_each_form_of_import():
    source = "import piat_hub.run\nfrom piat_hub import hub\ndef f():\n    from piat_hub.engine import train\n"
    assert imported_parts(source) == {"run", "hub", "engine"}


def test_config_and_recipes_import_no_torch():
    probe = (
        "import sys, types; sys.modules['piat_hub'] = p = types.ModuleType('piat_hub'); p.__path__ = [sys.argv[1]]\n"
    )
    probe += "import piat_hub.recipes; print('torch' in sys.modules, len(piat_hub.recipes.names()))"
    shown = subprocess.run([sys.executable, "-c", probe, str(ROOT)], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "7"]


def test_nothing_imports_the_entry_scripts():
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.module not in ("train", "evaluate")
            elif isinstance(node, ast.Import):
                assert not {alias.name for alias in node.names} & {"train", "evaluate"}


def test_the_training_loop_fits_on_a_screen():
    tree = ast.parse((ROOT / "engine.py").read_text())
    loop = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "train")
    assert loop.end_lineno - loop.lineno < 60
