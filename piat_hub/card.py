"""The model card: README.md from config.json and results.json, by a template; no figure is typed by hand."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shlex
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from tabulate import tabulate

from piat_hub import plain_timm, recipes
from piat_hub.config import (
    DATASETS,
    RESULTS,
    VERDICTS,
    WEIGHTS,
    InputError,
    TrainConfig,
    from_dict,
    local_name,
    pixels,
    printable,
    to_dict,
)
from piat_hub.files import file_digest, own, read_config, read_lines, read_results, write_text

TEMPLATE = Path(__file__).with_name("card_template.md")
LICENCES = (  # of timm's weights, those that the Hub knows by these names; it wants "other" for the rest
    *("mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0"),
    *("cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc0-1.0", "gpl-3.0", "unknown"),
)
METHOD_NAMES = {"standard": "standard training", "pgd_at": "PGD-AT", "free_at": "Free-AT"}


def title(config: TrainConfig) -> str:
    """'PIAT+NMSE, cifar_resnet18 on cifar10'."""
    return f"{method_name(config)}, {config.backbone} on {public(config).dataset}"


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
    write_text(directory / "README.md", render(directory))
    return directory / "README.md"


def render(directory: Path, repo_id: str | None = None) -> str:
    """The card of a run directory as text; its examples load `repo_id` from the Hub, else the directory.

    Raises InputError if it is no run directory.
    """
    config, trained = read(directory)
    raw = measured(directory)
    found = {checkpoint: escaped(results) for checkpoint, results in raw.items()}
    name = repo_id or (str(directory) if directory.name and not directory.is_absolute() else directory.resolve().name)
    weights = literal(f"{name}/{WEIGHTS['last']}")
    if repo_id:
        weights = f"hf_hub_download({literal(name)}, {literal(WEIGHTS['last'])})"
    own = config["architecture"] == "small_image" or config["architecture"].startswith("cifar_")
    files = {c: (f, file_digest(directory / f)) for c, f in WEIGHTS.items() if (directory / f).is_file()}
    card = ModelCard.from_template(
        _metadata(repo_id or directory.resolve().name, licence(config), trained, raw),
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        title=escaped(title(trained)),
        config=trained,
        method=escaped(method_name(trained)),
        eps=pixels(trained.threat_model.eps),
        step_size=pixels(trained.attack.step_size),
        architecture=config["architecture"],
        registered=own,
        classes=config["num_classes"],
        label_names=config.get("label_names", []),
        input_size=config["pretrained_cfg"]["input_size"],
        shape=tuple(config["pretrained_cfg"]["input_size"]),
        tables={c: tabulate(rows(r), HEADERS, tablefmt="github", disable_numparse=True) for c, r in found.items()},
        measured=found,
        verdicts={key: files_of(key)[1].replace("`", "'") for key in found},
        notes=[f["changed"] for r in found.values() for f in r["attacks"].values() if "changed" in f],
        checks={c: r["checks"] for c, r in found.items() if r.get("checks")},
        curves=(directory / "curves.png").exists(),
        name=literal(name),
        timm_name=literal(f"hf-hub:{name}" if repo_id else f"local-dir:{name}"),
        plain=plain_timm.lines(config, weights) if own else None,
        files=files,
        training=escaped(training(directory)),
        command=command(trained).replace("`", "'"),
    )
    return str(card)


def escaped(values: Any) -> Any:
    """Text that Markdown shows as it is, also in a table; in nested values every text, names too."""
    if isinstance(values, str):
        return re.sub(r"([\\`*<>\[\]|~#$]|\b_|_\b)", r"\\\1", values)
    if isinstance(values, dict):
        return {escaped(key): escaped(value) for key, value in values.items()}
    return [escaped(value) for value in values] if isinstance(values, list) else values


def literal(text: str) -> str:
    """The text as Python source."""
    return json.dumps(text, ensure_ascii=False)


def read(directory: Path) -> tuple[dict[str, Any], TrainConfig]:
    """(config.json as it may be shown to strangers, the training configuration in it). InputError if there is none."""
    path = own(directory, "config.json")
    if not path.is_file():
        raise InputError(f"{directory} is no run directory: it has no config.json; train one")
    config = read_config(path)
    try:
        trained = public(from_dict(TrainConfig, config["piat"]))
        _ = config["num_classes"], tuple(config["pretrained_cfg"]["input_size"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{directory} is no run directory: nothing in config.json under {error}; train one") from error
    return config | {"piat": to_dict(trained)}, trained


def public(config: TrainConfig) -> TrainConfig:
    """The configuration with paths of this machine cut to their last part. Training makes them absolute, so they are known."""
    dataset, start = config.dataset, config.init_from
    dataset = local_name(dataset) if Path(dataset).is_absolute() else dataset
    start = Path(start).name if start and Path(start).is_absolute() else start
    return dataclasses.replace(config, dataset=dataset, init_from=start)


def summary(directory: Path) -> dict[str, Any]:
    """What a list of models says of a run directory: what it is, and its last checkpoint's accuracies as far as measured."""
    config, trained = read(directory)
    whole = [results for key, results in measured(directory).items() if key.rpartition("/")[2] == "last"]
    found = [results for results in whole if _question(results) == _question(whole[0])]
    attacks = {name: figures for results in reversed(found) for name, figures in results["attacks"].items()}
    return {
        "model": str(directory),
        "architecture": config["architecture"],
        "input_size": config["pretrained_cfg"]["input_size"],
        "num_classes": config["num_classes"],
        "dataset": trained.dataset,
        "method": method_name(trained),
        "threat_model": found[0]["threat_model"] if found else None,
        **{f"{attack}_acc": figures["accuracy"] for attack, figures in attacks.items()},
        "n": {attack: figures["n"] for attack, figures in attacks.items()},
        "weights_sha256": {c: file_digest(directory / f) for c, f in WEIGHTS.items() if (directory / f).is_file()},
    }


