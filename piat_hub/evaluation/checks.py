"""Is a robust accuracy to be believed? Checks after Athalye et al. 2018 and Carlini et al. 2019 (arXiv:1902.06705).

Gradient masking makes gradient attacks fail where the model is not robust. Each check passes or warns in plain words.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from piat_hub.attacks import attack_mode, malt, pgd
from piat_hub.attacks.autoattack import components
from piat_hub.attacks.core import gap
from piat_hub.attacks.malt import LEAST
from piat_hub.config import InputError, ThreatModel, first_line, pixels
from piat_hub.data import Split, derived_seed, to_unit
from piat_hub.evaluation.own_code import Front, past
from piat_hub.evaluation.premises import BESIDE, TWICE, apart, gradient
from piat_hub.evaluation.verdict import correct, verdict_mode
from piat_hub.machine import device_of

QUERIES = 500  # of Square in the check; AutoAttack's own Square has 5000


def check(
    model: nn.Module,
    split: Split,
    threat_model: ThreatModel,
    *,
    seed: int = 0,
    surrogate: nn.Module | None = None,
    steps: int = 20,
) -> Iterator[dict[str, Any]]:
    """Run every check on the split; yields each as {"check", "passed", "found" in words, …figures}.

    A hundred images are enough; a count may be off by two in a hundred before a check warns.

    Args:
        model: maps images in [0, 1] to logits (B, K); left as it was found.
        split: the images, all of them on the model's device at once.
        threat_model: norm and eps of the attacks; eps is also halved, doubled, and raised until any image is allowed.
        seed: of every attack's randomness.
        surrogate: another model of the same task, for the transfer check, which is left out without one.
        steps: the most that a reported attack has; images close to the edge are attacked with five times as many.

    Yields:
        One dict a check, "passed" being True or False. Where no image is classified correctly even without an attack,
        that is the last. A model without a gradient is spared the attacks that follow it. With a `Front` before the
        model, another follows the gradient past it.
    """
    device = device_of(model)
    x, y = to_unit(split.images[:]).to(device), split.labels.to(device)
    eps, norm = threat_model.eps, threat_model.norm
    with verdict_mode(model) as exact:
        yield finite(exact, x)
        stands = correct(exact, x, y)
        x, y, n = x[stands], y[stands], len(split)
        slack = max(1, round(0.02 * n))

        def standing(attack: Callable[..., Tensor], on: nn.Module | None = None, **options: Any) -> Tensor:
            torch.manual_seed(derived_seed(seed, 1))
            return correct(exact, attack(on or exact, x, y, **options), y)

        def white_box(radius: float = eps, steps: int = 20, **options: Any) -> Tensor:
            length = max(radius / 4, 2.5 * radius / steps)
            return standing(pgd, eps=radius, step_size=length, steps=steps, norm=norm, **options)

        def falls(name: str, what: str, by: dict[str, Tensor]) -> dict[str, Any]:
            counts = [int(verdict.sum()) for verdict in by.values()]
            passed = all(b <= a + slack for a, b in itertools.pairwise(counts))
            found = ", ".join(f"{_percent(c, n)} at {label}" for label, c in zip(by, counts, strict=True))
            words = "falls" if passed else "RISES"
            return _result(name, passed, f"accuracy {words} with {what}: {found}", counts=counts)

        def stronger(name: str, other: str, left: Tensor, own: str, strong: Tensor, least: int = 0) -> dict[str, Any]:
            counts = [int(left.sum()), int(strong.sum()), beyond := int((~left & strong).sum())]
            words = f"{other} leaves {_percent(counts[0], n)}, {own} {_percent(counts[1], n)}; "
            words += f"it breaks {beyond} that {own} does not"
            return _result(name, beyond <= max(slack, least), words, counts=counts)

        yield from outputs(exact, x)
        if not len(y):
            yield _result("accuracy", False, "no image is classified correctly even without an attack")
            return
        strong = torch.ones_like(y, dtype=torch.bool)
        with attack_mode(exact) as frozen, torch.no_grad():
            classes = int(frozen(x[:2]).shape[1])
        own = "PGD without a gradient"
        yield (flat := gradients(exact, x, y))
        if not flat["none"]:
            usual, strong, own = white_box(), white_box(steps=100), "PGD-100"
            yield falls("steps", "steps", {"PGD-5": white_box(steps=5), "PGD-20": usual, "PGD-100": strong})
            yield more_steps(exact, x, y, threat_model, steps, slack, seed)
            yield falls("restarts", "restarts", {"1": usual, "5": white_box(restarts=5)})
            everything = 1.0 if norm == "Linf" else float(x[0].numel()) ** 0.5
            radii = eps / 2, eps, min(2 * eps, everything)
            lefts = white_box(radii[0]), usual, white_box(radii[2])
            yield falls("eps", "eps", {f"eps {pixels(r, norm)}": v for r, v in zip(radii, lefts, strict=True)})
            left = int(white_box(everything, steps=50).sum())
            words = f"PGD-50 leaves {_percent(left, n)} at eps {everything:.4g}, where any image is allowed"
            yield _result("large eps", left <= slack, f"{words}; it should leave nothing", counts=[left])
            if classes >= LEAST:  # aimed at single classes an attack does better on honest models too, by a tenth or so
                aimed = strong.clone()
                if len(x[strong]):
                    x_adv = malt(exact, x[strong], y[strong], eps, norm=norm, targets=3, steps=30, seed=seed)
                    aimed[strong] = correct(exact, x_adv, y[strong])
                yield stronger("targets", "PGD-100, then MALT,", aimed, own, strong, int(strong.sum()) // 4)
        if fronts := [part for part in exact.modules() if isinstance(part, Front)]:
            with past(fronts):
                behind = gradients(exact, x, y)
                found = white_box(steps=100) if behind["passed"] else strong
            if behind["passed"]:
                yield stronger("through", "PGD-100, its gradient taken past the front part,", found, own, strong)
            else:
                yield _result("through", False, f"behind the front part {behind['found']}", counts=behind["counts"])
        square = components(eps, norm, classes, seed, queries=QUERIES)["square"]
        yield stronger("black box", f"Square, {QUERIES} queries", standing(square), own, strong)
        if surrogate is not None:
            other = surrogate.to(device)
            step = {"eps": eps, "step_size": eps / 4, "steps": 20, "norm": norm}
            yield stronger("transfer", "PGD-20 from the surrogate", standing(pgd, other, **step), own, strong)


def more_steps(
    model: nn.Module, x: Tensor, y: Tensor, threat_model: ThreatModel, steps: int, slack: int, seed: int
) -> dict[str, Any]:
    """Whether five times the steps break what was nearly broken: the check "more steps", as `check` yields it.

    Args:
        model: maps images in [0, 1] to logits (B, K).
        x: images that are right when clean, (B, C, H, W) in [0, 1].
        y: class numbers, (B,).
        threat_model: norm and eps.
        steps: of the reported attack.
        slack: how many images may fall before the check warns.
        seed: of the random starts.
    """
    eps, norm = threat_model.eps, threat_model.norm
    torch.manual_seed(derived_seed(seed, 2))
    x_adv = pgd(model, x, y, eps, eps / 4, steps, norm=norm)
    with attack_mode(model), torch.no_grad():
        logits = model(x_adv)
    height = gap(logits, y)
    standing = (height > 0).nonzero().squeeze(1)
    near = standing[height[standing].argsort()[: -(-len(standing) // 4)]]
    broken = 0
    if len(near):
        again = pgd(model, x[near], y[near], eps, 2.5 * eps / (5 * steps), 5 * steps, norm=norm)
        broken = int((~correct(model, again, y[near])).sum())
    words = f"of the {len(near)} images that PGD-{steps} leaves closest to the edge, PGD-{5 * steps} breaks {broken}"
    return _result("more steps", broken <= slack, words, counts=[len(near), broken])


def finite(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """Whether the model gives numbers at all: the check "finite", as `check` yields it.

    Args:
        model: maps images in [0, 1] to logits (B, K).
        x: clean images, (B, C, H, W) in [0, 1].
    """
    with attack_mode(model), torch.no_grad():
        lost = int((~model(x).isfinite()).any(1).sum())
    said = f"{lost} of {len(x)} clean images have logits that are NaN or Inf"
    return _result("finite", lost == 0, said + (", which count as misclassified" if lost else ""), counts=[lost])


def outputs(model: nn.Module, x: Tensor) -> Iterator[dict[str, Any]]:
    """What the outputs tell: the checks "randomness", "batch", "logits" and "bf16".

    Args:
        model: maps images in [0, 1] to logits (B, K).
        x: clean images, (B, C, H, W) in [0, 1].
    """
    with attack_mode(model), torch.no_grad():
        first, second = model(x), model(x)
        sums, low = first.sum(1), first.min() if len(first) else first.sum()
        with torch.autocast(x.device.type, torch.bfloat16):
            rough = model(x)
    twice = apart(first, second, TWICE)
    said = f"two passes differ by up to {twice:.3g} of the logits' spread: attack its expectation, with restarts"
    yield _result("randomness", not twice, said if twice else "two passes over the same images agree")
    yield batch(model, x, first)
    softmax = bool(len(first)) and bool((sums - 1).abs().max() < 1e-4) and bool(low >= 0)
    said = "the model returns probabilities, not logits: losses saturate" if softmax else "the model returns logits"
    yield _result("logits", not softmax, said)
    flips = int((first.argmax(1) != rough.argmax(1)).sum())
    said = f"{flips} of {len(x)} clean predictions differ under bf16; verdicts here are fp32"
    yield _result("bf16", flips <= max(1, round(0.02 * len(x))), said, counts=[flips])


def batch(model: nn.Module, x: Tensor, logits: Tensor) -> dict[str, Any]:
    """Whether an image alone is answered as in its batch: the check "batch", as `check` yields it.

    Args:
        model: maps images in [0, 1] to logits (B, K).
        x: clean images, (B, C, H, W) in [0, 1].
        logits: its answer to all of them at once, (B, K).
    """
    try:
        with attack_mode(model), torch.no_grad():
            alone = torch.cat([model(one) for one in x.split(1)]) if len(x) else logits
    except (RuntimeError, ValueError, IndexError) as error:
        return _result("batch", False, f"the model takes no batch of one: {first_line(error)}")
    beside, flips = apart(logits, alone, BESIDE), int((logits.argmax(1) != alone.argmax(1)).sum())
    said = f"alone, {flips} of {len(x)} images are of another class than in their batch"
    said += f", and logits differ by up to {beside:.3g} of their spread" if beside else ""
    return _result("batch", not beside, said, counts=[flips])


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    """How many images have no gradient to follow: the check "zero gradients", as `check` yields it.

    Args:
        model: maps images in [0, 1] to logits (B, K).
        x: clean images, (B, C, H, W) in [0, 1].
        y: class numbers, (B,).
    """
    try:
        found = gradient(model, x, y).flatten(1)
    except InputError as error:
        return _result("zero gradients", False, str(error), counts=[len(x), 0], none=True)
    flat = int((found == 0).all(1).sum())
    nan = int((~found.isfinite()).any(1).sum())
    words = f"{flat} of {len(x)} images have a gradient of exactly zero" + (
        f", {nan} one that is not finite" if nan else ""
    )
    return _result("zero gradients", flat + nan <= max(1, round(0.02 * len(x))), words, counts=[flat, nan], none=False)


def _result(name: str, passed: bool, found: str, **figures: Any) -> dict[str, Any]:
    return {"check": name, "passed": passed, "found": found} | figures


def _percent(count: int, n: int) -> str:
    return f"{100 * count / n:.2f} %"
