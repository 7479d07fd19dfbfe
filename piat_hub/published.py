"""The models on the Hub that we vouch for: name -> pinned revision, checksums and measured accuracy.

published.json holds a row for each, as `card.summary` gives it, with "revision" (the commit), "weights_sha256" (by
checkpoint) and, for an architecture of ours, "tag" (its name among timm's weights for it). There is none yet.
"""

from __future__ import annotations

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
