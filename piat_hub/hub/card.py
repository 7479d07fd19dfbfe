"""The model card: README.md from config.json and results.json, by a template; no figure is typed by hand."""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from piat_hub.config import DATASETS, InputError, TrainConfig, pixels, public, recipes, to_dict
from piat_hub.hub import plain_timm
from piat_hub.records import labels, lock
from piat_hub.records.files import WEIGHTS, own, read_json, sealed, write_text
from piat_hub.records.model_config import ModelConfig
from piat_hub.records.results import Record
from piat_hub.records.rundir import Measured, ModelDirectory, RunDirectory, read_model

TEMPLATE = Path(__file__).with_name("card_template.md")


LICENCES = {  # those that the Hub knows by these names; it wants "other" for the rest
    "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bigcode-openrail-m", "bigscience-bloom-rail-1.0",
    "bigscience-openrail-m", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "bsl-1.0", "c-uda", "cc",
    "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-3.0",
    "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0",
    "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0", "creativeml-openrail-m",
    "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "isc", "lgpl",
    "lgpl-2.1", "lgpl-3.0", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl", "ncsa", "odbl", "odc-by", "ofl-1.1", "openrail",
    "osl-3.0", "pddl", "postgresql", "unknown", "unlicense", "wtfpl", "zlib",
}  # fmt: skip


def write(directory: Path) -> Path:
    """Write README.md of a run or an imported model, from what is measured there so far; returns its path.

    Args:
        directory: of the run or the model.

    Raises:
        InputError: if it is neither, or damaged; InUse, while another process writes there.
    """
    run = read_model(directory)
    with lock.only_writer(directory):
        write_text(directory / "README.md", render(run))
    return directory / "README.md"


def license_as(directory: Path, licence: str) -> None:
    """Write into config.json under which licence the weights are published; cards and pushes then say it.

    Args:
        directory: of the run, or of an imported model whose licence is not known.
        licence: in the Hub's words, "mit".

    Raises:
        InputError: for no name of a licence, or where the weights, or those that training began with, are under another.
    """
    if not re.fullmatch(r"[\w.-]+", licence, re.ASCII):
        raise InputError(f"licence {licence!r} must be a name in the Hub's words, such as mit or apache-2.0; give one")
    with lock.only_writer(directory):
        known = read_model(directory).model.pretrained_cfg.get("license")
        if known not in (None, "unknown", licence):
            raise InputError(
                f"{directory} has weights, or began with some, under {known}, which stays its licence; leave out --license"
            )
        path = own(directory, "config.json")
        content = read_json(path)
        content["pretrained_cfg"]["license"] = licence
        write_text(path, json.dumps(sealed(content), indent=2) + "\n")


def render(run: ModelDirectory, repo_id: str | None = None) -> str:
    """The card of a run or an imported model as text; its examples load `repo_id` from the Hub, else the directory.

    Args:
        run: as it was read.
        repo_id: "ORG/NAME".
    """
    directory, model = run.directory, run.model
    name = repo_id or (str(directory) if directory.name and not directory.is_absolute() else directory.resolve().name)
    weights = literal(f"{name}/{WEIGHTS['last']}")
    if repo_id:
        weights = f"hf_hub_download({literal(name)}, {literal(WEIGHTS['last'])})"
    ours = model.architecture == "small_image" or model.architecture.startswith("cifar_")
    ours |= model.architecture.endswith("_cvst")
    card = ModelCard.from_template(
        _metadata(repo_id or directory.resolve().name, run),
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        **(_of_training(run) if isinstance(run, RunDirectory) else _of_others(run)),
        architecture=model.architecture,
        registered=ours,
        classes=model.num_classes,
        label_names=model.label_names,
        input_size=model.pretrained_cfg["input_size"],
        shape=tuple(model.pretrained_cfg["input_size"]),
        measured=[_shown(found) for found in run.measured],
        unions={
            c: labels.table(escaped(labels.union_rows(u)), labels.UNION_HEADERS, "github")
            for c, u in run.unions.items()
        },
        curves=(directory / "curves.png").exists(),
        name=literal(name),
        timm_name=literal(f"hf-hub:{name}" if repo_id else f"local-dir:{name}"),
        plain=plain_timm.lines(model, weights) if ours else None,
        files={checkpoint: (WEIGHTS[checkpoint], digest) for checkpoint, digest in run.digests.items()},
    )
    return str(card)


def _of_training(run: RunDirectory) -> dict[str, Any]:
    """What the template says of a training that we ran."""
    config = run.config
    return {
        "title": escaped(labels.title(config)),
        "config": config,
        "threat_model": config.threat_model,
        "method": escaped(labels.method_name(config)),
        "optimizer": escaped(labels.OPTIMIZER_NAMES.get(config.optimizer.opt, config.optimizer.opt)),
        "eps": pixels(config.threat_model.eps, config.norm),
        "step_size": pixels(config.step_size, config.norm),
        "fit": _fit(run.model, config),
        "training": escaped(run.training),
        "extra": escaped(_extra(config)),
        "folders": escaped(", ".join(_folders(config))),
        "unfinished": len(run.metrics) if 0 < len(run.metrics) < config.epochs else None,
        "command": labels.command(config),
        "unsaid": ", ".join(recipes.unsaid(config)),
    }


def _of_others(run: ModelDirectory) -> dict[str, Any]:
    """What the template says of a model that somebody else trained."""
    origin: Any = run.model.origin
    threat = origin.threat_model
    return {
        "title": escaped(origin.name),
        "config": None,
        "origin": escaped(to_dict(origin)),
        "link": quote(origin.link, safe=":/?&=%#"),
        "source": quote(origin.source, safe=":/?&=%#"),
        "threat_model": threat,
        "eps": pixels(threat.eps, threat.norm) if threat else None,
        "fit": "",
    }


