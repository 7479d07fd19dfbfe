"""`piat label`."""

from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from tqdm import tqdm

from piat_hub.cli.flags import Parser, fraction
from piat_hub.config import InputError
from piat_hub.records.files import WEIGHTS, check_output
from piat_hub.records.labels import percent


def label(argv: Sequence[str], prog: str) -> None:
    """`piat label MODEL DATASET --output DIR`: pictures and what a model takes them for, as a data set to train with."""
    description = (
        "Label pictures by a model: a data set for train's --extra-data, with a record of where its labels come from."
    )
    parser = Parser(prog=prog, description=description)
    parser.add_argument("model", metavar="MODEL", help="as in evaluate")
    parser.add_argument(
        "dataset", metavar="DATASET", help="as in training, with or without labels; those it has are left out"
    )
    parser.add_argument("--output", required=True, help="the directory to write, which must be empty or not there")
    parser.add_argument("--split", default="train", help="which split to label (default: train)")
    parser.add_argument("--image-column", help="the data set's image column (default: found by its feature type)")
    parser.add_argument(
        "--img-size", type=int, help="resize images to this many pixels a side (default: as in training)"
    )
    parser.add_argument("--skip-broken", action="store_true", help="leave out pictures that cannot be opened")
    share = "keep this share of each class, the pictures that the model is surest of (default: 1, all)"
    parser.add_argument("--keep-confident", type=fraction, default=1.0, metavar="SHARE", help=share)
    parser.add_argument("--checkpoint", choices=list(WEIGHTS), default="last")
    parser.add_argument("--batch-size", type=int, help="images at a time (default: 250 on a CPU, 1000 on a GPU)")
    given = parser.parse_all(argv)
    for flag, value in (("--batch-size", given.batch_size), ("--img-size", given.img_size)):
        if value is not None and value < 1:
            raise InputError(f"{flag} must be at least 1, got {value}; leave it out for the usual one")
    if not 0 < given.keep_confident <= 1:
        raise InputError(f"--keep-confident must be in (0, 1], got {given.keep_confident:g}; 0.5 keeps the surer half")
    output = Path(given.output)
    check_output(output)

    import torch
    from accelerate import Accelerator

    from piat_hub.evaluation import label as labels
    from piat_hub.evaluation.model import label_names, load_model, weights_digest
    from piat_hub.machine import images_at_a_time, set_threads

    set_threads(None)
    device = Accelerator().device
    model, name, _ = load_model(given.model, given.checkpoint)
    names, weights = label_names(model), weights_digest(model)
    with labels.claimed(output):
        asked = (given.dataset, given.split, given.image_column, given.img_size, given.skip_broken)
        images, own, notes = labels.pictures_for(model, *asked)
        model, batch_size = model.to(device), given.batch_size or images_at_a_time(device)
        found = []
        with tqdm(total=len(images.rows), unit="image", disable=None, desc=given.model) as bar:
            for batch in labels.answers(model, images, batch_size):
                found.append(batch)
                bar.update(len(batch[0]))
        classes, confidence = map(torch.cat, zip(*found, strict=True))
        kept = labels.most_confident(classes, confidence, given.keep_confident)
        facts = {"model": name, "weights": weights, "checkpoint": given.checkpoint}
        facts |= {"dataset": images.name, "split": given.split, "keep_confident": given.keep_confident}
        facts |= labels.described(classes, confidence, kept, names, own)
        labels.write(output, images, kept, classes, names, facts)
    _say(facts, notes)
    print(f"data     {output / labels.TABLE}\nrecord   {output / labels.RECORD}")


def _say(facts: dict[str, Any], notes: Sequence[str]) -> None:
    """What the labels are, and how far they can be believed."""
    print(
        f"{facts['kept']:,} of {facts['n']:,} pictures of {facts['dataset']} ({facts['split']}), labelled by {facts['model']}"
    )
    counts = sorted(facts["kept_by_class"].items(), key=itemgetter(1))
    print(f"from {counts[0][1]:,} ({counts[0][0]}) to {counts[-1][1]:,} ({counts[-1][0]}) of a class")
    print("confidence {least:.3f} to {most:.3f}, median {median:.3f}, mean {mean:.3f}".format(**facts["confidence"]))
    for key, which in (("agreement", "all"), ("agreement_kept", "those kept")):
        if found := facts.get(key):
            low, high = map(percent, found["ci95"])
            print(
                f"with the labels they had, {which} agree in {percent(found['accuracy'])} of {found['n']:,} (95 % {low} to {high})"
            )
    for note in notes:
        print(note)
