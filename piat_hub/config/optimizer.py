"""How a gradient becomes a step, and how the learning rate and the budget move along a run; in timm's words."""

from dataclasses import dataclass
from typing import Literal

from piat_hub.config.errors import InputError
from piat_hub.config.fields import Checked, option


@dataclass(frozen=True)
class OptimizerConfig(Checked):
    """The optimizer beside its learning rate, momentum and weight decay."""

    opt: str = option("momentum", "optimizer, by timm's name: momentum, sgd (Nesterov's), adamw, lamb, lion, …")
    opt_betas: tuple[float, ...] = option((), "the optimizer's betas (default: its own, 0.9 0.999 for adamw)")
    undecayed: Literal["none", "norms", "1d"] = option(
        "none",
        "what weight decay leaves out: nothing, norms, or as timm one-dimensional parameters and position embeddings",
    )
    layer_decay: float | None = option(
        None, "the learning rate falls by this factor from each layer to the one before it", above=0, most=1
    )
    clip_grad: float | None = option(None, "scale a gradient whose L2 norm is larger down to this norm", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 <= beta < 1 for beta in self.opt_betas):
            raise InputError(f"opt-betas must lie in [0, 1), got {self.opt_betas}; 0.9 0.999 is usual")


@dataclass(frozen=True)
class ScheduleConfig(Checked):
    """The learning rate along the run, and the budget's rise; `schedules.py` has the formulas."""

    sched: Literal["knots", "cosine", "onecycle", "constant"] = option(
        "knots", "learning rate along the run: the recipe's knots, timm's cosine, torch's one-cycle, or constant"
    )
    warmup_epochs: int | None = option(
        None, "linear rise of the learning rate (default: the recipe's share of epochs)", unit="epochs", least=0
    )
    warmup_share: float = option(0.0, "that rise as a share of epochs", flag=None, least=0, below=1)
    warmup_lr: float = option(1e-5, "learning rate at the first step of its rise", least=0)
    min_lr: float = option(0.0, "learning rate at the end of cosine and onecycle", least=0)
    eps_warmup_epochs: int | None = option(
        None,
        "linear rise of eps and step-size after the clean epochs (default: the recipe's share of epochs)",
        unit="epochs",
        least=0,
    )
    eps_warmup_share: float = option(0.0, "that rise as a share of epochs", flag=None, least=0, below=1)

    def rise(self, epochs: int) -> float:
        """The share of a run of so many epochs in which the learning rate rises."""
        return self.warmup_share if self.warmup_epochs is None else self.warmup_epochs / epochs

    def eps_rise(self, epochs: int) -> float:
        """The share of a run of so many epochs in which eps rises."""
        return self.eps_warmup_share if self.eps_warmup_epochs is None else self.eps_warmup_epochs / epochs
