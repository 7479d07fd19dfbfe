"""The page as a Hugging Face Space: a folder that runs as it stands."""

import importlib.metadata
import json
import platform
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import SpaceCardData

import piat_hub
from piat_hub.config import InputError
from piat_hub.demo.shown import Shown, load
from piat_hub.records.files import WEIGHTS, own, sealed, write_text, written
from piat_hub.records.model_config import ModelConfig
from piat_hub.records.rundir import read_model

APP = '''"""The page, as the Hub serves it; anywhere else: python app.py."""

from pathlib import Path

from piat_hub.demo.page import launch
from piat_hub.demo.shown import load

HERE = Path(__file__).parent
launch(load([{models}], {dataset!r}))
'''
README = """---
{card}
---

# See an attack

The same attack on each model, a step at a time: {names}.

The folder holds all it needs of piat_hub. Anywhere else:

    pip install -r requirements.txt gradio=={gradio}
    python app.py
"""


def export(specs: Sequence[str], directory: Path, dataset: str | None = None) -> Path:
    """Write app.py, requirements.txt, README.md and this package; a Hub model goes by its id, a local one with its files.

    Args:
        specs: MODELs.
        directory: appears whole or not at all; it may be there if it is empty.
        dataset: as in `load`.

    Returns:
        The directory.

    Raises:
        InputError: for a model from code, a folder of data, a directory that holds something, or as `load` does.
        Broken: if the system refuses to write.
    """
    if directory.exists() and any(directory.iterdir()):
        raise InputError(f"{directory} holds something already; name a new folder with --export")
    for spec in specs:
        if spec.startswith("local-dir:"):
            raise InputError(f"{spec} is a folder on this machine, which a Space has not; push it and give its id")
        if ":" in spec and not spec.startswith("hf-hub:") and not Path(spec).is_dir():
            raise InputError(f"{spec} is code on this machine, which a Space has not; push a model and give its id")
    if dataset and Path(dataset).is_dir():
        raise InputError(f"{dataset} is a folder on this machine, which a Space has not; give a data set of the Hub")
    models = load(specs, dataset)
    place = directory.absolute()
    with written(directory):
        place.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=place.parent, prefix=".space-") as scratch:
            _fill(space := Path(scratch) / "space", models, dataset)
            space.replace(place)
    return directory


def _fill(space: Path, models: Sequence[Shown], dataset: str | None) -> None:
    """Make the folder."""
    package = Path(piat_hub.__file__).parent
    shutil.copytree(package, space / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    named = [_by_name(model, space) for model in models]
    words = {
        "names": ", ".join(Path(model.name).name for model in models),
        "gradio": importlib.metadata.version("gradio"),
    }
    card: dict[str, Any] = {"title": "See an attack", "emoji": "🔍", "colorFrom": "red", "colorTo": "blue"}
    card |= {"sdk": "gradio", "sdk_version": words["gradio"], "python_version": platform.python_version()}
    card |= {"app_file": "app.py", "pinned": False, "tags": ["adversarial-robustness"]}
    card |= {"models": [_id(m.spec) for m in models if not Path(m.spec).is_dir()] or None}
    needed = [line for line in importlib.metadata.requires("piat-hub") or () if "extra ==" not in line]
    texts = {
        "app.py": APP.format(models=", ".join(named), dataset=dataset),
        "requirements.txt": "\n".join([*needed, ""]),
        "README.md": README.format(card=SpaceCardData(**card).to_yaml(), **words),
    }
    for name, text in texts.items():
        (space / name).write_text(text, encoding="utf-8")


def _id(spec: str) -> str:
    """A Hub model's id alone."""
    return spec.removeprefix("hf-hub:").partition("@")[0]


def _by_name(model: Shown, space: Path) -> str:
    """What app.py calls a model, as an expression; a local one's config.json and weights are copied."""
    if not Path(model.spec).is_dir():
        return repr(model.spec)
    name = re.sub(r"[^\w.-]+", "-", Path(model.name).name).strip("-.")
    names = (name, *(f"{name}-{number}" for number in range(2, 1000)))
    folder = next(Path("models") / one for one in names if not (space / "models" / one).exists())
    (space / folder).mkdir(parents=True)
    config = ModelConfig.read(own(model.spec, "config.json"))
    if config.piat is not None:
        config = read_model(model.spec).model  # which names no folder of this machine
    write_text(space / folder / "config.json", json.dumps(sealed(config.content), indent=2) + "\n")
    shutil.copyfile(own(model.spec, WEIGHTS["last"]), space / folder / WEIGHTS["last"])
    return f"str(HERE / {folder.as_posix()!r})"
