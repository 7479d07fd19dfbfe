"""Run by torchrun in test_engine.py: what two gloo processes must agree on. argv: the folder to write to."""

import dataclasses
import json
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from conftest import begun
from toys import numbered_shards

from piat_hub import config, data, methods
from piat_hub.attacks import pgd
from piat_hub.backbones import create_model
from piat_hub.config import Diverged, recipes
from piat_hub.evaluation.loop import Processes, measure
from piat_hub.records import results
from piat_hub.training import engine, state
from piat_hub.training.averages import EMA, SWA
from piat_hub.training.interpolation import ParameterInterpolation


def plain_model():
    """Without BatchNorm."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))


def settings(**changes):
    base = dict(epochs=2, clean_epochs=0, train_size=None if "stream" in changes else 128, batch_size=64, crop_pad=0)
    return dataclasses.replace(recipes.get("digits"), **(base | changes))


def same_start(model, x, y, /, **options):
    """PGD from a start that depends on the image alone, so that it is the same however a batch is divided."""
    options = {"eps": 0.15, "step_size": 0.0375, "steps": 3} | options
    start = options.pop("start", 0.1)
    start = 0.1 if isinstance(start, torch.Tensor) else start
    with mock.patch("torch.randn_like", lambda images: torch.sin(1000 * images)):
        return pgd(model, x, y, start=start, **options)


def first_gradient(accelerator, model, method, extra=None, **changes):
    """The gradient of the first step, read off plain SGD: (theta_0 - theta_1) / lr."""
    config = settings(**changes)
    method = begun(method, config)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    split = data.hold_out(data.load("digits", "train"), 0, 128)[0]
    prepared, optimizer = engine.prepare(model, optimizer, accelerator)
    with mock.patch("piat_hub.methods.las_at.draw", lambda logits: torch.full((len(logits),), 4)):
        next(
            engine.train(engine.Parts(config, accelerator, prepared, optimizer, method, same_start, split, extra=extra))
        )
    bare = accelerator.unwrap_model(prepared)
    return [(b - p.detach()) / 0.1 for b, p in zip(before, bare.parameters(), strict=True)]


def digest(model):
    """All bytes of a model's weights and buffers, as numbers that gather exactly."""
    return torch.cat([t.double().flatten() for t in model.state_dict().values()])


def ranks_stay_equal(accelerator, method, **changes):
    """With BatchNorm: after every step and after the interpolation, every rank holds the same bytes, copies too."""
    torch.manual_seed(0)
    model = create_model("cifar_resnet8", in_chans=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model, optimizer = engine.prepare(model, optimizer, accelerator)
    bare = engine.unwrap(model, accelerator)
    split = data.hold_out(data.load("digits", "train"), 0, 128)[0]
    attack = partial(pgd, eps=0.15, step_size=0.0375, steps=2)
    ema = EMA(bare, 0.9)
    equal, moved = [], digest(bare)
    sides = {"interpolation": ParameterInterpolation(bare), "ema": ema, "swa": SWA(ema.copy, 1)}
    parts = engine.Parts(settings(**changes), accelerator, model, optimizer, method, attack, split, **sides)
    for event in engine.train(parts):
        mine = digest(bare)
        both = accelerator.gather(torch.cat([mine, digest(ema.copy)])[None])
        equal.append([type(event).__name__, bool(torch.equal(both[0], both[1])), bool((mine != moved).any())])
        moved = mine
    return equal


def state_of_each_rank(accelerator):
    """Free-AT's perturbations after an epoch, as every rank sees them saved, and whether each took up its own again."""
    free = methods.get("free_at")(replays=2).begin(settings())
    ranks_stay_equal(accelerator, free, epochs=1)
    part = state.PerProcess(free, accelerator)
    saved, mine = part.state_dict(), free.delta.clone()
    free.delta = torch.zeros(())
    part.load_state_dict(saved)
    own = accelerator.gather(torch.tensor([torch.equal(free.delta, mine)])).tolist()
    return [list(saved["delta"].shape), bool(torch.equal(*saved["delta"])), own]


def strategy_of_each_rank(accelerator):
    """Whether LAS-AT's strategies are the same on every rank after an epoch, whether they learnt, and what the models did."""
    las = dataclasses.replace(methods.get("las_at")(width=8), interval=1).begin(settings())
    stay = ranks_stay_equal(accelerator, las, epochs=1)
    both = accelerator.gather(digest(las.network)[None])
    return [bool(torch.equal(*both)), bool((digest(las.network) != digest(las._build(1))).any()), stay]


def stop_at_a_nan_of_one_rank(accelerator):
    """What each rank's training raised when only rank 1's loss was not a number, and whether the weights stayed equal."""
    model, calls = plain_model(), []

    def method(model, x, y, attack, progress):
        calls.append(1)
        bad = accelerator.process_index == 1 and len(calls) == 2
        return methods.get("standard")()(model, x, y, attack, progress) * (float("nan") if bad else 1)

    prepared, optimizer = engine.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), accelerator)
    split = data.hold_out(data.load("digits", "train"), 0, 128)[0]
    said = "nothing"
    try:
        list(engine.train(engine.Parts(settings(), accelerator, prepared, optimizer, method, same_start, split)))
    except Diverged as error:
        said = str(error)
    weights = accelerator.gather(digest(engine.unwrap(prepared, accelerator))[None])
    return [gather_object([said]), bool(torch.equal(weights[0], weights[1])), bool(weights.isfinite().all())]


