"""LAS-AT, adversarial training with learnable attack strategies (Jia et al. 2022)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

from piat_hub.attacks import ball
from piat_hub.config import Checked, InputError, TrainConfig, option, schedules
from piat_hub.methods.base import Attack, Method, at_least_fp32, average, eval_logits, likeliest, register

# what a strategy chooses from: budget and step size in levels, of which the run's eps is 8, and steps
EPS, STEPS, STEP_SIZE, LEVELS = range(3, 16), range(3, 15), range(1, 6), 8
DECAY = 5e-4  # weight decay of the lookahead's step
SCALE = 2.0**10  # of the lookahead's loss, whose gradients would vanish in fp16; a power of two changes no other bit


@register("las_at")
@dataclass(frozen=True)
class LASAT(Checked):
    """CE(z', y~) on x' attacked as a strategy network chooses image by image (Jia et al. 2022, CVPR, LAS-PGD-AT).

    y~ has `label` on the class, the rest is shared by the others. Each image's eps, steps and step size are drawn from
    the softmax of a ResNet-18, which learns by REINFORCE every `interval` batches. The reward is what the examples
    cost the model, and how robust and how accurate the model is after one step on them. The attack's own steps and
    step size play no part. Called by itself, without `begin`, the attack is the plain one. The authors take label 0.6
    for CIFAR-100.
    """

    needs_class: ClassVar[bool] = True
    needs_pgd: ClassVar[bool] = True
    label: float = option(0.7, "label mass of the class itself", above=0, most=1)
    interval: int = option(20, "batches from one update of the strategy network to the next", least=1)
    robust: float = option(4.0, "weight of the robust accuracy in the reward", least=0)
    clean: float = option(2.0, "weight of the clean accuracy in the reward", least=0)
    policy_lr: float = option(1e-4, "learning rate of the strategy network (SGD)", above=0)
    # a convolution's backward on fewer channels has been seen to write beyond its memory on a CPU (torch 2.15)
    width: int = option(64, "channels of the strategy network's first stage, 64 in a ResNet-18", least=8)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack, progress: float) -> Tensor:
        return self.soft_loss(model(attack(model, x, y)), y)

    def begin(self, config: TrainConfig) -> Method:
        """The method of one run, with its strategy network.

        Args:
            config: says the threat model, the lookahead's learning rate and the seed of the strategy network.

        Raises:
            InputError: for AWP, which takes each loss twice, and for smoothing, which it has of its own.
        """
        if config.awp is not None:
            raise InputError(f"las_at learns from each loss, and awp {config.awp} takes each twice; leave out --awp")
        if config.mixing.smoothing:
            raise InputError(
                f"las_at smooths labels itself, to {self.label}; set --method.label in place of --smoothing"
            )
        return LASRun(self, config)

    def soft_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """The mean cross-entropy with the soft labels, ().

        Args:
            logits: (B, K).
            y: class numbers (B,), or probabilities (B, K), of which the likeliest class counts.
        """
        log_p = at_least_fp32(logits).log_softmax(1)
        true = log_p.gather(1, likeliest(y)[:, None]).squeeze(1)  # (B,)
        others = (log_p.sum(1) - true) / (log_p.shape[1] - 1)
        return -(self.label * true + (1 - self.label) * others).mean()


class LASRun:
    """LAS-AT under way: its state is the strategy network and how many batches it has seen, alike on all processes."""

    def __init__(self, method: LASAT, config: TrainConfig) -> None:
        self.method, self.config, self.batches = method, config, 0
        self.network: ResNet | None = None  # built once the images' channels are known

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack, progress: float) -> Tensor:
        network = self.network = self.network or self._build(x.shape[1]).to(x.device)
        if self.batches % self.method.interval == 0:
            self._learn(network, model, x, y, attack, progress)
        self.batches += 1
        with torch.no_grad():
            choices = [draw(logits) for logits in heads(network.eval(), x)]
        return self.method.soft_loss(model(self._craft(model, x, y, attack, choices)), y)

    def _craft(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack, choices: list[Tensor]) -> Tensor:
        """x' (B, C, H, W), each image by its own strategy: which of EPS, STEPS and STEP_SIZE, (B,) each.

        All start in the ball of the run's eps, as the authors' do.
        """
        threat = self.config.threat_model
        uniform, *_ = ball(threat.norm)
        steps = choices[1] + STEPS[0]
        eps, step_size = (
            ((choice + options[0]) * (threat.eps / LEVELS)).to(x.dtype).view(-1, 1, 1, 1)
            for choice, options in ((choices[0], EPS), (choices[2], STEP_SIZE))
        )
        budget: dict[str, Any] = {"eps": eps, "step_size": step_size, "steps": STEPS[-1]}
        return attack(model, x, y, **budget, start=x + uniform(x, threat.eps), on_step=lambda k, _: k < steps)

    def _learn(self, network: ResNet, model: nn.Module, x: Tensor, y: Tensor, attack: Attack, progress: float) -> None:
        """One update of the strategy network by REINFORCE, with one reward for the batch of all processes."""
        policies = heads(network.train(), x)
        choices = [draw(logits.detach()) for logits in policies]
        x_adv = self._craft(model, x, y, attack, choices)
        cost = F.cross_entropy(eval_logits(model, x_adv), y)
        bare: nn.Module = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        eps = self.config.threat_model.eps
        with lookahead(
            bare, lambda: self.method.soft_loss(bare(x_adv), y), schedules.lr_between(self.config, progress, progress)
        ):
            budget: dict[str, Any] = {"eps": eps, "step_size": eps / 4, "steps": 10}
            tried = [
                attack(bare, x, y, **budget, on_step=lambda _, z: z.argmax(1) == y) for _ in range(2)
            ]  # or it rests
            first, second, plain = (eval_logits(bare, images).argmax(1) == y for images in (*tried, x))
            robust, clean = (right.to(cost.dtype).mean() for right in (first & second, plain))
        average([cost, robust, clean])
        reward = cost.clamp(0, 10) + self.method.robust * robust + self.method.clean * clean
        surprise = sum(  # the mean of -log pi
            F.cross_entropy(logits, choice) for logits, choice in zip(policies, choices, strict=True)
        )
        optimizer = torch.optim.SGD(network.parameters(), self.method.policy_lr)  # without momentum it keeps nothing
        optimizer.zero_grad()
        (reward * surprise).backward()
        average([p.grad for p in network.parameters()])
        average([b for b in network.buffers() if b.is_floating_point()])
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    def _build(self, channels: int) -> ResNet:
        """The strategy network, the same on every process: a ResNet-18 with a 3x3 stem and no pooling before its stages."""
        width = self.method.width
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.config.seed)  # torch.manual_seed would seed a GPU's too, for good
            stages: dict[str, Any] = {"channels": [width * 2**k for k in range(4)], "zero_init_last": False}
            stages |= {"stem_type": "deep", "stem_width": width // 2}  # timm widens no other stem; it is replaced
            network = ResNet(BasicBlock, (2, 2, 2, 2), sum(map(len, (EPS, STEPS, STEP_SIZE))), **stages)
            network.conv1 = nn.Conv2d(channels, network.bn1.num_features, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
        return network

    def state_dict(self) -> dict[str, Any]:
        """{"batches": (), "network.NAME": tensor, …}; {} before the first batch."""
        if self.network is None:
            return {}
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        return {"batches": torch.tensor(self.batches), **tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a `state_dict`."""
        if state:
            self.batches = int(state["batches"])
            tensors = {name.removeprefix("network."): t for name, t in state.items() if name != "batches"}
            self.network = self._build(tensors["conv1.weight"].shape[1]).to(tensors["conv1.weight"].device)
            self.network.load_state_dict(tensors)


def heads(network: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """The logits over EPS, STEPS and STEP_SIZE, (B, options) each, of images x (B, C, H, W)."""
    return network(x.float()).split([len(EPS), len(STEPS), len(STEP_SIZE)], 1)


def draw(logits: Tensor) -> Tensor:
    """One option for each image, (B,), drawn from the softmax of its logits (B, options)."""
    return (logits - torch.empty_like(logits).exponential_().log()).argmax(1)  # multinomial would make a GPU wait


@contextmanager
def lookahead(model: nn.Module, loss: Callable[[], Tensor], lr: float) -> Iterator[None]:
    """Inside, the model is one step of SGD ahead, its statistics too; after, exactly what it was, also after an exception.

    Args:
        model: the bare module, changed in place for the block.
        loss: of this process's images; gradients are averaged over processes.
        lr: of the step.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    tensors = [*parameters, *model.buffers()]
    before = [t.detach().clone() for t in tensors]
    try:
        gradients = torch.autograd.grad(SCALE * loss(), parameters, materialize_grads=True)
        average(gradients)
        with torch.no_grad():
            for p, gradient in zip(parameters, gradients, strict=True):
                p.sub_(lr * (gradient.nan_to_num(0, 0, 0) / SCALE + DECAY * p))
        yield
    finally:
        with torch.no_grad():
            for tensor, was in zip(tensors, before, strict=True):
                tensor.copy_(was)
