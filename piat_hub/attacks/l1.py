"""What L1 means to an attack: few entries move, and far (Croce & Hein 2021, arXiv:2103.01208)."""

import torch
from torch import Tensor

HALVINGS = 40  # of where the cut of a projection may lie


def project(x_adv: Tensor, x: Tensor, eps: float | Tensor) -> Tensor:
    """The point nearest to x_adv within eps of x and in [0, 1] (Croce & Hein 2021, Sec. 2).

    Projecting onto the ball and then onto the box is another point, with less of the budget used. Here every entry's
    change is cut by the same length, then at the box; the cut that leaves eps of them all is found by halving.

    Args:
        x_adv: (B, C, H, W).
        x: centre of the ball, (B, C, H, W) in [0, 1].
        eps: radius, one number or (B, 1, 1, 1).
    """
    delta, each = x_adv - x, tuple(range(1, x.dim()))
    moved, room = delta.abs(), torch.where(delta > 0, 1 - x, x).clamp_min(0)

    def left(cut: Tensor) -> Tensor:
        return (moved - cut).clamp_min(0).minimum(room)

    high = moved.amax(each, keepdim=True)
    low = torch.zeros_like(high)
    within = left(low).sum(each, keepdim=True) <= eps
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        over = left(middle).sum(each, keepdim=True) > eps
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    return (x + delta.sign() * left(torch.where(within, 0, high))).clamp(0, 1)


def uniform(x: Tensor, eps: float | Tensor) -> Tensor:
    """A draw from the ball around zero, uniform in volume, (B, C, H, W)."""
    sizes = torch.empty_like(x).exponential_()
    rest = torch.empty_like(x[:, :1, :1, :1]).exponential_()  # as one entry more, it puts the draw inside the ball
    return eps * sizes * torch.randn_like(x).sign() / (sizes.sum((1, 2, 3), keepdim=True) + rest)


def step(gradient: Tensor) -> Tensor:
    """A step of length one that moves alike every entry whose gradient is not zero, (B, C, H, W)."""
    sign = gradient.sign()
    return sign / sign.abs().sum((1, 2, 3), keepdim=True).clamp_min(1)


def thinned(gradient: Tensor, most: Tensor) -> Tensor:
    """The gradient with only its largest entries, the rest zero.

    Args:
        gradient: (B, C, H, W).
        most: how many entries are left, at least one, and those as large as the last of them, (B,) int64.
    """
    sizes = gradient.abs()
    bound = sizes.flatten(1).sort(1, descending=True).values.gather(1, most[:, None] - 1)
    return gradient * (sizes >= bound.view(-1, 1, 1, 1))
