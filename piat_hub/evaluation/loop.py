"""An attack suite over a split: which images a model still classifies correctly, and what that says about it.

An attack is a tuple of stages; each stage runs on the images that still stand, in batches. PGD is one stage, AutoAttack
four. A misclassified clean image counts as broken under every attack: the clean image lies within the budget itself.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from piat_hub import data
from piat_hub.attacks.core import INFERENCE, NO_MODULE
from piat_hub.config import Alone, EvalConfig, InputError, ThreatModel, TrainConfig, from_dict
from piat_hub.data import Encoded, Split, derived_seed, to_unit
from piat_hub.evaluation import premises
from piat_hub.evaluation.model import images_for, label_names
from piat_hub.evaluation.suites import Suite, suite
from piat_hub.evaluation.verdict import as_memory_allows, class_count, reach, survives, twin_of, verdict_mode
from piat_hub.machine import device_of, environment
from piat_hub.records.budgets import add_curve
from piat_hub.records.results import Results, Running

HALF = {"bf16": torch.bfloat16}


@dataclass(frozen=True)
class Processes:
    """Who shares an evaluation.

    Attributes:
        rank: this process's, from 0.
        world: how many processes there are.
        least: gives the smallest of a tensor over all processes, elementwise; every process must call it.
    """

    rank: int = 0
    world: int = 1
    least: Callable[[Tensor], Tensor] = Tensor.clone

    @contextmanager
    def telling(self) -> Iterator[None]:
        """What is refused inside, of several processes maybe by this one alone, is told by it, whichever it is."""
        try:
            yield
        except InputError as error:
            if self.world == 1:
                raise
            raise Alone(str(error)) from error


ALONE = Processes()


@dataclass(frozen=True)
class Progress:
    """After a batch: `standing` of `n` images still stand; with every image left to attack it is an upper bound.

    Attributes:
        attack: its name, with the stage's where it has several: "aa: square".
        done: images that the stage has attacked.
        total: images that the stage attacks.
        standing: images still classified correctly.
        n: images of the split.
        at_a_time: how many images the device's memory took at once.
    """

    attack: str
    done: int
    total: int
    standing: int
    n: int
    at_a_time: int


def evaluate(
    model: nn.Module,
    dataset: str | Split,
    attacks: Sequence[str] = ("clean", "pgd20"),
    *,
    threat_model: ThreatModel | str | None = None,
    n: int | None = None,
    split: str = "test",
    step_size: float | None = None,
    restarts: int = 1,
    batch_size: int = 250,
    seed: int = 0,
    search_precision: str = "fp32",
) -> Results:
    """Measure a classifier's clean and robust accuracy.

    Verdicts are fp32 and the model's own; a misclassified clean image counts as broken under every attack. Where the
    model has `label_names`, labels go by them (see `data.numbered_as`). What the figures cannot be read without, such
    as that the model's answers are random, is in `.notes`, and a warning.

    Args:
        model: maps images (B, C, H, W) in [0, 1] to logits (B, K); left as it was found, and evaluated where it lies.
        dataset: a name as in `data.load`, whose images get the model's size as in training, or images of your own,
            `piat_hub.data.Split(images, labels, label_names, name)`, levels 0..255 or floats in [0, 1], and class numbers
            from 0.
        attacks: names as in `suite`, run in this order, after "clean".
        threat_model: or "Linf:8/255", say; if None, the one the model was trained against, where `from_pretrained` knows
            it, else Linf 8/255.
        n: only the first n images; all by default.
        split: which split of a named data set; for images of your own, what results call it.
        step_size: of PGD, MIM and CW, in pixel units, 0 < step_size <= 2 eps; eps/4 if None.
        restarts: independent tries of PGD, MIM and CW.
        batch_size: images attacked at a time; halved as often as the device's memory asks for.
        seed: of the attacks' randomness.
        search_precision: "bf16" searches on a twin in half precision; what it finds is confirmed in fp32.

    Returns:
        Results with per-image verdicts; `.attacks["pgd20"]["accuracy"]` is a fraction.

    Raises:
        InputError: a ValueError, for an option out of its bounds, an unknown attack, other classes or another count than
            the data's, n beyond the split, or whatever `data.load` refuses.
    """
    asked: dict[str, Any] = {"step_size": step_size, "restarts": restarts, "batch_size": batch_size}
    asked["search_precision"] = search_precision
    EvalConfig(n=n, seed=seed, **asked)  # or InputError
    if not isinstance(dataset, str | Split):
        kind = type(dataset).__name__
        raise InputError(
            f"dataset must be a name or a piat_hub.data.Split, got a {kind}; make one of images and labels"
        )
    if isinstance(attacks, str) or not isinstance(attacks, Sequence):
        raise InputError(f"attacks must be a list of names, got {attacks!r}; write ['pgd20']")
    if not isinstance(model, nn.Module):
        raise InputError(NO_MODULE.format(type(model).__name__))
    if isinstance(dataset, str):
        images = images_for(model, dataset, split).first(n)
    else:
        images = data.numbered_as(dataset, label_names(model)).first(n)
    if isinstance(threat_model, str):
        threat_model = ThreatModel.parse(threat_model)
    results = Results.of(images, threat_model or trained_against(model) or ThreatModel(), split=split, seed=seed)
    for _ in measure(model, images, attacks, results, **asked):
        pass
    for sentence in results.notes:
        warnings.warn(sentence, stacklevel=2)
    return results


def trained_against(model: nn.Module) -> ThreatModel | None:
    """The threat model in a loaded model's training configuration or origin, None where it has none.

    Args:
        model: as `from_pretrained` gives it, or any other.
    """
    piat, origin = getattr(model, "piat", None), getattr(model, "origin", None)
    return from_dict(TrainConfig, piat).threat_model if piat else getattr(origin, "threat_model", None)


def measure(
    model: nn.Module,
    split: Split,
    attacks: Sequence[str],
    results: Results,
    *,
    step_size: float | None = None,
    restarts: int = 1,
    batch_size: int = 250,
    search_precision: str = "fp32",
    save: Callable[[Results], None] = lambda results: None,
    processes: Processes = ALONE,
) -> Iterator[Progress]:
    """Run the attacks that `results` lacks and fill it in; calls `save` and yields after every batch of every process.

    Verdicts are fp32 with TF32 off and the model's own; the attacks run on its twin. Before the first of them `premises`
    tries what they take for granted, and `results.notes` says what does not hold: with a model that is no function of
    one image every attack runs on every image, PGD, MIM and CW with all their steps, and each image's last example is
    judged once.

    A batch's randomness is derived from (seed, attack, stage, batch), so an evaluation that goes on from a saved state,
    or runs in any number of processes, ends with the same verdicts, as long as the device's memory takes whole batches
    (halves start elsewhere).

    Args:
        model: maps images (B, C, H, W) in [0, 1] to logits (B, K); left as it was found.
        split: the images that `results` is of.
        attacks: names as in `suite`, run in this order, after "clean".
        results: says the threat model and the seed; its attacks and verdicts are added to.
        step_size: of PGD, MIM and CW, in pixel units; eps/4 if None.
        restarts: independent tries of PGD, MIM and CW.
        batch_size: images of a batch, and of each process.
        search_precision: "bf16" runs the attacks on a twin in half precision. An image whose break the model does not
            confirm is attacked again in fp32.
        save: called with `results` after every batch, when `results.running` is the attack under way, and after every
            attack.
        processes: who shares the work.

    Yields:
        How far the attack under way is, after each of its batches, and after "clean".

    Raises:
        InputError: for an unknown attack, another class count than the split's, a model without the gradient that an
            attack follows, under torch.inference_mode(), for a request that differs from the one by which an attack was
            measured or stopped, an attack that leaves its budget, or a search in half precision of a model that has no twin.
    """
    if torch.is_inference_mode_enabled():
        raise InputError(INFERENCE)
    device = device_of(model)
    images, labels = split.images.to(device), split.labels.to(device)
    with verdict_mode(model) as exact:
        request = (results.threat_model, class_count(exact, split), step_size, results.seed, restarts)
        asked: dict[str, Any] = {"size": split.shape[1:], "precision": search_precision}
        whole = any("whole" in figures for figures in results.attacks.values())  # as found out when it was measured
        todo = {a: suite(a, *request, **asked, whole=whole) for a in ("clean", *attacks)}
        stand, most = torch.empty(0), batch_size
        if pending := [a for a in todo if a not in results.verdicts]:
            follows = any(todo[a].follows for a in pending)
            said = (
                premises.gradient_notes(exact, to_unit(images[:8]), labels[:8], follows) if pending != ["clean"] else []
            )
            first = len(split) if "clean" in pending else min(len(split), premises.TRIED)
            stand, logits, most = premises.first_pass(exact, images, labels, batch_size, first)
            model_is = premises.examine(exact, images, labels, batch_size, logits, processes.least)
            for sentence in (*model_is.notes(batch_size), *said):
                results.note(sentence)
            todo = {a: suite(a, *request, **asked, whole=not model_is.function) for a in todo}
            if search_precision != "fp32" and not model_is.function and pending != ["clean"]:
                raise InputError(
                    f"{model_is.notes(batch_size)[0]}; such a model is attacked itself: leave out --search-precision"
                )
            for attack in todo.values():
                attack.facts |= model_is.facts(batch_size)
        twin: nn.Module | None = None
        for name, attack in todo.items():
            if name in results.verdicts:
                _same(name, attack, results)
                continue
            if name == "clean":
                _whole_batches(most, attack, batch_size, len(split))
                stand = processes.least(stand.to(torch.uint8))  # from here on all go by the same
                results.record(name, stand.cpu().numpy().astype(bool), attack.facts)
                results.environment = environment(device)
                save(results)
                yield Progress(name, len(split), len(split), results.attacks[name]["correct"], len(split), most)
            else:
                results.running = _take_up(name, attack, batch_size, results)
                now = results.running
                if not (attack.foreign or "whole" in attack.facts):
                    twin = twin or twin_of(exact, to_unit(images[:2]), HALF.get(search_precision))
                share = (images, labels, attack, now, results.seed, lambda: save(results), processes)
                yield from _attack(exact, exact if attack.foreign or twin is None else twin, *share)
                now, results.running = results.running, None
                extra = {"per_attack": now.stages} if len(now.stages) > 1 else {}
                results.seconds += now.seconds
                results.record(name, now.standing, attack.facts | extra | {"seconds": round(now.seconds, 1)})
                if now.reach is not None:
                    results.reach[name] = now.reach
                    add_curve(results, name)
            results.environment = environment(device)
            save(results)


def _same(name: str, attack: Suite, results: Results) -> None:
    """InputError unless an attack that was measured before was run as it is asked for now."""
    measured = {"search_precision": "fp32"} | results.attacks[name]
    for fact, now in ({"search_precision": "fp32"} | attack.facts).items():
        if (was := measured.get(fact)) != now:
            raise InputError(
                f"{name} was measured with {fact} {was}, this call asks for {now}; name another place with --output"
            )


def _whole_batches(most: int, attack: Suite, batch_size: int, n: int) -> None:
    """InputError where memory took fewer images at a time than the batch on which a model's answers depend."""
    if "batch_size" in attack.facts and most < min(batch_size, n):
        raise InputError(
            f"the device's memory takes {most} images at a time, and this model's answers depend on their batch; "
            f"ask for --batch-size {most}"
        )


