"""Two evaluated directories paired image by image."""

from collections.abc import Mapping
from pathlib import Path

from piat_hub.config import InputError
from piat_hub.records.claims import HOW
from piat_hub.records.corruptions import Corruptions
from piat_hub.records.files import WEIGHTS, file_digest, own
from piat_hub.records.results import Record, grouping, read_results
from piat_hub.records.statistics import Paired, mean_of_images, paired
from piat_hub.records.union import Union


def compare(a: Path, b: Path, checkpoint: str = "last") -> list[Paired]:
    """Pair two evaluated directories, attack by attack, as far as both have them.

    Args:
        a: a directory with results.json and verdicts.npz.
        b: another.
        checkpoint: "last" or "best", of both.

    Raises:
        InputError: unless they measured the same images and labels, threat model and steps, have an attack in common, and their
            weights, where a model lies there too, are those that were measured.
    """
    (record_a, kept_a), (record_b, kept_b) = (read_results(path, checkpoint) for path in (a, b))
    for path, record in ((a, record_a), (b, record_b)):
        _hold_weights(path, record)
    words_a, words_b = record_a.question(), record_b.question()
    for key in ("threat_model", "dataset", "images_sha256"):
        if words_a[key] != words_b[key]:
            raise InputError(
                f"{a} was measured with {key} {words_a[key]}, {b} with {words_b[key]}; "
                "only the same images under the same threat model can be paired"
            )
    if grouping(a, checkpoint) != grouping(b, checkpoint):
        raise InputError(f"{a} was measured with other labels of these images than {b}; evaluate one of them again")
    common = [name for name in kept_a if name in kept_b]
    for name in common:
        _hold_attack(name, a, record_a, b, record_b)
    if not common:
        raise InputError(f"{a} and {b} have no attack in common; evaluate both with the same --attacks")
    return [paired(name, kept_a[name], kept_b[name]) for name in common]


def unions(a: Path, b: Path, checkpoint: str = "last") -> list[Paired]:
    """Pair two evaluated directories under each threat model, by the worst of its attacks, and under their union.

    Args:
        a: a directory with union.json.
        b: another.
        checkpoint: "last" or "best", of both.

    Raises:
        InputError: unless they measured the same images under the same threat models and attacks.
    """
    one, other = (Union.read(path, checkpoint) for path in (a, b))
    for path, union in ((a, one), (b, other)):
        _hold_weights(path, union.first)
    _hold_same(a, one.parts, b, other.parts)
    each = [
        (str(part.threat_model), one.standing[folder], other.standing[folder]) for folder, part in one.parts.items()
    ]
    return [paired(*each_pair) for each_pair in (*each, ("union", one.worst, other.worst))]


def corruptions(
    a: Path, b: Path, checkpoint: str = "last"
) -> list[tuple[str, float, float, float, tuple[float, float]]]:
    """Two evaluated directories under each common corruption that both have whole; the mean of the 15 last.

    An image is measured at five severities, so the intervals are of images and not of answers.

    Args:
        a: a directory whose results hold corruptions.
        b: another.
        checkpoint: "last" or "best", of both.

    Returns:
        For each corruption its name, the accuracy of A and of B, B - A, and the 95 % interval of that.

    Raises:
        InputError: unless they measured the same images.
    """
    records = [read_results(path, checkpoint)[0] for path in (a, b)]
    if lacking := [path for path, record in zip((a, b), records, strict=True) if not record.corruptions]:
        raise InputError(f"{lacking[0]} has no corruptions measured; evaluate it with --corruptions DIR")
    one, other = (Corruptions.read(p, checkpoint, r.corruptions) for p, r in zip((a, b), records, strict=True))
    common = [name for name in one.whole if name in other.whole]
    if not common or any((one.n, one.digests[name]) != (other.n, other.digests[name]) for name in common):
        raise InputError(
            f"{a} and {b} measured other corrupted images; evaluate both on the same --corruptions and --n"
        )
    pairs = [(name, one.whole[name].mean(0), other.whole[name].mean(0)) for name in common]
    if one.by_image is not None and other.by_image is not None:
        pairs.append(("mean of the 15", one.by_image, other.by_image))
    found = []
    for name, ours, theirs in pairs:
        difference, (low, high) = mean_of_images(theirs - ours, -1.0)
        found.append((name, float(ours.mean()), float(theirs.mean()), difference, (low, high)))
    return found


def _hold_same(a: Path, ours: Mapping[str, Record], b: Path, theirs: Mapping[str, Record]) -> None:
    """InputError unless two unions are of the same images, threat models and attacks."""
    if set(ours) != set(theirs):
        raise InputError(
            f"{a} is the union of {', '.join(ours)}, {b} that of {', '.join(theirs)}; evaluate both under the same"
        )
    for folder, record in ours.items():
        other = theirs[folder]
        if (record.dataset, record.split, record.images) != (other.dataset, other.split, other.images):
            raise InputError(f"{a} and {b} measured other images; only the same can be paired")
        if set(record.attacks) != set(other.attacks):
            raise InputError(
                f"under {record.threat_model} {a} has {', '.join(record.attacks)}, {b} {', '.join(other.attacks)}; "
                "evaluate both with the same --attacks"
            )
        for name in record.attacks:
            _hold_attack(name, a, record, b, other)


def _hold_attack(name: str, a: Path, record_a: Record, b: Path, record_b: Record) -> None:
    """InputError unless two directories' records ran an attack alike."""
    for key in HOW:
        if record_a.attacks[name].get(key) != record_b.attacks[name].get(key):
            raise InputError(f"{name} was run with another {key} in {a} than in {b}; evaluate one of them again")


def _hold_weights(directory: Path, record: Record) -> None:
    """InputError for results beside a model whose weights are no longer those that were measured."""
    weights = own(directory, WEIGHTS[record.checkpoint])
    if not record.weights or not (directory / "config.json").exists():
        return
    if not weights.is_file() or file_digest(weights) != record.weights.partition(" ")[0]:  # " behind mean …" may follow
        raise InputError(
            f"{directory} was measured with other weights than {weights.name} holds now; evaluate it again"
        )
