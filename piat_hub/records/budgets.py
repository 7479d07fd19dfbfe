"""Accuracy at many budgets: measured at each of them, or read off how far each image's nearest example is."""

from collections.abc import Mapping
from typing import Any

from piat_hub.config import number, pixels
from piat_hub.records.claims import Figures
from piat_hub.records.results import Results
from piat_hub.records.statistics import proportion

POINTS = 16  # of a curve, up to twice the threat model's budget


def add_curve(results: Results, attack: str) -> None:
    """Add to the sweep what an attack leaves at each budget of a curve.

    Args:
        results: in whose `reach` the attack's distances are.
        attack: its name.
    """
    for k in range(1, POINTS + 1):
        levels = round(2 * 255 * results.threat_model.eps * k / POINTS, 9)
        eps = levels / 255 if levels.is_integer() else round(levels / 255, 12)  # without what arithmetic adds to it
        add_point(results, eps, {attack: read_off(results, attack, eps)})


def add_point(results: Results, eps: float, attacks: Mapping[str, Figures]) -> dict[str, Any]:
    """Add a budget to the sweep, or attacks to one that is there; returns the point.

    Args:
        results: as far as they are measured.
        eps: in pixel units.
        attacks: figures by name.
    """
    before = point_at(results, eps)
    point = {"eps": pixels(eps, results.threat_model.norm), "attacks": {**before, **attacks}}
    others = [p for p in results.sweep if p["eps"] != point["eps"]]
    results.sweep = sorted([*others, point], key=lambda p: number(p["eps"]))
    return point


def point_at(results: Results, eps: float) -> dict[str, Figures]:
    """The figures of a budget of the sweep by attack; {} where there are none.

    Args:
        results: as far as they are measured.
        eps: in pixel units.
    """
    return next(
        (point["attacks"] for point in results.sweep if point["eps"] == pixels(eps, results.threat_model.norm)), {}
    )


def read_off(results: Results, attack: str, eps: float) -> Figures:
    """What an attack that seeks the nearest examples leaves at a budget.

    Args:
        results: in whose `reach` the attack's distances are.
        attack: its name.
        eps: in pixel units.
    """
    how: dict[str, Any] = {fact: value for fact, value in results.attacks[attack].items() if fact != "seconds"}
    return how | proportion(int((results.reach[attack] > eps).sum()), results.n)  # type: ignore[return-value]
