"""Which of several measured models to take for what."""

from collections.abc import Iterable
from pathlib import Path

from piat_hub.config import InputError
from piat_hub.records.compare import compare
from piat_hub.records.labels import attack_name, percent, said
from piat_hub.records.rundir import Measured, read_model


def advice(directories: Iterable[str | Path]) -> list[str]:
    """For each data set and threat model that two models or more were measured on, which to take, by their last checkpoints.

    The most accurate on clean images; and the most robust one where the same images tell it from that, paired, under
    AutoAttack, or PGD-20 where fewer than two have AutoAttack. A model whose figures need a note is not recommended.

    Args:
        directories: of models, whole ones.

    Returns:
        A sentence each; none where there is nothing to choose.
    """
    groups: dict[str, dict[Path, dict[str, tuple[float, Path]]]] = {}
    for directory in map(Path, directories):
        for found in read_model(directory).measured:
            record = found.record
            if found.checkpoint == "last" and not said(record):
                images = record.dataset if record.split == "test" else f"{record.dataset} ({record.split})"
                models = groups.setdefault(f"{images}, {record.threat_model}", {})
                _add(models.setdefault(directory, {}), found, directory)
    return [f"{group}: {_choice(models)}" for group, models in groups.items() if _measured(models, "clean") > 1]


def _add(attacks: dict[str, tuple[float, Path]], found: Measured, directory: Path) -> None:
    """Each attack's accuracy and where it lies, the run's own images before those of its folders."""
    for name, figures in found.record.attacks.items():
        attacks.setdefault(name, (figures["accuracy"], directory / found.folder))


def _measured(models: dict[Path, dict[str, tuple[float, Path]]], attack: str) -> int:
    return sum(attack in attacks for attacks in models.values())


def _choice(models: dict[Path, dict[str, tuple[float, Path]]]) -> str:
    """What to take of the models of one group."""
    clean, first = max((attacks["clean"][0], path) for path, attacks in models.items() if "clean" in attacks)
    attack = next((name for name in ("aa", "pgd20") if _measured(models, name) > 1), None)
    if attack is None:
        return f"take {first}, the most accurate on clean images ({percent(clean)})"
    robust, most = max((attacks[attack][0], path) for path, attacks in models.items() if attack in attacks)
    under, shown = attack_name(attack), percent(robust)
    if most == first:
        return f"take {first}, the most accurate on clean images ({percent(clean)}) and under {under} ({shown})"
    try:
        pair = next(p for p in compare(models[first][attack][1], models[most][attack][1]) if p.attack == attack)
    except (KeyError, InputError):
        return f"take {first} for clean images ({percent(clean)}), {most} for {under} ({shown}, not of the same images)"
    low, high = (f"{100 * end:+.2f}" for end in pair.ci95)
    by = f"{100 * pair.difference:+.2f} points, 95 % {low} to {high}, n {pair.n}"
    if pair.ci95[0] > 0:
        return f"take {first} for clean images ({percent(clean)}), {most} for {under} ({by})"
    return (
        f"take {first}, the most accurate on clean images ({percent(clean)}); under {under} none is shown to be more robust "
        f"({most}: {by})"
    )
