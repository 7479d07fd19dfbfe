"""The house's arrows: a room may import what stands to its right here, and what that may import; never back."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PYTHON

import piat_hub

ROOT = Path(piat_hub.__file__).parent
ARROWS = {
    "config": [],
    "machine": [],
    "attacks": ["config", "machine"],
    "data": ["config", "machine"],
    "methods": ["attacks"],
    "records": ["methods"],
    "backbones": ["records"],
    "hub": ["backbones"],
    "evaluation": ["data", "hub"],
    "training": ["evaluation"],
    "study": ["training"],
    "figures": ["evaluation"],
    "leaderboard": ["evaluation"],
    "demo": ["evaluation"],
}
ANYTHING = {"cli", "__init__", "__main__"}


def reachable(room):
    """All that a room may import."""
    return set(ARROWS[room]).union(*(reachable(other) for other in ARROWS[room]))


def part(path):
    """The room a file belongs to: its folder below the package, or its own name."""
    inside = path.relative_to(ROOT)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def imported_parts(source):
    """Which rooms of piat_hub a source text imports, also inside its functions; not for annotations alone."""
    tree, found = ast.parse(source), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
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
        assert room in ARROWS, f"{path.name} has no place in the house; give it one here"
        beyond = imported_parts(path.read_text()) - reachable(room) - {room}
        assert not beyond, f"{path.relative_to(ROOT)} imports {sorted(beyond)}"


def test_the_check_sees_each_form_of_import():
    source = "import piat_hub.cli\nfrom piat_hub import hub\ndef f():\n    from piat_hub.training.run import train\n"
    assert imported_parts(source) == {"cli", "hub", "training"}
    assert imported_parts("if TYPE_CHECKING:\n    from piat_hub import hub\n") == set()
    assert reachable("methods") == {"attacks", "config", "machine"}


def test_no_module_imports_itself_round_a_circle_inside_its_room():
    modules = {".".join(p.relative_to(ROOT.parent).with_suffix("").parts): p for p in ROOT.rglob("*.py")}

    def imports(name):
        tree = ast.parse(modules[name].read_text())
        for node in tree.body:  # at the top: what a function imports is imported later
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("piat_hub"):
                named = [f"{node.module}.{alias.name}" for alias in node.names]
                yield from (found for found in (*named, node.module) if found in modules and not found.endswith("__"))

    def visit(name, path):
        assert name not in path, f"a circle: {' -> '.join([*path, name])}"
        if name not in done:
            for other in imports(name):
                visit(other, [*path, name])
            done.add(name)

    done = set()
    for name in modules:
        visit(name, [])
    assert len(done) > 60


def test_the_engine_knows_no_hub_and_no_data_set_by_name():
    source = (ROOT / "training" / "engine.py").read_text()
    assert not imported_parts(source) & {"hub", "records"} and "load(" not in source


def test_nothing_imports_the_entry_scripts():
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.module not in ("train", "evaluate")
            elif isinstance(node, ast.Import):
                assert not {alias.name for alias in node.names} & {"train", "evaluate"}


@pytest.mark.parametrize(
    ("module", "function", "most"), [("training/engine.py", "train", 60), ("training/run.py", "train", 70)]
)
def test_the_loops_fit_on_a_screen(module, function, most):
    tree = ast.parse((ROOT / module).read_text())
    loop = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
    assert loop.end_lineno - loop.lineno < most


def test_no_module_is_longer_than_400_lines():
    long = {str(p.relative_to(ROOT)): n for p in ROOT.rglob("*.py") if (n := p.read_text().count("\n")) > 400}
    assert not long


def modules_after(code, python=sys.executable):
    """What is loaded once this code has run in an interpreter of its own."""
    code += "\nimport sys; print('\\nloaded', *sys.modules)"
    said = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return set(said.stdout.rpartition("\nloaded")[2].split()), said


HELP = [
    "evaluate",
    "compare",
    "predict",
    "card",
    "push",
    "export",
    "import",
    "leaderboard",
    "verify",
    "robustbench",
    "figures",
    "report",
    "study",
]
USAGE_ERRORS = [
    ["nosuch"],
    ["train", "nosuch"],
    ["train", "--epohcs", "3", "--method.beta", "6"],
    ["train", "digits", "--epochs", "x"],
    ["study", "lambda", "--epohcs", "3"],
    ["evaluate", "m", "--attack", "pgd20"],
    ["compare", "a"],
    ["card", "nosuch"],
    ["compare", "a", "b"],
]
DOORS = [
    "import piat_hub; assert 'create_model' in dir(piat_hub)",
    "import piat_hub.config.recipes as recipes; assert len(recipes.names()) > 5",
    "from piat_hub.cli import main; assert main(['--help']) == 0 and main([]) == 2",
    *(f"try:\n    main([{command!r}, '--help'])\nexcept SystemExit:\n    pass" for command in HELP),
    *(f"assert main({words!r}) == 2" for words in USAGE_ERRORS),
]


def test_what_needs_no_torch_loads_none():
    code = "import sys\n"
    for door in DOORS:
        code += f"{door}\nassert 'torch' not in sys.modules, {door!r}\n"
    loaded, said = modules_after(code)
    assert said.returncode == 0, said.stderr
    assert not loaded & {"torch", "timm", "datasets", "accelerate"}


@pytest.mark.slow
def test_registering_is_what_an_import_says():
    code = "import piat_hub.backbones, timm; assert timm.is_model('cifar_resnet18')"
    loaded, said = modules_after(code, PYTHON)
    assert said.returncode == 0 and "piat_hub.leaderboard" not in loaded, said.stderr
    loaded, said = modules_after("import piat_hub; piat_hub.create_model; import piat_hub.leaderboard", PYTHON)
    assert said.returncode == 0 and "piat_hub.leaderboard.submission" in loaded, said.stderr
