"""What is published: models on the Hub that we vouch for (pinned revision, checksums, accuracy), and the paper's own rows.

published.json holds a row for each, as `card.summary` gives it, with "revision" (the commit), "weights_sha256" (by
checkpoint) and, for an architecture of ours, "tag" (its name among timm's weights for it). There is none yet.
"""

import csv
import json
from pathlib import Path
from typing import Any

PUBLISHED: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("published.json").read_text(encoding="utf-8")
)


def timm_configs() -> dict[str, dict[str, Any]]:
    """What timm needs to know of those with a tag: "architecture.tag" -> the pretrained_cfg that names its pinned revision."""
    return {
        f"{row['architecture']}.{row['tag']}": {
            "hf_hub_id": f"{name}@{row['revision']}",
            "input_size": tuple(row["input_size"]),
            "num_classes": row["num_classes"],
        }
        for name, row in PUBLISHED.items()
        if "tag" in row and row["architecture"].startswith("cifar_")
    }


def paper() -> list[dict[str, str]]:
    """The rows of He et al. 2023's tables: table, architecture, dataset, method, and percents by attack ("" where not given)."""
    with Path(__file__).with_name("paper.csv").open(encoding="utf-8", newline="") as rows:
        return list(csv.DictReader(rows))


def method_of(name: str) -> tuple[str, str]:
    """(method, interpolation) of a name in the paper's tables: 'PIAT+TRADES' -> ('trades', 'piat')."""
    kind, rest = ("piat", name.removeprefix("PIAT").removeprefix("+")) if name.startswith("PIAT") else ("none", name)
    return (rest.removeprefix("PGD-AT+") or "PGD-AT").lower().replace("-", "_"), kind


PAPER_ATTACKS = {"clean": "clean", "pgd20": "pgd20", "pgd100": "pgd100", "mim": "mim20", "cw": "cw20", "aa": "aa"}
