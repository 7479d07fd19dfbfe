"""attacks/twin.py: the folded copy has the model's logits and input gradients, follows its weights, and knows its limits."""

import copy

import pytest
import torch
from torch import nn

from piat_hub import create_model
from piat_hub.attacks import Twin
from piat_hub.attacks.twin import followers

NORMS_THAT_STAY = {"cifar_resnet8": 0, "wide": 3, "mobilenetv3_small_050": 0}  # those that take a sum


def uneven(model):
    """The model with statistics and norm weights as training leaves them: none 0 or 1."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_mean, -0.3)):
                nn.init.uniform_(tensor, low, low + 1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def small(name):
    torch.manual_seed(1)
    if name == "wide":
        wide = create_model("cifar_wrn_28_10", num_classes=4, layers=[1, 1, 1], channels=(8, 16, 32))
        return uneven(wide).double()
    size = {} if name.startswith("cifar") else {"img_size": 32}
    return uneven(create_model(name, num_classes=4, **size)).double()


def same(model, twin, x):
    """Logits and input gradients of both agree to rounding of float64."""
    model.eval()
    found = []
    for one in (model, twin):
        images = x.clone().requires_grad_()
        logits = one(images)
        found.append((logits.detach(), torch.autograd.grad(logits.square().sum(), images)[0]))
    return all(torch.allclose(a, b, rtol=1e-8, atol=1e-8 * float(a.abs().max())) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", NORMS_THAT_STAY)
def test_logits_and_gradients_are_the_models(name):
    model, x = small(name), torch.rand(2, 3, 32, 32, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.train().modules()]
    twin = Twin(model, x)
    norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in twin.modules())
    assert norms == NORMS_THAT_STAY[name] and twin.folded
    assert [m.training for m in model.modules()] == modes and all(modes)
    assert same(model, twin, x)
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    assert not any(p.requires_grad for p in twin.parameters())


def test_refresh_follows_an_optimizer_in_place():
    model, x = small("cifar_resnet8"), torch.rand(4, 3, 32, 32, dtype=torch.float64)
    twin = Twin(model, x)
    places = [t.data_ptr() for t in twin.state_dict().values()]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.train()(x).square().mean().backward()
    optimizer.step()
    assert not same(model, twin, x)
    assert twin.refresh() is twin and same(model, twin, x)
    assert [t.data_ptr() for t in twin.state_dict().values()] == places


class Wired(nn.Module):
    """A convolution and a BatchNorm, wired in one of several ways."""

    def __init__(self, how):
        super().__init__()
        self.how, self.conv, self.norm, self.head = how, nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)
        if how == "custom layer":
            self.conv = type("Scaled", (nn.Conv2d,), {"forward": lambda s, x: 2 * nn.Conv2d.forward(s, x)})(3, 4, 3)
        if how == "no affine":
            self.norm = nn.BatchNorm2d(4, affine=False)

    def forward(self, x):
        z = self.conv(x)
        if self.how == "changed in place":
            z.relu_()
        out = self.norm(z.flip(1) if self.how == "in between" else z)
        if self.how == "used twice":
            out = out + z
        if self.how == "called twice":
            out = out + self.norm(self.conv(x / 2))
        return self.head(out.mean((2, 3)))


@pytest.mark.parametrize(
    "how", ["in between", "used twice", "called twice", "changed in place", "custom layer", "no affine"]
)
def test_what_cannot_fold_stays(how):
    model, x = uneven(Wired(how)) if how != "no affine" else Wired(how), torch.rand(2, 3, 8, 8)
    model.norm.running_mean.fill_(0.3)
    twin = Twin(model.eval(), x)
    assert not twin.folded and torch.equal(twin(x), model(x))


def test_what_can_fold_does():
    model, x = uneven(Wired("plain")), torch.rand(2, 3, 8, 8)
    assert followers(model, x) == [("conv", "norm")]
    twin = Twin(model, x)
    assert len(twin.folded) == 1 and torch.allclose(twin(x), model.eval()(x), atol=1e-6)


def test_linear_layers_fold_too():
    model = uneven(nn.Sequential(nn.Flatten(), nn.Linear(12, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU()))
    x = torch.rand(3, 3, 2, 2)
    twin = Twin(model, x)
    assert len(twin.folded) == 1 and torch.allclose(twin(x), model.eval()(x), atol=1e-6)


def test_bf16_is_close_and_keeps_norms_in_fp32():
    model, x = small("wide").float(), torch.rand(2, 3, 32, 32)
    twin = Twin(model, x, torch.bfloat16)
    kept = {m.weight.dtype for m in twin.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert kept == {torch.float32}
    assert {m.weight.dtype for m in twin.modules() if isinstance(m, nn.Conv2d)} == {torch.bfloat16}
    logits, exact = twin(x), model.eval()(x)
    assert 0 < (logits - exact).norm() / exact.norm() < 0.05


def test_a_model_without_batchnorm_is_copied():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 5))
    x = torch.rand(2, 3, 8, 8)
    twin = Twin(model, x)
    assert not twin.folded and torch.equal(twin(x), model.eval()(x))


class Gated(nn.Module):
    """What a layer gives goes on beside its norm too, through a gate that is closed at first."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.gate = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Parameter(torch.zeros(1))
        self.more = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x):
        z = self.conv(x)
        return self.more(self.norm(z) + self.gate * z).mean((2, 3))


def test_a_gate_that_is_closed_at_first_is_seen_and_the_other_pair_folds():
    model, x = Gated(), torch.rand(2, 3, 8, 8)
    assert followers(model, x) == [("conv", "norm"), ("more.0", "more.1")]
    twin = Twin(model, x)
    with torch.no_grad():
        model.gate.fill_(1.0)
    assert len(twin.folded) == 1 and torch.allclose(twin.refresh()(x), model.eval()(x), atol=1e-6)


def test_a_norm_over_another_axis_than_the_layers_stays():
    model, x = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(3), nn.Flatten()), torch.rand(2, 3, 4)
    twin = Twin(model, x)
    assert not twin.folded and torch.equal(twin(x), model.eval()(x))
