"""The paper's comparisons: from a recipe to the members of a sweep, by name."""

import dataclasses
from collections.abc import Callable
from typing import Any

from piat_hub.config import TrainConfig
from piat_hub.records.published import PAPER_ATTACKS, method_of, paper

Sweep = dict[str, TrainConfig]


def constant(config: TrainConfig, lam: float) -> TrainConfig:
    """The same with lam in place of g(n); without interpolation for 0.

    Args:
        config: another member of the sweep.
        lam: the weight of theta'_{n-1}, in [0, 1).
    """
    kind: Any = {"kind": "constant", "constant": lam} if lam else {"kind": "none"}
    return dataclasses.replace(config, interpolation=dataclasses.replace(config.interpolation, **kind))


def with_method(config: TrainConfig, method: str, kind: Any) -> TrainConfig:
    """The same with another method, of default fields, and interpolation "none" or "piat".

    Args:
        config: another member of the sweep; its own method keeps its fields.
        method: by its name.
        kind: of interpolation.
    """
    law = dataclasses.replace(config.interpolation, kind=kind)
    fields = config.method_args if method == config.method else {}
    return dataclasses.replace(config, method=method, method_args=fields, interpolation=law)


def lambda_(base: TrainConfig) -> Sweep:
    """Interpolation by a constant lam of 0 to 0.9, and by g(n) (Fig. 4)."""
    return {
        f"{base.method}-none": constant(base, 0),
        **{f"{base.method}-{lam}": constant(base, lam) for lam in (0.1, 0.3, 0.5, 0.7, 0.9)},
        f"{base.method}-piat": with_method(base, base.method, "piat"),
    }


def speed(base: TrainConfig) -> Sweep:
    """Interpolation by g(s n), which grows s times as fast as g(n): s of 1/16 to 4, and none.

    s = 120 / epochs brings lam as far in this run as g(n) in the paper's 120 epochs; s = steps of an epoch / 390 lets it
    grow by steps as it does there.
    """
    piat = with_method(base, base.method, "piat")
    law = piat.interpolation
    return {
        f"{base.method}-none": constant(base, 0),
        **{
            f"{base.method}-piat-{s:g}n": dataclasses.replace(
                piat, interpolation=dataclasses.replace(law, a=s * law.a, c=s * law.c)
            )
            for s in (1 / 16, 1 / 4, 1, 4)
        },
    }


def mu(base: TrainConfig) -> Sweep:
    """The weight mu of NMSE, under PIAT (Fig. 5)."""
    from piat_hub import methods  # loads torch, which naming a study does without

    default = methods.get("nmse")().mu  # type: ignore[attr-defined]
    piat = with_method(base, "nmse", "piat")
    return {
        "nmse-piat" if m == default else f"nmse-piat-mu{m}": dataclasses.replace(
            piat, method_args={} if m == default else {"mu": float(m)}
        )
        for m in (3, 4, 5, 6)
    }


def methods_(base: TrainConfig) -> Sweep:
    """Every method with and without PIAT (Figs. 2 and 3)."""
    from piat_hub import methods

    return {
        f"{m}-{kind}": with_method(of_updates(base, m), m, kind) for m in methods.names() for kind in ("none", "piat")
    }


def clean_epochs(base: TrainConfig) -> Sweep:
    """Every adversarial method after the recipe's clean epochs, and without any; no interpolation."""
    from piat_hub import methods

    adversarial = sorted({*methods.names()} - {"standard"})
    plain = {m: with_method(of_updates(base, m), m, "none") for m in adversarial}
    return {
        f"{m}-none-clean{count}": dataclasses.replace(config, clean_epochs=count)
        for m, config in plain.items()
        for count in (round(config.clean_share * config.epochs), 0)
    }


def of_updates(base: TrainConfig, method: str) -> TrainConfig:
    """The same with fewer epochs where the method replays each batch, so that all methods have as many updates.

    Args:
        base: for a method without replays.
        method: by its name.
    """
    from piat_hub import methods

    replays = getattr(methods.get(method)(), "replays", 1)
    return dataclasses.replace(base, epochs=max(1, base.epochs // replays))


def nmse_vs_alp(base: TrainConfig) -> Sweep:
    """NMSE against ALP, each with and without PIAT (Table 4)."""
    return {f"{m}-{kind}": with_method(base, m, kind) for m in ("alp", "nmse") for kind in ("none", "piat")}


def averaging(base: TrainConfig) -> Sweep:
    """Averages of weights: PIAT with BatchNorm's statistics interpolated, copied and recalibrated, EMA, SWA, none."""
    none, piat = (with_method(base, base.method, kind) for kind in ("none", "piat"))
    law = piat.interpolation
    return {
        f"{base.method}-none": none,
        f"{base.method}-piat": piat,
        **{
            f"{base.method}-piat-bn-{bn}": dataclasses.replace(piat, interpolation=dataclasses.replace(law, bn=bn))
            for bn in ("copy", "recalibrate")
        },
        f"{base.method}-ema": dataclasses.replace(none, ema=0.999),
        f"{base.method}-swa": dataclasses.replace(none, swa=0.5),
    }


def table(number: int) -> Callable[[TrainConfig], Sweep]:
    """The study of one of the paper's tables: its methods, as a function from a recipe to a sweep.

    Args:
        number: of the table.
    """

    def sweep(base: TrainConfig) -> Sweep:
        names = dict.fromkeys(row["method"] for row in paper() if row["table"] == str(number))
        return {f"{m}-{kind}": with_method(base, m, kind) for m, kind in map(method_of, names)}

    sweep.__doc__ = f"The methods of the paper's Table {number}, beside its numbers where the data are the paper's."
    return sweep


STUDIES: dict[str, Callable[[TrainConfig], Sweep]] = {
    "lambda": lambda_,
    "speed": speed,
    "mu": mu,
    "methods": methods_,
    "nmse-vs-alp": nmse_vs_alp,
    "averaging": averaging,
    "clean-epochs": clean_epochs,
    **{f"table{n}": table(n) for n in (1, 2, 3, 5)},
}


def default_recipes(name: str) -> list[str]:
    """Where a study starts from when no recipe is named: digits, or the architectures and data of the paper's table."""
    if not name.startswith("table"):
        return ["digits"]
    rows = [row for row in paper() if row["table"] == name.removeprefix("table")]
    return list(dict.fromkeys(f"{row['architecture']}-{row['dataset']}" for row in rows))


def default_attacks(name: str) -> tuple[str, ...]:
    """clean and PGD-20, or the columns of the paper's table."""
    rows = [row for row in paper() if row["table"] == name.removeprefix("table")]
    return tuple(a for key, a in PAPER_ATTACKS.items() if any(row[key] for row in rows)) or ("clean", "pgd20")
