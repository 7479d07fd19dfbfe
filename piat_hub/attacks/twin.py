"""The model that an attack sees: a frozen copy in eval mode, BatchNorm folded into the layers before it.

In eval mode a BatchNorm is a fixed affine map of each channel, so the layer before it can take it over: the function
stays the same to rounding, and its pass over every activation is saved.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)  # exactly these: a subclass may do anything to its weight
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, BatchNormAct2d)


class Twin(nn.Module):
    """A frozen copy of a model, in eval mode, to craft adversarial examples on: the same logits to rounding.

    `refresh` takes up the model's present weights and statistics, in place and in O(parameters). The model's tensors
    must keep their identity meanwhile, as they do under an optimizer, DDP or `load_state_dict`.

    Args:
        model: maps images to logits; left as it is. Give the bare model, before Accelerate or DDP wraps it.
        x: an example batch, (B, C, H, W) in [0, 1], on which it is observed what follows what.
        dtype: bf16 or fp16 to run under autocast, with convolutions and linear layers kept in that precision; None for
            neither.
    """

    def __init__(self, model: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.dtype: torch.dtype | None = None
        pairs = followers(model, x)
        if pairs and not self._exact(model, pairs, x):  # something else uses what a layer gives
            pairs = [pair for pair in pairs if self._exact(model, [pair], x)]
        self.dtype = dtype
        self._build(model, pairs)

    def forward(self, x: Tensor) -> Tensor:
        """The logits (B, K) of images (B, C, H, W), under autocast where the twin has a precision of its own."""
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype is not None):
            logits: Tensor = self.copy(x)
        return logits

    def _build(self, model: nn.Module, pairs: list[tuple[str, str]]) -> None:
        """The copy with pairs of (layer, norm) folded, and where each of its tensors comes from."""
        self.copy = copy.deepcopy(model).eval().requires_grad_(False)
        self.folded: list[tuple[Any, Any, Any]] = []  # (layer, norm, the copy's layer that does the work of both)
        for path, norm_path in pairs:
            layer, norm = self.copy.get_submodule(path), self.copy.get_submodule(norm_path)
            layer.bias = nn.Parameter(torch.zeros_like(norm.bias), requires_grad=False)  # type: ignore[arg-type]
            rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
            self.copy.set_submodule(norm_path, rest)
            self.folded.append((model.get_submodule(path), model.get_submodule(norm_path), layer))
        done = {id(t) for *_, layer in self.folded for t in (layer.weight, layer.bias)}
        if self.dtype is not None:
            for module in self.copy.modules():
                if type(module) in LAYERS:
                    module.to(self.dtype)
        theirs = dict([*model.named_parameters(), *model.named_buffers()])
        mine = dict([*self.copy.named_parameters(), *self.copy.named_buffers()])
        rest_of = [name for name, tensor in mine.items() if id(tensor) not in done]
        self.same = [mine[name] for name in rest_of], [theirs[name] for name in rest_of]
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> Twin:
        """Take up the model's weights and statistics as they are now; returns the twin."""
        if self.same[0]:
            torch._foreach_copy_(*self.same)
        if self.folded:
            layers, norms, mine = map(list, zip(*self.folded, strict=True))
            means = [
                n.running_mean if a.bias is None else n.running_mean - a.bias
                for a, n in zip(layers, norms, strict=True)
            ]
            scales = torch._foreach_add([n.running_var for n in norms], [n.eps for n in norms])
            torch._foreach_rsqrt_(scales)
            torch._foreach_mul_(scales, [n.weight for n in norms])
            rows = [s.view(-1, *[1] * (a.weight.dim() - 1)) for s, a in zip(scales, layers, strict=True)]
            torch._foreach_copy_([m.weight for m in mine], torch._foreach_mul([a.weight for a in layers], rows))
            shifts = torch._foreach_mul(means, scales)
            torch._foreach_copy_([m.bias for m in mine], torch._foreach_sub([n.bias for n in norms], shifts))
        return self

    @torch.no_grad()
    def _exact(self, model: nn.Module, pairs: list[tuple[str, str]], x: Tensor) -> bool:
        """Whether folding these pairs leaves the logits as they are: tried in float64, with every weight moved a little."""
        try:
            probe: Any = copy.deepcopy(model).eval().double()
            for i, tensor in enumerate([*probe.parameters(), *(b for b in probe.buffers() if b.is_floating_point())]):
                steps = torch.arange(tensor.numel(), device=tensor.device, dtype=tensor.dtype)
                wave = torch.sin(steps + i).view_as(tensor)
                tensor.mul_(1 + 0.2 * wave).add_(1e-3 * (2 + wave))  # also what is 0 at first; a variance stays above 0
            self._build(probe, pairs)
            folded, whole = self(x.double()), probe(x.double())
        except (RuntimeError, TypeError):  # shapes that do not fold; a model or a device without float64
            return False
        return bool((folded - whole).abs().max() <= 1e-7 * whole.abs().max())


@torch.no_grad()
def followers(model: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    """(layer, BatchNorm) by name wherever the norm takes just what the layer gave, and both are called once for `x`.

    Args:
        model: observed on a copy, in eval mode; left as it is.
        x: an example batch, (B, C, H, W) in [0, 1].
    """
    model = copy.deepcopy(model).eval()
    given: dict[str, list[tuple[int, int]]] = {}  # what each layer gave: (the tensor's id, its version)
    taken: dict[str, list[tuple[int, int]]] = {}  # what each norm took
    keep = []

    def see(calls: dict[str, list[tuple[int, int]]], name: str, tensor: Tensor) -> None:
        keep.append(tensor)  # so that no other tensor gets its id
        calls.setdefault(name, []).append((id(tensor), tensor._version))

    for name, module in model.named_modules():
        if type(module) in LAYERS:
            module.register_forward_hook(lambda m, i, output, name=name: see(given, name, output))
        elif type(module) in NORMS and module.affine and module.track_running_stats:
            module.register_forward_pre_hook(lambda m, inputs, name=name: see(taken, name, inputs[0]))
    model(x)
    layers = {calls[0]: name for name, calls in given.items() if len(calls) == 1}
    norms = {name: calls[0] for name, calls in taken.items() if len(calls) == 1}
    return [(layers[call], name) for name, call in norms.items() if call in layers]