def streamed(accelerator, folder):
    """The numbers of the images that each rank sees in two epochs of a stream of 40, of which 4 are held out."""
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            numbered_shards(folder / "shards", (14, 13, 13))
        stream = data.open_stream(str(folder / "shards"), None, None, 36, 4)
    stream = dataclasses.replace(stream, head=data.of_one_size(stream.head[4:], limit=0))
    asked = settings(dataset=str(folder), stream=True, epoch_size=36, batch_size=12)
    rank, world = accelerator.process_index, accelerator.num_processes
    seen = [images[:, 0, 0, 0].tolist() for images, _ in data.training_batches(stream, asked, rank, world)]
    return gather_object([seen])


def verdicts(accelerator):
    """What evaluation finds, shared by the processes that there are: the attacks' verdicts, and how far they got alone."""
    least = lambda t: accelerator.gather(t[None]).amin(0)  # noqa: E731
    processes = Processes(accelerator.process_index, accelerator.num_processes, least)
    split = data.load("digits", "test").first(40)
    torch.manual_seed(1)
    model = create_model("cifar_resnet8", in_chans=1).eval()
    split = dataclasses.replace(split, labels=model(data.to_unit(split.images)).argmax(1))  # all correct when clean
    found = results.Results.of(split, config.ThreatModel("Linf", 0.02))
    for _ in measure(model, split, ["pgd2", "mim3", "fast"], found, batch_size=16, processes=processes):
        pass
    return {name: v.tolist() for name, v in found.verdicts.items()}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    accelerator = Accelerator()
    torch.set_num_threads(1)
    report = {"processes": accelerator.num_processes, "verdicts": verdicts(accelerator)}
    if accelerator.num_processes > 1:
        report["ranks"] = ranks_stay_equal(accelerator, methods.get("nmse")())
        report["ranks_awp"] = ranks_stay_equal(accelerator, methods.get("trades")(), awp=0.01)
        report["state"] = state_of_each_rank(accelerator)
        report["strategy"] = strategy_of_each_rank(accelerator)
        report["stream"] = streamed(accelerator, folder)
        report["nan"] = stop_at_a_nan_of_one_rank(accelerator)
    gradients = {m: first_gradient(accelerator, plain_model(), m) for m in methods.names()}
    gradients["trades + AWP"] = first_gradient(accelerator, plain_model(), "trades", awp=0.05)
    more = data.load("digits", "test")
    gradients["trades + extra"] = first_gradient(
        accelerator, plain_model(), "trades", more, extra_data="test"
    )  # 45 of 64
    if accelerator.is_main_process:
        torch.save(gradients, folder / f"gradients-{accelerator.num_processes}.pt")
        (folder / f"report-{accelerator.num_processes}.json").write_text(json.dumps(report))
    accelerator.wait_for_everyone()
    accelerator.end_training()
