"""The learning rate and the budget of each step: pure functions of how far the run is, with nothing to save.

A step lies between two shares of the run, `before` and `after` it, in [0, 1]. Step by step these are the rates of torch's
OneCycleLR, and of timm's CosineLRScheduler stepped per update with warmup_prefix=False.
"""

import math
from collections.abc import Sequence

from piat_hub.config.train import TrainConfig


def lr_at(config: TrainConfig, epoch: int, step: int, steps: int) -> float:
    """The learning rate of a step.

    Args:
        config: says the schedule, its rates and its warm-up.
        epoch: counted from 1.
        step: counted from 1 within the epoch.
        steps: of an epoch.
    """
    before, after = ((epoch - 1 + done / steps) / config.epochs for done in (step - 1, step))
    return lr_between(config, before, after)


def lr_between(config: TrainConfig, before: float, after: float) -> float:
    """The learning rate of a step between two shares of the run.

    Args:
        config: says the schedule, its rates and its warm-up.
        before: share that is done before the step.
        after: share that is done after it.
    """
    schedule, peak = config.schedule, config.lr
    rise = schedule.rise(config.epochs)
    if schedule.sched == "onecycle":
        return onecycle(before, after, rise, schedule.warmup_lr, peak, schedule.min_lr)
    if before < rise:
        return schedule.warmup_lr + (peak - schedule.warmup_lr) * before / rise
    if schedule.sched == "cosine":
        return anneal(before, peak, schedule.min_lr)
    return knots(after, peak, config.lr_knots) if schedule.sched == "knots" else peak


def knots(after: float, lr: float, factors: Sequence[tuple[float, float]]) -> float:
    """Constant to the first knot, then linear between the knots.

    Args:
        after: share of the run that is done after the step.
        lr: what the factors multiply.
        factors: (share of the run, factor of lr), the shares rising to 1.
    """
    share, factor = factors[0]
    for next_share, next_factor in factors[1:]:
        if after <= share:
            break
        if after <= next_share:
            return lr * (factor + (next_factor - factor) * (after - share) / (next_share - share))
        share, factor = next_share, next_factor
    return lr * factor


def anneal(share: float, first: float, last: float) -> float:
    """Half a cosine from `first` to `last` (Loshchilov & Hutter 2017).

    Args:
        share: how far, in [0, 1].
        first: the value at 0.
        last: the value at 1.
    """
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


def onecycle(before: float, after: float, rise: float, first: float, peak: float, last: float) -> float:
    """Half a cosine up and half a cosine down (Smith & Topin 2018), as torch's OneCycleLR steps along them.

    Its first step has `first`, the step that ends the rise `peak`, the run's last step `last`.

    Args:
        before: share of the run that is done before the step.
        after: share that is done after it.
        rise: share of the run in which the rate rises.
        first: learning rate of the first step.
        peak: the highest.
        last: learning rate of the last step.
    """
    if after < rise:
        return anneal(before / (rise - (after - before)), first, peak)
    return anneal((after - rise) / (1 - rise), peak, last)


def budget(config: TrainConfig, epoch: int, step: int, steps: int) -> dict[str, float]:
    """What the attack of a step is to have in place of its own eps and step_size: {} once they have risen to them.

    Both rise linearly, from 0 at the end of the clean epochs.

    Args:
        config: says the threat model, the attack and how long its budget rises.
        epoch: counted from 1.
        step: counted from 1 within the epoch.
        steps: of an epoch.
    """
    rise = config.schedule.eps_rise(config.epochs) * config.epochs
    done = epoch - 1 + step / steps - config.warmup
    if done <= 0 or done >= rise:
        return {}
    eps, step_size = (value * done / rise for value in (config.threat_model.eps, config.step_size))
    return {"eps": eps} if config.attack.crafting == "apgd" else {"eps": eps, "step_size": step_size}