def _question(results: dict[str, Any]) -> tuple[Any, ...]:
    """What accuracies must share to stand in one row: threat model, data set and split."""
    return results["threat_model"], results["dataset"]["name"], results["dataset"]["split"]


def command(config: TrainConfig) -> str:
    """The command that trains this: its recipe and what differs from it; local paths by their last part."""
    return shlex.join(["accelerate", "launch", "train.py", *recipes.words(public(config))])


def training(directory: Path) -> dict[str, str] | None:
    """How long training took, on what and with which versions, from timing.jsonl; None where it was not recorded."""
    epochs = read_lines(path := own(directory, "timing.jsonl"))
    if not epochs:
        return None
    try:
        minutes = round(sum(e["train_seconds"] + e["check_seconds"] for e in epochs) / 60)
        hardware = [e["device"] if e["processes"] == 1 else f"{e['processes']} x {e['device']}" for e in epochs]
        known = [e["versions"] | {"commit": e["git"]} for e in epochs if "versions" in e]
        versions = [", ".join(f"{name} {v}" for name, v in each.items() if v) for each in known]
        if not all(printable(text) for text in (*hardware, *versions)):
            raise ValueError("a device's name cannot be printed")
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise InputError(f"{path} is damaged ({error!r}); the training's own command with --resume mends it") from error
    time = (
        f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min" if minutes else "under a minute"
    )
    return {
        "time": time,
        "hardware": " and ".join(dict.fromkeys(hardware)),
        "versions": "; then ".join(dict.fromkeys(versions)),
    }


def measured(directory: Path) -> dict[str, dict[str, Any]]:
    """Results by checkpoint, as far as they were measured on the weights that lie there now; then those in folders below.

    A folder holds what was measured on other images, such as a slow attack on fewer of them: its results go by
    "FOLDER/last" or "FOLDER/best". InputError for a damaged file.
    """
    found = {}
    folders = sorted({path.parent.name for path in directory.glob("*/results*.json")})
    for folder, checkpoint in itertools.product(["", *folders], RESULTS):
        results, weights = (
            own(directory, f"{folder}/{RESULTS[checkpoint]}".lstrip("/")),
            own(directory, WEIGHTS[checkpoint]),
        )
        if not (results.is_file() and weights.is_file()):
            continue
        try:
            known = read_results(results)
            if known.get("weights_sha256") == file_digest(weights):
                found[f"{folder}/{checkpoint}".lstrip("/")] = known
        except (OSError, ValueError) as error:
            raise InputError(f"{results} is damaged ({error}); move it away and evaluate again") from error
    return found


def files_of(key: str) -> tuple[str, str]:
    """The files of results and verdicts that belong to a key of `measured`."""
    folder, _, checkpoint = key.rpartition("/")
    results, verdicts = (f"{folder}/{names[checkpoint]}".lstrip("/") for names in (RESULTS, VERDICTS))
    return results, verdicts


def licence(config: dict[str, Any]) -> dict[str, Any]:
    """That of the weights training began with, which those it ends with are derived from; MIT for training from scratch."""
    source = config["pretrained_cfg"].get("license") or "mit"
    if source in LICENCES:
        return {"license": source}
    named = isinstance(source, str) and re.fullmatch(r"[\w.-]+", source, re.ASCII)
    return {"license": "other"} | ({"license_name": source} if named else {})


def _metadata(
    name: str, licence: dict[str, Any], config: TrainConfig, found: dict[str, dict[str, Any]]
) -> ModelCardData:
    """The YAML head: one model-index entry per checkpoint and attack; those measured on other images say on how many."""
    entries = [
        EvalResult(
            task_type="image-classification",
            dataset_type=DATASETS.get(results["dataset"]["name"], (results["dataset"]["name"],))[0],
            dataset_name=results["dataset"]["name"],
            dataset_split=results["dataset"]["split"],
            metric_type="accuracy",
            metric_name=f"{attack_name(attack)} accuracy"
            + ("" if results["checkpoint"] == "last" else f" ({results['checkpoint']} checkpoint)")
            + (f", {figures['n']} images" if "/" in key else ""),
            metric_value=figures["accuracy"],
            metric_args={"attack": attack, **results["threat_model"], "steps": figures.get("steps"), "n": figures["n"]},
        )
        for key, results in found.items()
        for attack, figures in results["attacks"].items()
    ]
    training_tags = ["adversarial-training"] if config.method != "standard" else []
    training_tags += ["piat"] if config.interpolation.kind == "piat" else []
    return ModelCardData(
        library_name="timm",
        **licence,
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "adversarial-robustness", *training_tags],
        datasets=[DATASETS[config.dataset][0]] if config.dataset in DATASETS else None,
        model_name=name.rpartition("/")[2],
        eval_results=entries or None,
    )
