"""The documents: their tables are what the recorded results say, their links lead somewhere, their code runs."""

import importlib.util
import re
from pathlib import Path

import pytest

import piat_hub

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "model_cards/README.md")]
DOCUMENTS += [page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts]


def tables():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_what_the_results_say():
    module, found = tables(), 0
    for file in module.FILES:
        text = file.read_text()
        found += text.count("<!-- table ")
        assert module.filled(text) == text, f"{file.name} is stale: run python docs/tables.py"
    assert found >= 3


def test_a_table_takes_arguments():
    module = tables()
    page = "<!-- table method_settings trades -->\nstale\n<!-- end -->"
    assert "`--method.beta` | 6 " in module.filled(page) and "stale" not in module.filled(page)


def test_the_guide_counts_the_parameters_of_the_digits_model():
    model = piat_hub.create_model("cifar_resnet8", in_chans=1)
    count = sum(p.numel() for p in model.parameters())
    assert f"80 epochs of a {count:,}-parameter ResNet" in (ROOT / "docs/guides/first-model.md").read_text()


def test_a_changed_figure_would_be_caught():
    module = tables()
    text = (ROOT / "README.md").read_text()
    table = re.search(r"<!-- table \w+ -->\n(.*?)<!-- end -->", text, re.S)[1]
    figure = re.search(r"\d\d\.\d\d %", table)[0]
    assert module.filled(text.replace(figure, "12.34 %")) == text


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_relative_links_exist(document):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_the_readmes_python_runs(small_digits, trained):
    trained(small_digits(epochs=2), "runs/demo")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(blocks) >= 2
    scope = {}
    for block in blocks:
        exec(block, scope)
    assert scope["results"].attacks["pgd20"]["n"] == 100 and str(scope["results"].threat_model) == "Linf eps 0.15"
    assert scope["interpolation"].epoch == 1 and scope["lam"] == pytest.approx(2 / 11)


def test_the_readme_is_short():
    assert (ROOT / "README.md").read_text().count("\n") <= 120
