"""timm's optimizers: which parameters weight decay leaves out, how the rate falls from layer to layer."""

from typing import Any

import timm.optim
import torch
from timm.optim import OptimInfo, param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from piat_hub.config import InputError, TrainConfig, first_line, lookup

UNSAVED = (  # their state holds types that neither safetensors nor JSON does
    "adafactorbv",
    "adafactorbvc",
    "cadafactorbv",
    "cadafactorbvc",
    "kron",
    "kronc",
    "kronw",
)


def check_optimizer(config: TrainConfig) -> OptimInfo:
    """What timm knows of the configured optimizer.

    Raises:
        InputError: for an unknown name, with the nearest one, other betas than it has, or one that cannot work here.
    """
    name, betas = config.optimizer.opt, config.optimizer.opt_betas
    known = timm.optim.get_optimizer_info(lookup("opt", name, {n: n for n in timm.optim.list_optimizers()}))
    if known.second_order:
        raise InputError(
            f"opt {name!r} wants second derivatives, which are not computed; choose another, adamw is usual"
        )
    if name in UNSAVED:
        raise InputError(
            f"opt {name!r} keeps a state that cannot be saved without pickle; choose another, adamw is usual"
        )
    count = known.num_betas if known.has_betas else 0
    if betas and len(betas) != count:
        raise InputError(f"opt {name!r} has {count} betas, got {betas}; give as many --opt-betas, or none for its own")
    return known


def make_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The configured optimizer of a model's parameters.

    Args:
        config: names it, its rates and what it leaves undecayed.
        model: the bare module.

    Raises:
        InputError: as `check_optimizer`, and for one whose package is missing.
    """
    opt, known = config.optimizer, check_optimizer(config)
    own: dict[str, Any] = {"betas": opt.opt_betas} if opt.opt_betas else {}
    if known.opt_class is torch.optim.SGD:
        own["foreach"] = True  # few kernels for all parameters, also on a CPU
    own |= {"lr": config.lr, "weight_decay": config.weight_decay, "momentum": config.momentum}
    try:
        return timm.optim.create_optimizer_v2(parameter_groups(config, model), opt=opt.opt, **own)
    except Exception as error:  # a package that is missing, whatever its constructor refuses
        reason = first_line(error)
        raise InputError(f"opt {opt.opt!r} cannot be had: {reason}; choose another --opt, adamw is usual") from error


def parameter_groups(config: TrainConfig, model: nn.Module) -> list[Any]:
    """What the optimizer is to work on: all parameters alike, or groups with a weight_decay and an lr_scale of their own.

    Args:
        config: says what is undecayed, and the decay from layer to layer.
        model: of timm's kind, the bare module.
    """
    undecayed, layer_decay = config.optimizer.undecayed, config.optimizer.layer_decay
    if undecayed == "none" and layer_decay is None:
        return list(model.parameters())
    left_out: Any = {"norms": lambda: norms(model), "1d": getattr(model, "no_weight_decay", set)}.get(undecayed, set)
    rules: dict[str, Any] = {"weight_decay_exclude_1d": undecayed == "1d", "no_weight_decay_list": left_out()}
    if layer_decay is None:
        return param_groups_weight_decay(model, config.weight_decay, **rules)
    return param_groups_layer_decay(model, config.weight_decay, layer_decay=layer_decay, **rules)


def norms(model: nn.Module) -> list[str]:
    """The names of the parameters that normalisation layers own, whatever norm it is."""
    return [
        f"{path}.{name}"
        for path, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        for name, _ in module.named_parameters(recurse=False)
    ]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group this learning rate, times its own lr_scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


@torch.no_grad()
def align_state(optimizer: torch.optim.Optimizer) -> None:
    """Give state that was loaded its weights' memory layout: sums over it then round as before, and a GPU is faster."""
    for p, state in optimizer.state.items():
        for name, kept in state.items():
            if isinstance(kept, torch.Tensor) and kept.shape == p.shape:
                state[name] = torch.empty_like(p, dtype=kept.dtype).copy_(kept)
