"""The model card: README.md from config.json and results.json, by a template; no figure is typed by hand."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from tabulate import tabulate

from piat_hub import recipes
from piat_hub.config import DATASETS, RESULTS, WEIGHTS, InputError, TrainConfig, flags, from_dict, pixels, whole_file

TEMPLATE = Path(__file__).with_name("card_template.md")
METHOD_NAMES = {"standard": "standard training", "pgd_at": "PGD-AT"}


def title(config: TrainConfig) -> str:
    """'PIAT+NMSE, cifar_resnet18 on cifar10'."""
    return f"{method_name(config)}, {config.backbone} on {Path(config.dataset).name}"


def method_name(config: TrainConfig) -> str:
    """The method as papers name it, with its interpolation: 'PIAT+NMSE', 'PGD-AT', 'lam=0.9+NMSE'."""
    name = METHOD_NAMES.get(config.method, config.method.upper())
    prefix = {"none": "", "piat": "PIAT+", "constant": f"lam={config.interpolation.constant:g}+"}[
        config.interpolation.kind
    ]
    name = "PIAT" if prefix == "PIAT+" and config.method == "pgd_at" else prefix + name
    extras = {"+AWP": config.awp, " with EMA": config.ema, " with SWA": config.swa}
    return name + "".join(words for words, value in extras.items() if value is not None)


def percent(fraction: float) -> str:
    """Two decimals, for people: '53.54 %'."""
    return f"{100 * fraction:.2f} %"


AUTOATTACK = {"aa": "AutoAttack", "apgd-ce": "APGD-CE", "apgd-t": "APGD-T", "fab-t": "FAB-T", "square": "Square"}


def attack_name(name: str) -> str:
    """'pgd20' -> 'PGD-20', 'aa' -> 'AutoAttack', 'clean' -> 'clean'."""
    if name == "clean" or name in AUTOATTACK:
        return AUTOATTACK.get(name, name)
    letters = name.rstrip("0123456789")
    return f"{letters.upper()}-{name[len(letters) :] or 20}"


def rows(results: dict[str, Any]) -> list[list[str]]:
    """One row per attack: name, accuracy, 95 % interval, correct of n; where several attacked, their worst case last."""
    named = {attack_name(a): f for a, f in results["attacks"].items()}
    if len(named) > 2 and results.get("worst_case"):
        named["worst case of these"] = results["worst_case"]
    return [
        [name, percent(f["accuracy"]), " to ".join(percent(e) for e in f["ci95"]), f"{f['correct']} of {f['n']}"]
        for name, f in named.items()
    ]


HEADERS = ("attack", "accuracy", "95 % interval (Wilson)", "correct")


def write(directory: Path) -> Path:
    """Write README.md of a run directory, from what is measured there so far. InputError if it is no run directory."""
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        trained = from_dict(TrainConfig, config["piat"])
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise InputError(
            f"{directory} is no run directory: no {path.name} with a piat block ({error}); train one"
        ) from error
    measured = _measured(directory)
    card = ModelCard.from_template(
        _metadata(directory, trained, measured),
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        title=title(trained),
        config=trained,
        method=method_name(trained),
        eps=pixels(trained.threat_model.eps),
        step_size=pixels(trained.attack.step_size),
        architecture=config["architecture"],
        label_names=config.get("label_names", []),
        input_size=config["pretrained_cfg"]["input_size"],
        tables={c: tabulate(rows(r), HEADERS, tablefmt="github", disable_numparse=True) for c, r in measured.items()},
        measured=measured,
        notes=[f["changed"] for r in measured.values() for f in r["attacks"].values() if "changed" in f],
        checks={c: r["checks"] for c, r in measured.items() if r.get("checks")},
        curves=(directory / "curves.png").exists(),
        directory=directory.name if directory.is_absolute() else str(directory),
        command=command(trained),
    )
    with whole_file(directory / "README.md") as scratch:
        scratch.write_text(str(card), encoding="utf-8")
    return directory / "README.md"


def command(config: TrainConfig) -> str:
    """The command that trains this: its recipe and what differs from it; a local data set by its folder's name."""
    base = recipes.get(config.recipe) if config.recipe in recipes.RECIPES else TrainConfig()
    dataset = Path(config.dataset).name if Path(config.dataset).is_dir() else config.dataset
    words = ["accelerate launch train.py", config.recipe] if config.recipe else ["accelerate launch train.py"]
    words += flags(dataclasses.replace(config, dataset=dataset), base)
    return " ".join([*words, *(f"--method.{name} {value}" for name, value in config.method_args.items())])


def _measured(directory: Path) -> dict[str, dict[str, Any]]:
    """Results by checkpoint, as far as they were measured on the weights that lie there now."""
    found = {}
    for checkpoint, name in RESULTS.items():
        results, weights = directory / name, directory / WEIGHTS[checkpoint]
        if not (results.exists() and weights.exists()):
            continue
        try:
            known = json.loads(results.read_text(encoding="utf-8"))
            if known["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest():
                found[checkpoint] = known
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{results} is damaged ({error!r}); move it away and evaluate again") from error
    return found


def _metadata(directory: Path, config: TrainConfig, measured: dict[str, dict[str, Any]]) -> ModelCardData:
    """The YAML head: one model-index entry per checkpoint and attack."""
    entries = [
        EvalResult(
            task_type="image-classification",
            dataset_type=DATASETS.get(results["dataset"]["name"], (results["dataset"]["name"],))[0],
            dataset_name=results["dataset"]["name"],
            dataset_split=results["dataset"]["split"],
            metric_type="accuracy",
            metric_name=f"{attack_name(attack)} accuracy"
            + ("" if checkpoint == "last" else f" ({checkpoint} checkpoint)"),
            metric_value=figures["accuracy"],
            metric_args={"attack": attack, **results["threat_model"], "steps": figures.get("steps"), "n": figures["n"]},
        )
        for checkpoint, results in measured.items()
        for attack, figures in results["attacks"].items()
    ]
    training_tags = ["adversarial-training"] if config.method != "standard" else []
    training_tags += ["piat"] if config.interpolation.kind == "piat" else []
    return ModelCardData(
        library_name="timm",
        license="mit",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "adversarial-robustness", *training_tags],
        datasets=[DATASETS[config.dataset][0]] if config.dataset in DATASETS else None,
        model_name=directory.resolve().name,
        eval_results=entries or None,
    )
