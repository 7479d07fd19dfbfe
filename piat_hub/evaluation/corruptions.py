"""Accuracy on corrupted images, each corruption and severity: no attack, the model as it answers."""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from piat_hub.config import SEVERITIES, InputError
from piat_hub.data import Corrupted, Split, numbered_as
from piat_hub.evaluation.loop import ALONE, Processes, Progress
from piat_hub.evaluation.model import label_names
from piat_hub.evaluation.premises import answers
from piat_hub.evaluation.verdict import class_count, right, verdict_mode
from piat_hub.machine import device_of
from piat_hub.records.corruptions import Corruptions
from piat_hub.records.results import Results

IMAGENET = (1000, (3, 224, 224))  # classes and images of ImageNet-C


def measure(
    model: nn.Module,
    images: Corrupted,
    results: Results,
    *,
    batch_size: int = 250,
    save: Callable[[Results], None] = lambda results: None,
    processes: Processes = ALONE,
) -> Iterator[Progress]:
    """Measure the severities that `results` lacks; calls `save` and yields after each, which is where a next call goes on.

    Verdicts are fp32 with TF32 off. The processes take a batch each and agree after a severity.

    Args:
        model: maps images in [0, 1] to logits (B, K); left as it was found.
        images: the corrupted ones.
        results: of the same model, whose `corrupted` is filled in.
        batch_size: images of a batch.
        save: called with `results`.
        processes: who shares the work.

    Yields:
        How far it has come after each severity, its attack being the corruption and that, "fog 3".

    Raises:
        InputError: for images that the model cannot take, other classes, or other images than were measured before.
    """
    done = results.corrupted or Corruptions(images.name, images.n)
    if (done.name, done.n) != (images.name, images.n):
        raise InputError(
            f"{done.n} images of {done.name} were measured before, this call asks for {images.n} of {images.name}; "
            "name another place with --output"
        )
    device, results.corrupted = device_of(model), done
    with verdict_mode(model) as exact:
        for corruption in images.images:
            digest = images.digest(corruption)
            if done.digests.setdefault(corruption, digest) != digest:
                raise InputError(
                    f"{corruption} was measured on other images of {done.name}; name another place with --output"
                )
            for severity in range(len(done.verdicts.get(corruption, ())) + 1, SEVERITIES + 1):
                found = Split(images.at(corruption, severity), images.labels[: images.n], (), images.name)
                split = numbered_as(found, label_names(model)).to(device)
                for sentence in split.notes:
                    results.note(sentence)
                done.imagenet = (class_count(exact, split), split.shape) == IMAGENET
                stand = torch.ones(images.n, dtype=torch.uint8, device=device)
                batches = torch.arange(images.n).split(batch_size)
                for index in batches[processes.rank :: processes.world]:
                    logits, _ = answers(exact, split.images, split.labels, index, batch_size, 0)
                    stand[index] = right(logits, split.labels[index]).to(torch.uint8)
                done.record(corruption, processes.least(stand).cpu().numpy().astype(bool))
                save(results)
                correct = int(done.verdicts[corruption][-1].sum())
                yield Progress(f"{corruption} {severity}", images.n, images.n, correct, images.n, batch_size)
