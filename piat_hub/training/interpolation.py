"""Epoch-end parameter interpolation, the "PI" of PIAT (He et al. 2023, Eqs. 3-4): written back, and training goes on from it."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from piat_hub.config import InputError, check_law
from piat_hub.training.averages import lerp, recalibrate


def g(n: int, *, a: float = 1.0, b: float = 1.0, c: float = 1.0, d: float = 10.0) -> float:
    """lam = (a n + b) / (c n + d), the law of He et al. 2023, Eq. 4: 0.182 at n = 1, 0.55 at 10, 0.931 at 120.

    Args:
        n: the epoch, counted from 1.
        a: slope of the numerator, at most c.
        b: offset of the numerator, at most d.
        c: slope of the denominator.
        d: offset of the denominator.
    """
    return (a * n + b) / (c * n + d)


class ParameterInterpolation:
    """theta'_n = lam theta'_{n-1} + (1 - lam) theta_n, written into the model (He et al. 2023, Alg. 1, Eq. 3).

    Remembers theta'_0 when it is made; call `step` at the end of each epoch n = 1, 2, …; training goes on from
    theta'_n. The law is the warm-up of an exponential moving average, but per epoch, uncapped, and fed back into
    training. It goes with any method and any training loop. Optimizer momentum is left as it is.

    Args:
        model: the bare module (unwrap DistributedDataParallel first).
        a: slope of the numerator of g(n) = (a n + b) / (c n + d), not negative; c >= a and d >= b keep lam at most 1.
        b: offset of the numerator, not negative.
        c: slope of the denominator, at least a.
        d: offset of the denominator, at least b.
        constant: a fixed lam in [0, 1) in place of g(n).
        start_epoch: the epoch that counts as n = 1; before it lam = 0.
        bn: what happens to BatchNorm's running statistics. "interpolate": floating buffers like parameters, integer
            ones keep the model's value. "copy": all keep the model's value. "recalibrate": measured again on `batches`.

    Raises:
        InputError: a ValueError, for values outside these ranges.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        a: float = 1.0,
        b: float = 1.0,
        c: float = 1.0,
        d: float = 10.0,
        constant: float | None = None,
        start_epoch: int = 1,
        bn: Literal["interpolate", "copy", "recalibrate"] = "interpolate",
    ) -> None:
        check_law(a, b, c, d)
        if constant is not None and not 0 <= constant < 1:
            raise InputError(f"constant must lie in [0, 1), got {constant}; 0 is no interpolation")
        if start_epoch < 1:
            raise InputError(f"start_epoch must be at least 1, got {start_epoch}; epochs are counted from 1")
        if bn not in ("interpolate", "copy", "recalibrate"):
            raise InputError(f"bn {bn!r} is unknown; choose interpolate, copy or recalibrate")
        self.model, self.constant, self.start_epoch, self.bn = model, constant, start_epoch, bn
        self.law = {"a": a, "b": b, "c": c, "d": d}
        self.epoch = 0
        self.previous = {name: tensor.detach().clone() for name, tensor in self._current().items()}

    def _current(self) -> dict[str, Tensor]:
        """The tensors that take part: parameters, and floating buffers where `bn` interpolates them."""
        tensors: dict[str, Tensor] = dict(self.model.named_parameters())
        if self.bn == "interpolate":
            tensors |= {name: b for name, b in self.model.named_buffers() if b.is_floating_point()}
        return tensors

    def lam(self, epoch: int) -> float:
        """The weight of theta'_{n-1} at the end of `epoch`, counted from 1; in [0, 1]."""
        if epoch < self.start_epoch:
            return 0.0
        return g(epoch - self.start_epoch + 1, **self.law) if self.constant is None else self.constant

    @torch.no_grad()
    def step(self, batches: Iterable[Tensor] | None = None) -> float:
        """End an epoch: write theta'_n into the model, in place, and return lam.

        Args:
            batches: images (B, C, H, W) in [0, 1] on the model's device; needed, and used where lam > 0, only for bn="recalibrate".

        Returns:
            lam, the weight that theta'_{n-1} had.

        Raises:
            InputError: a ValueError, for bn="recalibrate" without batches; nothing is then changed.
        """
        if self.bn == "recalibrate" and batches is None:
            raise InputError('bn="recalibrate" measures the statistics again: call step(batches) with training images')
        self.epoch += 1
        lam = self.lam(self.epoch)
        current = self._current()
        now, before = list(current.values()), [self.previous[name] for name in current]
        lerp(now, before, lam)  # Eq. 3: theta_n + lam (theta'_{n-1} - theta_n)
        torch._foreach_copy_(before, now)
        if lam and batches is not None and self.bn == "recalibrate":
            recalibrate(self.model, batches)
        return lam

    def state_dict(self) -> dict[str, Any]:
        """{"epoch": how many steps were taken, "previous": theta'_{n-1} by name}."""
        return {"epoch": self.epoch, "previous": self.previous}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a `state_dict`, in place.

        Args:
            state: names and shapes must be exactly the model's.

        Raises:
            InputError: a ValueError, where they are not.
        """
        saved: Mapping[str, Tensor] = state["previous"]
        wrong = set(saved) ^ set(self.previous)
        wrong |= {k for k in set(saved) & set(self.previous) if saved[k].shape != self.previous[k].shape}
        if wrong:
            raise InputError(
                f"interpolation state does not fit the model at {sorted(wrong)[0]!r}; use the run it is from"
            )
        self.epoch = int(state["epoch"])
        for name, tensor in self.previous.items():
            tensor.copy_(saved[name])
