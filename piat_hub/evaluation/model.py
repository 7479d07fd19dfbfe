"""MODEL as the commands take it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from piat_hub import data
from piat_hub.backbones.normalization import Normalize
from piat_hub.config import InputError, TrainConfig, from_dict
from piat_hub.evaluation.own_code import Front, imported, raised
from piat_hub.evaluation.verdict import logits_of, verdict_mode
from piat_hub.hub.load import from_pretrained, from_timm
from piat_hub.records import tensors

TIMMS = ("hf-hub", "local-dir")  # what timm writes before a colon


def is_code(spec: str) -> bool:
    """MODEL is module:callable."""
    return (
        bool(re.fullmatch(r"[\w.]+:[\w.]+", spec)) and spec.partition(":")[0] not in TIMMS and not Path(spec).is_dir()
    )


def weights_digest(model: nn.Module) -> str:
    """The sha256 of the weights file the model was loaded from; for a model from code, of its tensors."""
    return str(getattr(model, "weights_sha256", None) or tensors.digest(model.state_dict()))


def label_names(model: nn.Module) -> tuple[str, ...]:
    """The names of a model's classes, in the order of its logits; () where it says none.

    Args:
        model: with `label_names`, as `from_pretrained` gives it, or without.
    """
    names = getattr(model, "label_names", ())
    named = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return tuple(names) if named else ()


def load_model(
    spec: str,
    checkpoint: str = "last",
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    through: str | None = None,
) -> tuple[nn.Module, str, Path | None]:
    """(model in eval mode, a name for it, its run directory if it is one) for MODEL as the commands take it.

    Args:
        spec: a run or model directory, a Hub id (with @revision), "hf-hub:ORG/NAME" or "local-dir:DIRECTORY" for timm's
            own, which gets its own normalisation in front, or "module:callable" for anyone's nn.Module, importable from
            the current directory.
        checkpoint: "last" or "best", for models that have both.
        mean: subtracted from images in [0, 1], one number a channel; nothing if empty.
        std: divided by after that, one number a channel; used only with mean.
        through: "module:callable", what the images go through before all that.

    Returns:
        The model on the CPU unless code put it elsewhere; its name for a folder of results; and the directory where it
        holds metrics or results, else None.

    Raises:
        InputError: if there is no such model.
    """
    path, run = Path(spec), None
    source, _, of_timm = spec.partition(":")
    if not path.is_dir() and source in TIMMS:
        _one_checkpoint(spec, checkpoint)
        name = of_timm.replace("/", "-") if source == "hf-hub" else Path(of_timm).resolve().name
        model = from_timm(spec)
    elif is_code(spec):
        _one_checkpoint(spec, checkpoint)
        model, name = _from_code(spec), re.sub(r"[^\w.]", "-", spec)
    elif path.is_file():
        raise InputError(f"{spec} is a file; MODEL is a run directory, a model directory, a Hub id or module:callable")
    else:
        model = from_pretrained(spec, checkpoint=checkpoint)
        run = path if (path / "metrics.jsonl").exists() or (path / "results.json").exists() else None
        name = path.resolve().name if path.is_dir() else spec.replace("/", "-")
    fronts: list[nn.Module] = [Normalize(torch.tensor(mean), torch.tensor(std))] if mean else []
    if through:
        part = imported(through, "front part")
        if not callable(part):
            raise InputError(f"{through} is a {type(part).__name__}; a front part is a function or nn.Module of images")
        fronts.insert(0, Front(part() if isinstance(part, type) else part, through))
    if fronts:
        carried = ("piat", "origin", "weights_sha256", "label_names", "pretrained_cfg")
        known = {key: getattr(model, key) for key in carried if hasattr(model, key)}
        model = nn.Sequential(*fronts, model).eval()
        for key, value in known.items():
            setattr(model, key, value)
    return model, name, run


def fit_of(model: nn.Module, mixed: bool, img_size: int | None = None) -> data.Fit | None:
    """How images become the model's: as its training decided, and else for pictures of several sizes as timm's config says.

    Args:
        model: with `piat` or `pretrained_cfg`, as `load_model` gives it, or without.
        mixed: the pictures differ in size.
        img_size: pixels a side that they are to have, in place of the model's own.

    Returns:
        None where images are to be taken as they are.
    """
    side, piat = (img_size, img_size) if img_size else None, getattr(model, "piat", None)
    own = data.Fit.of_timm(getattr(model, "pretrained_cfg", None) or {})
    if piat:
        trained = from_dict(TrainConfig, piat)
        size = side or ((trained.img_size,) * 2 if trained.img_size else None)
        crop_pct = trained.pictures.crop_pct
        size = size or (own.size if own and crop_pct else None)
        return data.Fit.trained(size, crop_pct) if size else None
    if mixed and own:
        return replace(own, size=side or own.size)
    return data.Fit(side) if side else None


def images_for(
    model: nn.Module,
    dataset: str,
    split: str,
    image_column: str | None = None,
    label_column: str | None = None,
    img_size: int | None = None,
    files: str | None = None,
) -> data.Split:
    """A split as a model takes it: in its size, cropped or squeezed as it was trained, labels numbered as its classes.

    Args:
        model: as `load_model` gives it.
        dataset: as `data.load` takes it, and so are the columns.
        split: "test", say.
        image_column: by default found.
        label_column: by default found.
        img_size: pixels a side, in place of the model's own.
        files: a text file that names the images to take.

    Raises:
        InputError: where it has other classes, or `data.load` refuses.
    """
    found = data.load_encoded(dataset, split, image_column, label_column)
    found = data.listed(found, files) if files else found
    mixed = isinstance(found.images, data.Encoded) and found.images.mixed
    sized = data.of_one_size(found, fit=fit_of(model, mixed, img_size))
    known = getattr(model, "piat", None) or getattr(model, "origin", None)  # else timm's config may name other channels
    facts = (known and getattr(model, "pretrained_cfg", None)) or {}
    channels = facts.get("input_size", sized.shape)[0]
    if (channels, sized.shape[0]) == (3, 1):
        note = f"{sized.name}'s {split} split is all grey; the model, which takes colour, sees each picture in three equal channels"
        sized = replace(sized.as_rgb(), notes=(*sized.notes, note))
    return data.numbered_as(sized, label_names(model))


def _one_checkpoint(spec: str, checkpoint: str) -> None:
    if checkpoint != "last":
        raise InputError(f"{spec} is one model, without a {checkpoint} checkpoint; leave out --checkpoint")


def _from_code(spec: str) -> nn.Module:
    """The nn.Module, or what the factory returns, at module:callable."""
    found = imported(spec, "model")
    try:
        model = found if isinstance(found, nn.Module) else found()
    except TypeError as error:
        raise InputError(f"{spec} is no model and cannot be called without arguments ({error}); wrap it") from error
    except InputError:
        raise
    except Exception as error:  # anyone's code
        raise InputError(f"{spec} raised {raised(error)}; mend it") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{spec} gives a {type(model).__name__}, not an nn.Module; point it at a model or its factory")
    return model.eval()


def predict(
    spec: str, images: Sequence[str], checkpoint: str = "last"
) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """(file, classes with their probabilities, likeliest first) for image files, brought to the model's size as `fit_of` says.

    Args:
        spec: MODEL as `load_model` takes it.
        images: paths of image files, or of folders of them.
        checkpoint: "last" or "best".

    Yields:
        The file's path, and (class name, probability in [0, 1]) for every class; a model without label names has
        numbers.

    Raises:
        InputError: for a model without a known input size, or a file that is no image, or a folder of none.
    """
    model = load_model(spec, checkpoint)[0]
    shape = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    if not shape:
        raise InputError(f"{spec} does not say what images it takes; give a model that piat_hub saved")
    if shape[0] not in (1, 3):
        raise InputError(f"{spec} takes images of {shape[0]} channels; pictures are grey or RGB, so it must be 1 or 3")
    fit = fit_of(model, mixed=True)
    files = [file for image in images for file in data.pictures_at(image)]
    broken: list[InputError] = []
    for image in files:
        try:
            picture = data.read_image(image, shape, fit)
        except InputError as error:
            broken.append(error)
            continue
        with verdict_mode(model) as exact:
            again = "its config.json and its weights may not belong together"
            logits = logits_of(exact, data.to_unit(picture[None]), f"images of {'x'.join(map(str, shape))}", again)
        if not logits.isfinite().all():
            raise InputError(f"{spec} gives NaN or Inf for {image}, which is no answer; its weights may be damaged")
        probabilities = logits.softmax(1)[0].tolist()
        names = label_names(model) or [str(k) for k in range(len(probabilities))]
        yield image, sorted(zip(names, probabilities, strict=True), key=lambda pair: -pair[1])
    if broken:
        count = f"{len(broken)} of {len(files)} files are missing above; " if len(files) > 1 else ""
        raise InputError(f"{count}{broken[0]}")