def _shown(found: Measured) -> dict[str, Any]:
    """What the template says of one results file."""
    shown = Record.from_dict(escaped(found.record.to_dict()))
    return {
        "record": shown,
        "table": labels.table(labels.rows(shown), labels.HEADERS, "github"),
        "corruptions": labels.table(labels.corruption_rows(shown.corruptions), labels.CORRUPTION_HEADERS, "github")
        if shown.corruptions
        else "",
        "sweep": labels.by_attack("eps", [(p["eps"], labels.accuracies(p["attacks"])) for p in shown.sweep], "github")
        if shown.sweep
        else "",
        "notes": labels.said(shown),
        "verdicts": found.verdicts.replace("`", "'"),
    }


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


def summary(directory: str | Path) -> dict[str, Any]:
    """What a list of models says of a directory: what it is, and its last checkpoint's accuracies.

    Args:
        directory: of a run or an imported model.

    Returns:
        "model", "architecture", "input_size", "num_classes", "dataset", "method" (of an imported model who trained it),
        "threat_model" (None where nothing was measured), an accuracy as a fraction by "ATTACK_acc", "n" (images, by
        attack), "notes" (what must be said beside them) and "weights_sha256" (by checkpoint).

    Raises:
        InputError: if it is neither, or damaged.
    """
    run = read_model(directory)
    last = [found.record for found in run.measured if found.checkpoint == "last"]
    alike = [record for record in last if _shared(record) == _shared(last[0])]
    attacks = {name: figures for record in reversed(alike) for name, figures in record.attacks.items()}
    origin: Any = run.model.origin
    dataset, method = (origin.dataset, f"of {origin.authors}") if origin else (None, None)
    if isinstance(run, RunDirectory):
        dataset, method = run.config.dataset, labels.method_name(run.config)
    return {
        "model": str(directory),
        "architecture": run.model.backbone,
        "input_size": run.model.pretrained_cfg["input_size"],
        "num_classes": run.model.num_classes,
        "dataset": dataset,
        "method": method,
        "threat_model": to_dict(alike[0].threat_model) if alike else None,
        **{f"{attack}_acc": figures["accuracy"] for attack, figures in attacks.items()},
        "n": {attack: figures["n"] for attack, figures in attacks.items()},
        "notes": list(dict.fromkeys(sentence for record in alike for sentence in labels.said(record))),
        "weights_sha256": run.digests,
    }


def _shared(record: Record) -> tuple[Any, ...]:
    """What accuracies must share to stand in one row: threat model, data set and split."""
    return record.threat_model, record.dataset, record.split


def _fit(model: ModelConfig, config: TrainConfig) -> str:
    """What the card's line gives `read_image` for a model whose pictures are cropped, not squeezed."""
    size = tuple(model.pretrained_cfg["input_size"][1:])
    return f", data.Fit({size}, 'center', {config.pictures.crop_pct:g}, 'bicubic')" if config.pictures.crop_pct else ""


def _folders(config: TrainConfig) -> list[str]:
    """What the command names by the last part of a path, which nobody else's machine has."""
    shown, known = public(config), {*DATASETS, "digits", "imagenet"}
    return [name for name in (shown.init_from, shown.dataset) if name and name not in known and "/" not in name]


def _extra(config: TrainConfig) -> str:
    """What the card says of images that shared every batch; "" where there were none."""
    if config.extra_data is None:
        return ""
    count = "" if config.extra_images is None else f", {config.extra_images:,} images"
    named = f"{config.extra_data}{count}, licence {config.extra_license or 'not stated'}"
    return f"{config.extra_share} of the {config.batch_size} images of every batch come from extra data: {named}."


def licence(model: ModelConfig) -> dict[str, Any]:
    """The licence that config.json names, in the Hub's words: that of the weights training began with; {} for none."""
    source = model.pretrained_cfg.get("license")
    if not source:  # it is the owner's to choose
        return {}
    if source in LICENCES:
        return {"license": source}
    named = isinstance(source, str) and re.fullmatch(r"[\w.-]+", source, re.ASCII)
    return {"license": "other"} | ({"license_name": source} if named else {})


def _metadata(name: str, run: ModelDirectory) -> ModelCardData:
    """The YAML head: one model-index entry per checkpoint and attack; those measured on other images say on how many."""
    entries = [
        EvalResult(
            task_type="image-classification",
            dataset_type=DATASETS.get(found.record.dataset, (found.record.dataset,))[0],
            dataset_name=found.record.dataset,
            dataset_split=found.record.split,
            metric_type="accuracy",
            metric_name=f"{labels.measured_name(attack, figures)} accuracy"
            + ("" if found.record.checkpoint == "last" else f" ({found.record.checkpoint} checkpoint)")
            + (f", {figures['n']} images" if found.folder else ""),
            metric_value=figures["accuracy"],
            metric_args={
                "attack": attack,
                **to_dict(found.record.threat_model),
                "steps": figures.get("steps"),
                "n": figures["n"],
            },
        )
        for found in run.measured
        for attack, figures in found.record.attacks.items()
    ]
    training_tags, trained_on = [], [run.model.origin.dataset] if run.model.origin else []
    if isinstance(run, RunDirectory):
        trained_on = [run.config.dataset, run.config.extra_data]
        training_tags += ["adversarial-training"] if run.config.method != "standard" else []
        training_tags += ["piat"] if run.config.interpolation.kind == "piat" else []
    return ModelCardData(
        library_name="timm",
        **licence(run.model),
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "adversarial-robustness", *training_tags],
        datasets=[DATASETS[name][0] for name in trained_on if name in DATASETS] or None,
        model_name=name.rpartition("/")[2],
        eval_results=entries or None,
    )
