"""Intervals and paired comparisons."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

Z95 = 1.959963984540054  # a standard normal lies within this of 0 with probability 95 %


def proportion(correct: int, n: int) -> dict[str, Any]:
    """What results.json says about a count: accuracy, correct, n and the Wilson interval.

    Args:
        correct: from 0 to n.
        n: at least 1.
    """
    return {"accuracy": correct / n, "correct": correct, "n": n, "ci95": list(wilson(correct, n))}


def class_accuracy(verdicts: np.ndarray, labels: np.ndarray, classes: int) -> list[float | None]:
    """The share of each class that is correct; None for a class without images.

    Args:
        verdicts: (n,) bool, true where correct.
        labels: class numbers, (n,).
        classes: how many there are.
    """
    return [float(verdicts[labels == k].mean()) if (labels == k).any() else None for k in range(classes)]


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion (Wilson 1927); both ends in [0, 1].

    Args:
        correct: from 0 to n.
        n: at least 1.

    Returns:
        Low and high end.
    """
    p, z, zz = correct / n, Z95, Z95 * Z95
    middle, half = p + zz / (2 * n), z * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    low, high = (middle - half) / (1 + zz / n), (middle + half) / (1 + zz / n)
    return max(0.0, low) if correct else 0.0, min(1.0, high) if correct < n else 1.0  # exact where rounding is not


def mean_of_images(shares: np.ndarray, least: float = 0.0) -> tuple[float, list[float]]:
    """(mean, [low, high]): the 95 % normal interval of a mean whose units are images, each measured several times.

    Args:
        shares: what each image has, (n,), up to 1.
        least: the lowest possible.
    """
    mean, n = float(shares.mean()), len(shares)
    half = Z95 * float(shares.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return mean, [max(least, mean - half), min(1.0, mean + half)]


@dataclass(frozen=True)
class Paired:
    """Two models A and B under one attack on the same images.

    Attributes:
        attack: its name.
        n: images.
        accuracy_a: of A, in [0, 1].
        accuracy_b: of B, in [0, 1].
        only_a: images that stood with A alone.
        only_b: images that stood with B alone.
        difference: B's accuracy minus A's.
        ci95: low and high end of the difference's interval.
        p_value: McNemar's, exact.
    """

    attack: str
    n: int
    accuracy_a: float
    accuracy_b: float
    only_a: int
    only_b: int
    difference: float
    ci95: tuple[float, float]
    p_value: float


def paired(attack: str, a: np.ndarray, b: np.ndarray) -> Paired:
    """B - A with the adjusted Wald interval for matched pairs (Agresti & Min 2005) and McNemar's exact p.

    Args:
        attack: its name.
        a: verdicts of A, (n,) bool, true where still classified correctly.
        b: verdicts of B, of the same images in the same order.
    """
    from scipy.stats import binomtest  # a second's import that little else needs

    n, only_a, only_b = len(a), int((a & ~b).sum()), int((b & ~a).sum())
    m, gain, discordant = n + 2, only_b - only_a, only_a + only_b + 1  # half an image is added to each of four cells
    half = Z95 * math.sqrt(discordant - gain**2 / m) / m
    p_value = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    interval = (max(-1.0, gain / m - half), min(1.0, gain / m + half))
    return Paired(attack, n, float(a.mean()), float(b.mean()), only_a, only_b, gain / n, interval, p_value)
