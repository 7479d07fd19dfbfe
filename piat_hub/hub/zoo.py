"""Whose models can be imported by name: a table of RobustBench's zoo, to which a file of the user's own adds."""

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piat_hub.config import InputError, ThreatModel, from_dict, nearest, option
from piat_hub.records.origin import Origin

TABLE = Path(__file__).with_name("zoo.toml")


@dataclass(frozen=True)
class Known(Origin):
    """A row of the table: whose model it is, and what its checkpoint does not say."""

    layout: str = option("", "as `piat import --layout` takes it")
    mean: tuple[float, ...] = option((), "of its normalisation, one number a channel")
    std: tuple[float, ...] = option((), "the same")
    img_size: int | None = option(None, "pixels a side, of a timm model at another size than its usual", least=1)
    crop_pct: float | None = option(None, "what is left of a picture when it is cropped", above=0, most=1)
    interpolation: str = option("", "how a picture is made smaller: bilinear, bicubic")

    def origin(self) -> Origin:
        """The part that goes into config.json."""
        return Origin(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Origin)})


def known(name: str, own: str | Path | None = None) -> Known:
    """A row of the table by its name, "cifar10/Linf/Rice2020Overfitting".

    Args:
        name: of the model: in RobustBench's zoo DATASET/THREAT_MODEL/ID.
        own: a file of the same form as zoo.toml, whose rows come before the package's.

    Raises:
        InputError: for an unknown name, or a file that is no such table.
    """
    table = rows() | (rows(Path(own)) if own else {})
    if name not in table:
        advice = f"{TABLE.name} lists all {len(table)}; add yours with --zoo FILE, or say what it is with --layout"
        raise InputError(f"no model {name!r} in the zoo{nearest(name, table)}; {advice}")
    try:
        return from_dict(Known, table[name])
    except InputError as error:
        raise InputError(f"{own or TABLE} says of {name}: {error}") from error


def rows(path: Path = TABLE) -> dict[str, dict[str, Any]]:
    """The fields of each model of a table by its name, with those that its paper's models share.

    Args:
        path: of the table.

    Raises:
        InputError: if it is none.
    """
    try:
        papers = tomllib.loads(path.read_text(encoding="utf-8"))
        found = {}
        for paper in papers.values():
            for name, row in paper["models"].items():
                found[name] = {"name": name} | {k: v for k, v in paper.items() if k != "models"} | row
                if "threat_model" in found[name]:
                    found[name]["threat_model"] = vars(ThreatModel.parse(found[name]["threat_model"]))
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        form = "[PAPER] with its fields, then [PAPER.models] with NAME = {layout = …}"
        raise InputError(f"{path} is no table of models ({error}); write {form}, as zoo.toml does") from error
    return found
