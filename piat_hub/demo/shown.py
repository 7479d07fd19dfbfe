"""What the page shows: models, the test images they share, and anyone's pictures as each of them takes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from piat_hub import data
from piat_hub.config import EvalConfig, InputError, ThreatModel
from piat_hub.evaluation.loop import trained_against
from piat_hub.evaluation.model import fit_of, label_names, load_model
from piat_hub.evaluation.request import evaluation_data
from piat_hub.evaluation.verdict import class_count
from piat_hub.machine import device_of

DIGITS = tuple(str(Path(__file__).with_name("models") / name) for name in ("ordinary", "robust"))
TESTS = 20  # test images that are offered
WIDEST = 10_000  # pixels a side of a picture


@dataclass(frozen=True)
class Shown:
    """A model as the page shows it.

    Attributes:
        spec: MODEL as it was given.
        name: what the page calls it.
        model: in eval mode and fp32.
        threat_model: what it was trained against, if it says so.
        shape: (C, H, W) of its images.
        tests: the first images of its test split, or why there are none.
    """

    spec: str
    name: str
    model: nn.Module
    threat_model: ThreatModel | None
    shape: tuple[int, int, int]
    tests: data.Split | str

    @property
    def label_names(self) -> tuple[str, ...]:
        """One a class; () for a model without names."""
        known = self.tests.label_names if isinstance(self.tests, data.Split) else ()
        return label_names(self.model) or known

    def sees(self, picture: int | str) -> tuple[Tensor, Tensor | None]:
        """(image (1, C, H, W) in [0, 1], its class number (1,) if it is known), on the model's device.

        Args:
            picture: the number of a test image, or the path of a picture's file.

        Raises:
            InputError: if the file is no picture, or one that is too large.
        """
        device = device_of(self.model)
        if isinstance(picture, str):
            fit = fit_of(self.model, mixed=True)
            image = data.read_image(picture, self.shape, fit, Path(picture).name, WIDEST)
            return data.to_unit(image[None]).to(device), None
        assert isinstance(self.tests, data.Split)
        one = self.tests[picture : picture + 1]
        return data.to_unit(one.images[:]).to(device), one.labels.to(device)


def load(specs: Sequence[str], dataset: str | None = None) -> list[Shown]:
    """The models of a page.

    Args:
        specs: MODELs as `load_model` takes them.
        dataset: whose test images are offered, as `data.load` takes it; by default what the models were trained for.

    Raises:
        InputError: for a model or a data set that cannot be had, models of other data, or one that does not say what
            images it takes.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = [load_model(spec)[:2] for spec in specs]
    models, names = [model.to(device, torch.float32) for model, _ in loaded], [name for _, name in loaded]
    tests, shown = shared_tests(specs, models, dataset), list[Shown]()
    for spec, model, name, split in zip(specs, models, names, tests, strict=True):
        shape = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
        if not shape:
            if isinstance(split, str):
                raise InputError(f"{spec} does not say what images it takes; name its data with --dataset")
            shape = split.shape
        called = name if names.count(name) == 1 else spec
        shown.append(Shown(spec, called, model, trained_against(model), tuple(shape), split))
    return shown


def shared_tests(specs: Sequence[str], models: Sequence[nn.Module], dataset: str | None) -> Sequence[data.Split | str]:
    """Some test images, as each model takes them; or for each why there are none.

    Args:
        specs: MODELs as they were given.
        models: the same, loaded.
        dataset: as in `load`; only without it there may be none.

    Raises:
        InputError: for a data set that cannot be had, or is not for these models; and for models of other data.
    """
    asked = EvalConfig(dataset=dataset)
    try:
        wholes = [evaluation_data(spec, asked, model) for spec, model in zip(specs, models, strict=True)]
        splits = [whole.samples(min(TESTS, len(whole))) for whole in wholes]
        for model, split in zip(models, splits, strict=True):
            class_count(model, split)
    except InputError as error:
        if dataset:
            raise
        return [str(error)] * len(models)
    shared = [(split.name, [split.label_names[label] for label in split.labels]) for split in splits]
    for spec, split, mine in zip(specs, splits, shared, strict=True):
        if mine != shared[0]:
            raise InputError(
                f"{specs[0]} is for {splits[0].name} and {spec} is for {split.name}: they share no test images; "
                "name some for both with --dataset, or open a page for each"
            )
    return splits
