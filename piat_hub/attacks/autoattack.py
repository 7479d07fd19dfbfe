"""AutoAttack (Croce & Hein 2020, arXiv:2003.01690), run by the `pyautoattack` package, one component at a time.

The standard version is four components; each runs on the images that still stand after the ones before it. Calling
them one by one gives per-component counts and lets an evaluation stop and go on between batches.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piat_hub.attacks.core import attack_mode, ball, look, usable
from piat_hub.config import ThreatModel

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
Component = Callable[[nn.Module, Tensor, Tensor], Tensor]


def components(eps: float, norm: str, num_classes: int, seed: int, queries: int = 5000) -> dict[str, Component]:
    """The standard version's components by name, each (model, x, y) -> x_adv; pixels in [0, 1].

    Under L1 (Croce & Hein 2021, arXiv:2103.01208) both APGDs come down from 3 eps by way of 2 eps, apgd-ce starts five
    times, and apgd-t aims at 5 classes in place of 9. With fewer classes the targeted attacks aim at all num_classes - 1
    others; with fewer than 4 the targeted DLR loss is undefined and apgd-t is left out (`changes` says so).

    Args:
        eps: perturbation budget in pixel units, 8/255 for eight levels.
        norm: "Linf", "L2" or "L1".
        num_classes: classes that the model tells apart, the K of its logits (B, K).
        seed: of the components' random starts and of Square's search.
        queries: most that Square may ask for an image; 5000, as in the standard version, is also the upper bound.

    Returns:
        Name to attack, in the order in which they run.

    Raises:
        InputError: for another norm.
    """
    ball(norm)  # or InputError
    names = STANDARD if num_classes >= 4 else tuple(n for n in STANDARD if n != "apgd-t")
    setting = {"eps": eps, "norm": norm, "num_classes": num_classes, "seed": seed, "queries": queries}
    return {n: partial(_run, component=n, **setting) for n in names}  # type: ignore[arg-type]


def changes(num_classes: int, norm: str = "Linf", size: tuple[int, int] = (32, 32)) -> str | None:
    """How this differs from the standard version with few classes or odd sizes, in words; None where it does not.

    Args:
        num_classes: classes that the model tells apart.
        norm: "Linf", "L2" or "L1".
        size: height and width of the images.
    """
    others, found = num_classes - 1, []
    if norm == "L1" and others < 5:
        found.append(f"targeted attacks aim at {others} classes in place of 5 (apgd-t) and 9 (fab-t)")
    elif others < 9:
        found.append(f"{'fab-t aims' if norm == 'L1' else 'targeted attacks aim'} at {others} classes in place of 9")
    if num_classes < 4:
        found.append("apgd-t left out, its loss needs 4 classes")
    if norm != "Linf" and (frame := _frame(*size)) != size:
        found.append("square searches in a frame of {}x{} around the images".format(*frame))
    return "; ".join(found) or None


def _frame(height: int, width: int) -> tuple[int, int]:
    """The smallest size from this one on that pyautoattack's L2 and L1 Square take: its first squares must fill the image."""

    def taken(h: int, w: int) -> bool:
        side, offset = h // 5, (h - h // 5 * 5) // 2
        return side == 1 or (side > 1 and offset <= min(h % side, w % side))

    sizes = [(h, w) for h in range(height, height + 5) for w in range(width, width + 5)]
    return min((size for size in sizes if taken(*size)), key=lambda size: size[0] * size[1])


def autoattack(
    model: nn.Module, x: Tensor, y: Tensor, eps: float = 8 / 255, *, norm: str = "Linf", seed: int = 0
) -> Tensor:
    """Adversarial examples by the standard version; images that withstand it come back as they were.

    Croce & Hein 2020, arXiv:2003.01690: each component runs on the images that still stand after those before it.

    Args:
        model: maps images in [0, 1] to logits (B, K); attacked in eval mode with frozen weights, restored after.
        x: clean images, (B, C, H, W) in [0, 1].
        y: class numbers, (B,).
        eps: perturbation budget in pixel units, 8/255 for eight levels.
        norm: "Linf", "L2" or "L1".
        seed: of the components; the global generators are left as they were.

    Returns:
        x_adv, (B, C, H, W), within eps of x and in [0, 1].

    Raises:
        InputError: as `pgd` does, without anything broken; for few classes `changes` says what is left out.
    """
    ThreatModel(norm, float(eps))  # type: ignore[arg-type]
    largest = look(model, x, y)
    if not len(x):
        return x.clone()
    with attack_mode(model) as frozen, torch.no_grad():
        logits = frozen(x)
        with torch.enable_grad():
            few = x[:2].clone().requires_grad_()
            usable(frozen(few), few, largest)
    x_adv, standing = x.clone(), logits.argmax(1) == y
    for run in components(eps, norm, logits.shape[1], seed).values():
        index = standing.nonzero().squeeze(1)
        if not len(index):
            break
        candidate = run(model, x[index], y[index])
        with attack_mode(model) as frozen, torch.no_grad():
            broken = frozen(candidate).argmax(1) != y[index]
        x_adv[index[broken]] = candidate[broken]
        standing[index[broken]] = False
    return x_adv


def _run(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    component: str,
    eps: float,
    norm: str,
    num_classes: int,
    seed: int,
    queries: int,
) -> Tensor:
    from pyautoattack import AutoAttack

    with borrowed(model) as logits:
        suite = AutoAttack(logits, eps=eps, norm=norm, seed=seed, version="standard", device=x.device)
        for targeted in (suite.apgd_targeted, suite.fab):
            targeted.n_target_classes = min(targeted.n_target_classes, num_classes - 1)
        x, y = x.contiguous(), y.contiguous()
        if component == "apgd-ce":
            suite.apgd.loss = "ce"
            return suite.apgd.perturb(x, y)
        if component == "apgd-t":
            return suite.apgd_targeted.perturb(x, y)
        if component == "fab-t":
            suite.fab.targeted = True
            return suite.fab.perturb(x, y)
        suite.square.n_queries = min(queries, suite.square.n_queries)
        height, width = x.shape[2:]
        frame = _frame(height, width) if norm != "Linf" else (height, width)
        suite.square.predict = lambda framed: logits(framed[..., :height, :width])
        framed = F.pad(x, (0, frame[1] - width, 0, frame[0] - height))
        return suite.square.perturb(framed, y)[..., :height, :width]


@contextmanager
def borrowed(model: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """The model as pyautoattack's attacks take it; they seed the global generators, which are put back after.

    Args:
        model: maps images in [0, 1] to logits (B, K); frozen and in eval mode inside the block. Their log goes nowhere.

    Yields:
        Images to logits of their own: in fp32, since others break their index arithmetic, and not the model's own, since
        they may write into them.
    """
    logger = logging.getLogger("auto-attack")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with attack_mode(model) as frozen, torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield lambda images: frozen(images).float().clone()
    finally:
        logger.setLevel(level)
