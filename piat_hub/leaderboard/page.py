"""The board as a folder: one page that asks nobody for anything, the same as JSON, and what a static Space needs."""

import base64
import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import SpaceCardData

import piat_hub
from piat_hub.config import InputError
from piat_hub.leaderboard import board
from piat_hub.records.files import sealed, whole_file
from piat_hub.records.labels import attack_name, percent
from piat_hub.records.lock import only_writer

TEMPLATE = Path(__file__).with_name("board_template.html")
SHOWN = 200  # characters of a text on the page; board.json has all of it
README = """---
{card}
---

# Robust models

`index.html` is the page, `board.json` the same for programs. `piat leaderboard` wrote them, and writes them anew.
"""


def write(models: Iterable[board.Model], output: Path) -> Path:
    """Write index.html, board.json and README.md; all of them or none.

    Args:
        models: as `board.read` gives them.
        output: the folder, made if there is none; an older board in it is replaced.

    Returns:
        The path of index.html.

    Raises:
        InputError: for a model whose results and verdicts do not tell the same, or a folder that holds something else;
            InUse, while another process writes there.
        Broken: if the system refuses to write.
    """
    told = board.content(models)
    texts = {
        "README.md": README.format(card=_card(told).to_yaml()),
        "board.json": json.dumps(sealed(told), indent=1) + "\n",
        "index.html": render(told),
    }
    with only_writer(output), contextlib.ExitStack() as files:  # the files appear together, when all are written
        if not (output / "board.json").exists() and (taken := [name for name in texts if (output / name).exists()]):
            raise InputError(f"{output} holds a {taken[0]} that is no board's; name another folder with --output")
        for name, text in texts.items():
            files.enter_context(whole_file(output / name)).write_text(text, encoding="utf-8")
    return output / "index.html"


def _card(told: Mapping[str, Any]) -> SpaceCardData:
    """What makes the folder a static Space."""
    models = [row["hub"].partition("@")[0] for table in told["tables"] for row in table["models"] if row["hub"]]
    return SpaceCardData(
        title="Robust models",
        emoji="🛡️",
        colorFrom="blue",
        colorTo="green",
        sdk="static",
        app_file="index.html",
        models=list(dict.fromkeys(models)) or None,
        tags=["leaderboard", "adversarial-robustness"],
    )


def render(told: Mapping[str, Any]) -> str:
    """The page as text: HTML with its style and script inside, which a browser is told to take no other than.

    Args:
        told: as `board.content` gives it; all of it is shown as text.
    """
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "attack": attack_name, "points": _points}
    environment.filters |= {"short": _short, "sha256": _sha256}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(told, version=piat_hub.__version__).lstrip()


def _points(difference: float) -> str:
    return f"{100 * difference:+.2f}"


def _short(value: Any, most: int = SHOWN) -> str:
    text = str(value)  # a record may say anything
    return text if len(text) <= most else f"{text[:most]}…"


def _sha256(text: str) -> str:
    """As a Content-Security-Policy names a style or a script."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
