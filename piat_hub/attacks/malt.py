"""MALT (Melamed et al. 2024, arXiv:2407.02240): targets as near as a linear model would put them, then APGD on the nearest."""

import torch
from torch import Tensor, nn

from piat_hub.attacks.autoattack import borrowed
from piat_hub.attacks.core import at_least_fp32, attack_mode, look, powers, usable
from piat_hub.config import InputError, ThreatModel

CANDIDATES = 100  # the likeliest other classes, among which the targets are looked for
TARGETS = 9
OF_L1 = "aims at the classes that are near under Linf or L2; under L1 ask for aa, one of its parts, or apgd100"
LEAST = 4  # classes that the targeted DLR loss is defined for


def malt(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float = 8 / 255,
    *,
    norm: str = "Linf",
    targets: int = TARGETS,
    steps: int = 100,
    seed: int = 0,
) -> Tensor:
    """Adversarial examples by APGD on the targeted DLR loss, at one of the `nearest_classes` after the other.

    Melamed et al. 2024, arXiv:2407.02240. APGD is pyautoattack's, so all that differs from AutoAttack's apgd-t is which
    classes it aims at. Images that withstand every target come back as they were.

    Args:
        model: maps images in [0, 1] to logits (B, K); attacked in eval mode with frozen weights, restored after.
        x: clean images, (B, C, H, W) in [0, 1].
        y: class numbers, (B,).
        eps: perturbation budget in pixel units, 8/255 for eight levels.
        norm: "Linf" or "L2".
        targets: how many classes to aim at.
        steps: iterations for each of them.
        seed: of the random starts; the global generators are left as they were.

    Returns:
        x_adv, (B, C, H, W), within eps of x and in [0, 1].

    Raises:
        InputError: as `pgd` does, and for a model of fewer than four classes.
    """
    from pyautoattack.autopgd_base import APGDAttack_targeted

    if norm == "L1":
        raise InputError(f"malt {OF_L1}")
    ThreatModel(norm, float(eps))  # type: ignore[arg-type]
    look(model, x, y)
    x_adv, x = x.clone(), x.contiguous()
    aims = nearest_classes(model, x, y, norm, targets) if len(x) else y[:, None]
    with borrowed(model) as logits, torch.no_grad():
        standing = (logits(x).argmax(1) == y).nonzero()[:, 0]
        apgd = APGDAttack_targeted(logits, n_iter=steps, norm=norm, eps=eps, seed=seed, device=x.device)
        apgd.init_hyperparam(x)
        torch.manual_seed(seed)
        for aim in aims.T:
            if not len(standing):
                break
            apgd.y_target = aim[standing]
            _, left, _, found = apgd.attack_single_run(x[standing], y[standing])
            x_adv[standing[~left]] = found[~left]
            standing = standing[left]
    return x_adv


def nearest_classes(
    model: nn.Module, x: Tensor, y: Tensor, norm: str = "Linf", count: int = TARGETS, candidates: int = CANDIDATES
) -> Tensor:
    """The other classes in the order in which a linear model with these logits and gradients would be misled to them.

    Class t is (z_y - z_t) / |grad (z_y - z_t)| away, with the dual norm of the gradient: L1 for Linf, L2 for L2. It costs a
    backward for each candidate.

    Args:
        model: maps images in [0, 1] to logits z (B, K).
        x: clean images, (B, C, H, W) in [0, 1].
        y: class numbers, (B,).
        norm: "Linf" or "L2".
        count: how many to give.
        candidates: how many of the likeliest other classes are looked at.

    Returns:
        Class numbers, (B, count), nearest first; fewer columns where there are not so many other classes.

    Raises:
        InputError: for a model without a gradient, or of fewer than four classes, and for another norm.
    """
    with attack_mode(model) as frozen, torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        logits = at_least_fp32(usable(frozen(x), x, int(y.max())))
        if (classes := logits.shape[1]) < LEAST:
            raise InputError(f"malt is undefined for {classes} classes: its loss needs {LEAST}; use apgd-ce")
        others = logits.detach().scatter(1, y[:, None], -torch.inf).topk(min(candidates, classes - 1)).indices
        gaps = logits.gather(1, y[:, None]) - logits.gather(1, others)  # (B, candidates)
        slopes = (torch.autograd.grad(gap.sum(), x, retain_graph=True)[0] for gap in gaps.T)  # one at a time is held
        steepness = torch.stack([slope.flatten(1).norm(powers(norm)[1], dim=1) for slope in slopes], 1)
    nearest = (gaps.detach() / steepness).topk(min(count, others.shape[1]), largest=False).indices
    return others.gather(1, nearest)
