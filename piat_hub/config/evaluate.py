"""What an evaluation measures, and where its figures go."""

from dataclasses import dataclass
from typing import Literal

from piat_hub.config.errors import InputError
from piat_hub.config.fields import Checked, duration, option
from piat_hub.config.train import WIDEST, ThreatModel

LISTED = "the images are those that"  # begins the note of figures whose images --files chose


@dataclass(frozen=True)
class EvalConfig(Checked):
    """What `evaluate` measures, and where the figures go.

    Raises:
        InputError: for a value out of its bounds, a budget that is none for its norm, a time that is none, a mean and
            std of different lengths or a std not above 0.
    """

    attacks: tuple[str, ...] = option(
        ("clean", "pgd20"),
        "any of clean, pgdN, apgdN, mimN, cwN, fmnN, malt, fast, aa, apgd-ce, apgd-t, fab-t, square, or your own as "
        "module:callable",
    )
    sweep_eps: tuple[float, ...] = option(
        (), "also measure the attacks at these budgets, such as 2/255 4/255 8/255", unit="pixels"
    )
    corruptions: str | None = option(
        None, "also measure common corruptions: the folder of NAME.npy and labels.npy, as CIFAR-10-C has them"
    )
    mean: tuple[float, ...] = option(
        (), "subtracted from the images, one number per channel, for a model that wants it"
    )
    std: tuple[float, ...] = option((), "then divided by, one number per channel")
    n: int | None = option(None, "the first n images of the split (default: all)", unit="images", least=1)
    files: str | None = option(None, "a text file: only the images whose file names it lists, in its order")
    dataset: str | None = option(None, "as in training (default: the data the model was trained for)")
    split: str = option("test", "which split to evaluate on")
    image_column: str | None = option(None, "the data set's image column (default: the model's, else by feature type)")
    label_column: str | None = option(None, "the data set's label column (default: the model's, else by feature type)")
    img_size: int | None = option(
        None,
        "resize images to this many pixels a side (default: as in training)",
        unit="pixels of the image",
        least=1,
        most=WIDEST,
    )
    norm: Literal["Linf", "L2", "L1"] | None = option(
        None, "norm of the perturbation (default: the model's, else Linf)"
    )
    eps: float | None = option(None, "perturbation budget (default: the model's, else 8/255)", unit="pixels", above=0)
    threat_models: tuple[str, ...] = option(
        (), "measure under each of these, and their union, worst over all: such as Linf:8/255 L2:0.5 L1:12"
    )
    step_size: float | None = option(None, "length of one attack step (default: eps/4)", unit="pixels", above=0)
    restarts: int = option(1, "independent tries of PGD, MIM and CW", least=1)
    search_precision: Literal["fp32", "bf16"] = option(
        "fp32", "bf16 attacks a twin in half precision; the model confirms in fp32 what is found"
    )
    checks: bool = option(False, "also check that the figures can be believed (gradient masking)")
    surrogate: str | None = option(
        None, "another MODEL (last weights, no --mean), whose adversarial examples the checks try on this one"
    )
    through: str | None = option(
        None, "module:callable, a part without gradient before MODEL; the checks take the gradient past it"
    )
    per_class: bool = option(False, "also print the accuracy of each class")
    time_budget: str | None = option(None, "stop cleanly after this long, e.g. 30m or 1h30m; go on with --resume")
    checkpoint: Literal["last", "best"] = option("last", "the run's last weights or its held-out best")
    batch_size: int | None = option(
        None, "images attacked at a time (default: 250 on a CPU, 1000 on a GPU)", unit="images", least=1
    )
    seed: int = option(0, "seeds the attacks' random starts", least=0)
    output: str | None = option(
        None, "directory for results.json and verdicts.npz (default: MODEL's own, else results/NAME)"
    )
    resume: bool = option(False, "go on with an evaluation that was stopped")
    threads: int | None = option(
        None, "CPU threads (default: OMP_NUM_THREADS, else this process's share of the cores)", least=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm is not None and self.eps is not None:
            self.threat_model()
        if self.threat_models:
            self.several()
        if self.time_budget:
            duration(self.time_budget)
        if len(self.mean) != len(self.std) or any(s <= 0 for s in self.std):
            raise InputError(
                f"mean {self.mean} and std {self.std} must be as many numbers each, std above 0; give one per channel"
            )
        if any(eps <= 0 for eps in self.sweep_eps):
            raise InputError(f"sweep-eps must be above 0, got {self.sweep_eps}; clean accuracy is measured anyway")

    def several(self) -> list[ThreatModel]:
        """The threat models of which the union is measured; [] where that is not asked for.

        Raises:
            InputError: for a text that names none, one that is named twice, or a budget beside them.
        """
        found = [ThreatModel.parse(text) for text in self.threat_models]
        if twice := [str(threat) for threat in found if found.count(threat) > 1]:
            raise InputError(f"{twice[0]} is twice among --threat-models; name each once")
        beside = ("norm", "eps", "step_size", "sweep_eps", "corruptions")
        if found and (given := [f"--{name.replace('_', '-')}" for name in beside if getattr(self, name)]):
            raise InputError(
                f"{given[0]} is of one threat model, and --threat-models names its own; leave out one of them"
            )
        return found

    def threat_model(self, default: ThreatModel | None = None) -> ThreatModel:
        """The threat model to evaluate under: what was asked for, else `default`, else Linf 8/255.

        Raises:
            InputError: for a norm other than that without its own eps, and for an eps that is none for its norm.
        """
        base = default or ThreatModel()
        if self.norm not in (None, base.norm) and self.eps is None:
            raise InputError(f"norm {self.norm} needs a budget of its own, {base} says nothing of it; give --eps too")
        return ThreatModel(norm=self.norm or base.norm, eps=base.eps if self.eps is None else self.eps)