def _take_up(name: str, attack: Suite, batch_size: int, results: Results) -> Running:
    """Where an earlier call was stopped in this attack, or its beginning."""
    clean = results.verdicts["clean"]
    begun = Running(name, attack.facts, batch_size, clean.copy(), clean.copy())
    if attack.nearest:
        begun.reach = np.where(clean, np.float32(np.inf), np.float32(0))
    now = results.stopped.pop(name, None) or begun
    if (now.facts, now.batch_size) != (attack.facts, batch_size):
        raise InputError(
            f"{name} was stopped with {now.facts} in batches of {now.batch_size}, this call asks for {attack.facts} in "
            f"batches of {batch_size}; ask for the same, or leave out --resume to begin it anew"
        )
    return now


def _attack(
    model: nn.Module,
    attacked: nn.Module,
    images: Tensor | Encoded,
    labels: Tensor,
    attack: Suite,
    now: Running,
    seed: int,
    save: Callable[[], None],
    processes: Processes,
) -> Iterator[Progress]:
    """Run an attack's stages from where `now` stands, each on the images that stood when it began, or whole on all.

    The processes take a batch each, then agree on what still stands.
    """
    most = now.batch_size
    for number, (stage, run) in list(enumerate(attack.stages.items()))[now.stage :]:
        tally = now.stages.setdefault(stage, {"attacked": int(now.entry.sum()), "broken": 0, "seconds": 0.0})
        attacks = np.ones_like(now.entry) if "whole" in attack.facts else now.entry
        batches = torch.from_numpy(attacks.nonzero()[0]).to(images.device).split(now.batch_size)
        while now.batches < len(batches) and tally["attacked"]:
            clock, standing = time.monotonic(), torch.from_numpy(now.standing.astype(np.uint8)).to(images.device)
            far = None if now.reach is None else torch.from_numpy(now.reach).to(images.device, copy=True)
            if (mine := now.batches + processes.rank) < len(batches):
                index = batches[mine]
                batch = to_unit(images[index]), labels[index]
                drawn = derived_seed(seed, *now.attack.encode(), number, mine)
                with processes.telling():
                    if attack.nearest and far is not None:
                        sought = partial(reach, model, attacked, run, attack.nearest.norm)
                        found, most = as_memory_allows(sought, *batch, most, drawn)
                        far[index] = torch.minimum(far[index], found)  # where it is wrong when clean, that is 0
                        verdict = far[index] > attack.nearest.eps
                    else:
                        verdict, most = survives(model, attacked, run, *batch, most, drawn)
                    _whole_batches(most, attack, now.batch_size, len(index))
                standing[index] = torch.minimum(standing[index], verdict.to(torch.uint8))
            verdicts = processes.least(standing).cpu().numpy().astype(bool)
            now.reach = None if far is None else processes.least(far).cpu().numpy()
            spent = time.monotonic() - clock
            tally["broken"] += int(now.standing.sum() - verdicts.sum())
            tally["seconds"] = round(tally["seconds"] + spent, 3)
            now.standing, now.batches, now.seconds = verdicts, now.batches + processes.world, now.seconds + spent
            save()
            label = now.attack if len(attack.stages) == 1 else f"{now.attack}: {stage}"
            done = min(tally["attacked"], now.batches * now.batch_size)
            yield Progress(label, done, tally["attacked"], int(now.standing.sum()), len(labels), most)
        now.entry, now.stage, now.batches = now.standing.copy(), number + 1, 0
