"""What keeps a run honest: no setting that does nothing, weights that are finite, warnings of collapse, words for what diverged."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from piat_hub.config import Diverged, InputError, InterpolationConfig, TrainConfig
from piat_hub.evaluation.verdict import verdict_mode

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def not_finite(model: nn.Module) -> str:
    """The first of the model's weights, buffers or gradients that holds NaN or Inf, in words; "" if there is none."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not tensor.isfinite().all():
            return f"{name!r}"
        if tensor.grad is not None and not tensor.grad.isfinite().all():
            return f"the gradient of {name!r}"
    return ""


def refuse_not_finite(models: Iterable[nn.Module], where: str) -> None:
    """Diverged if a weight, buffer or gradient is not finite: such a state is not saved.

    Args:
        models: to look into.
        where: what the message says of the moment, "epoch 3, step 20".

    Raises:
        Diverged: naming the first such tensor.
    """
    for model in models:
        if culprit := not_finite(model):
            raise Diverged(f"{culprit} holds NaN or Inf at {where}")


@torch.no_grad()
def advise(model: nn.Module, x: Tensor, precision: str) -> str:
    """What to do once a loss is not finite: whether half precision overflowed, or the training diverged.

    Args:
        model: in fp32, with the weights of that moment. Where they give finite logits for x, it is the precision that
            failed.
        x: a few images, (B, C, H, W) in [0, 1], on its device.
        precision: of the training, "no", "bf16" or "fp16".
    """
    lost = not_finite(model)
    with verdict_mode(model) as exact:
        finite = not lost and bool(exact.eval()(x).isfinite().all())
    if precision in HALF and finite:
        return f"In fp32 these weights give finite logits, so {precision} overflowed: start again without it"
    if precision in HALF and lost:  # on a GPU they are when the loss is read
        return f"Either {precision} overflowed or the training diverged: start again without it, or with a lower --lr"
    return "The training diverged: lower --lr, then start again"


def collapsed(metrics: Sequence[Mapping[str, Any]]) -> str:
    """A warning when an epoch loses most of the robustness there was: catastrophic overfitting, or "".

    It is PGD-10 accuracy on held-out images, or else on training ones, that falls by half, and by 10 points, in an
    epoch (Wong et al. 2020).

    Args:
        metrics: the epochs' lines of metrics.jsonl so far, at least one.
    """
    key = "train_pgd10_acc" if metrics[-1]["holdout_pgd10_acc"] is None else "holdout_pgd10_acc"
    before, now = (metrics[-2][key] if len(metrics) > 1 else 0.0), metrics[-1][key]
    if now > before / 2 or before - now < 0.1:
        return ""
    return (
        f"PGD-10 accuracy fell from {before:.1%} to {now:.1%} in epoch {metrics[-1]['epoch']}: catastrophic overfitting, as "
        "attacks of one or few steps bring about; take more --steps, a smaller --step-size or a lower --lr"
    )


def underflowing(accelerator: Accelerator) -> str:
    """A warning when fp16's gradients overflow again and again, so that its scaler leaves out update after update; or ""."""
    if not accelerator.scaler or accelerator.scaler.get_scale() >= 1:
        return ""
    return (
        "fp16 overflows again and again, and those updates are left out; --mixed-precision bf16 has the range of fp32"
    )


def refuse_idle(config: TrainConfig) -> None:
    """InputError for what a run is asked to do and would not, since what it goes with is missing; a record may hold such."""
    law = config.interpolation
    if law.kind != "constant" and law.constant != InterpolationConfig().constant:
        raise InputError("--interpolation.constant goes with --interpolation constant; give it too")
    if law.kind != "none" and law.start_epoch > config.epochs:
        raise InputError(
            f"{config.epochs} epochs end before --interpolation.start-epoch {law.start_epoch}; lower it, "
            "or give --interpolation none"
        )
    if config.schedule.min_lr and config.schedule.sched not in ("cosine", "onecycle"):
        raise InputError("--min-lr goes with --sched cosine or onecycle; give one of them, or --min-lr 0")
