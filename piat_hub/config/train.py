"""What decides what a run learns."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from piat_hub.config.errors import InputError
from piat_hub.config.fields import Checked, number, option, pixels
from piat_hub.config.optimizer import OptimizerConfig, ScheduleConfig
from piat_hub.config.pictures import PictureConfig

TRACKED = 1000  # test images that `track_test` measures at the end of each epoch


WIDEST = 2048  # pixels a side of what may be called an image

COLD = ("score",)  # methods that clean epochs spoil: by default they have none

DATASETS = {  # alias -> (Hub id, configuration, image column, label column)
    "cifar10": ("uoft-cs/cifar10", None, "img", "label"),
    "cifar100": ("uoft-cs/cifar100", None, "img", "fine_label"),
    "svhn": ("ufldl-stanford/svhn", "cropped_digits", "image", "label"),
}


def local_name(path: str | Path) -> str:
    """What a folder of data is called on results and cards: its own name, but never that of an alias."""
    name = Path(path).resolve().name
    return f"local-{name}" if name in (*DATASETS, "digits") else name


@dataclass(frozen=True)
class ThreatModel(Checked):
    """What the adversary may do: any image within distance eps of the clean one. Part of every reported number."""

    norm: Literal["Linf", "L2", "L1"] = option("Linf", "norm of the perturbation; training takes Linf and L2")
    eps: float = option(8 / 255, "perturbation budget, for images in [0, 1]", unit="pixels", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm == "Linf" and self.eps > 1:
            raise InputError(f"eps must be in (0, 1] for Linf, got {self.eps}; images lie in [0, 1]: 8 levels is 8/255")

    def __str__(self) -> str:
        return f"{self.norm} eps {pixels(self.eps, self.norm)}"

    @property
    def folder(self) -> str:
        """The name of its results' folder beside other threat models': 'Linf-8-255', 'L1-12.0'."""
        return f"{self.norm}-{pixels(self.eps, self.norm)}".replace("/", "-")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The threat model that 'Linf:8/255' or 'L1:12' names.

        Raises:
            InputError: for any other text, norm or eps.
        """
        norm, colon, eps = text.partition(":")
        if not colon:
            raise InputError(
                f"threat model {text!r:.80} must be NORM:EPS, such as Linf:8/255, L2:0.5 or L1:12; write it so"
            )
        return cls(norm, number(eps))  # type: ignore[arg-type]  # checked

    def check_step(self, step_size: float) -> None:
        """Refuse a step that is none for this budget.

        Args:
            step_size: length of an attack step, in pixel units.

        Raises:
            InputError: unless 0 < step_size <= 2 eps.
        """
        if not 0 < step_size <= 2 * self.eps:
            most, got = (pixels(length, self.norm) for length in (2 * self.eps, step_size))
            raise InputError(f"step-size must be in (0, 2 eps] = (0, {most}], got {got}; eps/4 is usual")


@dataclass(frozen=True)
class AttackConfig(Checked):
    """The attack that training crafts its adversarial examples with."""

    steps: int = option(10, "attack iterations", least=1)
    step_size: float | None = option(None, "length of one step of PGD (default: eps/4)", unit="pixels", above=0)
    crafting: Literal["pgd", "apgd"] = option(
        "pgd", "the attack: PGD, or APGD, which takes 2 or 3 steps, from 2 eps on, and keeps the best point"
    )


@dataclass(frozen=True)
class MixingConfig(Checked):
    """Soft targets: smoothed labels, and batches whose images and labels are blended (timm's Mixup)."""

    smoothing: float = option(0.0, "label smoothing: the share of a label that all classes get alike", least=0, below=1)
    mixup: float = option(
        0.0, "blend pairs of images, labels too, by a share from Beta(a, a) of this a; 0: off", least=0
    )
    cutmix: float = option(0.0, "paste a rectangle of one image into another, likewise; with --mixup in turn", least=0)

    @property
    def blends(self) -> bool:
        """Whether an image may hold parts of two."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True)
class InterpolationConfig(Checked):
    """Epoch-end parameter interpolation, lam = g(n) = (a n + b) / (c n + d) (He et al. 2023, Eqs. 3-4)."""

    kind: Literal["none", "piat", "constant"] = option(
        "piat", "write lam theta' + (1 - lam) theta back after each epoch", flag="interpolation"
    )
    constant: float = option(0.9, "lam where the interpolation is constant", least=0, below=1)
    a: float = option(1.0, "numerator slope of g(n)", least=0)
    b: float = option(1.0, "numerator offset of g(n)", least=0)
    c: float = option(1.0, "denominator slope of g(n), at least a", least=0)
    d: float = option(10.0, "denominator offset of g(n), at least b", least=0)
    start_epoch: int = option(1, "the epoch that counts as n = 1; before it lam = 0", unit="epoch", least=1)
    bn: Literal["interpolate", "copy", "recalibrate"] = option(
        "interpolate", "BatchNorm statistics at an interpolation: as the weights, untouched, or measured again"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_law(self.a, self.b, self.c, self.d)


def check_law(a: float, b: float, c: float, d: float) -> None:
    """Refuse a law g(n) = (a n + b) / (c n + d) that does not lie in [0, 1] for every n >= 1 (He et al. 2023, Eq. 4).

    Args:
        a: slope of the numerator.
        b: offset of the numerator.
        c: slope of the denominator, at least a.
        d: offset of the denominator, at least b.

    Raises:
        InputError: where a or b is negative, c < a, d < b, c and d are both 0, or lam would always be 1.
    """
    if not (0 <= a <= c and 0 <= b <= d and c + d > 0):
        raise InputError(
            f"g(n) = (a n + b)/(c n + d) needs c >= a >= 0 and d >= b >= 0, got {a=:g} {b=:g} {c=:g} {d=:g}"
        )
    if (a, b) == (c, d):
        raise InputError(f"g(n) with {a=:g} {b=:g} {c=:g} {d=:g} is 1: every epoch would be undone; raise c or d")


@dataclass(frozen=True)
class TrainConfig(Checked):
    """Everything that decides what a run learns; recorded whole in config.json and compared on resume.

    `method_args` holds the method's own fields by name; `interpolation`, `threat_model` and `attack` have fields of
    their own.

    Raises:
        InputError: for a value out of its bounds, a step_size above 2 eps, no adversarial epoch, or lr_knots that do
            not rise to share 1.
    """

    recipe: str = option("", "name of the recipe this started from", flag=None)
    backbone: str = option("cifar_resnet18", "timm model name; built for the data's classes and channels")
    drop_path: float = option(
        0.0, "stochastic depth: share of residual branches left out in training", least=0, below=1
    )
    bn_momentum: float | None = option(
        None,
        "weight of a batch in BatchNorm's running statistics (default: the backbone's, mostly 0.1)",
        above=0,
        most=1,
    )
    init_from: str | None = option(
        None,
        "start from a trained MODEL of this backbone, or imagenet for timm's own weights; other classes, a new head",
    )
    dataset: str = option(
        "cifar10", "digits, cifar10, cifar100, svhn, a Hub id, or a directory that load_dataset reads"
    )
    image_column: str | None = option(None, "the data set's image column (default: found by its feature type)")
    label_column: str | None = option(None, "the data set's label column (default: found by its feature type)")
    train_size: int | None = option(None, "use only this many training images", unit="images", least=1)
    holdout: int | None = option(
        None,
        "training images held out to choose the best epoch (default: a tenth, at most 1000); 0: last only",
        unit="images",
        least=0,
    )
    stream: bool = option(
        False, "read training images through, shard by shard, where they fit no disk; wants --epoch-size"
    )
    extra_data: str | None = option(
        None, "generated or pseudo-labelled images that share every batch: FILE.npz, a directory or a Hub id"
    )
    extra_fraction: float = option(0.7, "share of every batch that comes from --extra-data", above=0, below=1)
    extra_license: str | None = option(None, "licence of --extra-data, which the card names")
    extra_images: int | None = option(None, "images of the extra data, counted when training begins", flag=None)
    epoch_size: int | None = option(
        None,
        "images of an epoch of --stream, or with --extra-data (default there: the real ones)",
        unit="images",
        least=1,
    )
    img_size: int | None = option(
        None,
        "pixels a side that every image gets (default: as they are)",
        unit="pixels of the image",
        least=1,
        most=WIDEST,
    )
    pictures: PictureConfig = field(default_factory=PictureConfig, metadata={"prefix": ""})
    crop_pad: int = option(4, "random crop after padding each side by this much", unit="pixels of the image", least=0)
    crop_shift: int = option(
        0,
        "in place of that crop: cut up to this many rows and columns off, put the rest back anywhere (IDBH: 10 on CIFAR-10)",
        unit="pixels of the image",
        least=0,
    )
    flip: bool = option(True, "random horizontal flip")
    cutout: int = option(
        0, "a grey square of this side somewhere in each image (16 on CIFAR-10)", unit="pixels of the image", least=0
    )
    mixing: MixingConfig = field(default_factory=MixingConfig, metadata={"prefix": ""})
    method: str = option("nmse", "outer loss; its own fields are flags --method.FIELD")
    method_args: Mapping[str, Any] = field(default_factory=dict, metadata={"doc": "method fields", "flag": None})
    interpolation: InterpolationConfig = field(
        default_factory=InterpolationConfig, metadata={"prefix": "interpolation."}
    )
    ema: float | None = option(
        None, "also average the weights after every step with this decay; the average is evaluated", least=0, below=1
    )
    ema_start: float = option(0.0, "share of the run before which that average is the model itself", least=0, below=1)
    ema_bn: Literal["average", "copy"] = option(
        "average", "BatchNorm statistics of that average: as weights, or the model's"
    )
    swa: float | None = option(
        None, "also average epoch-end weights from this share of the run; the average is evaluated", least=0, below=1
    )
    awp: float | None = option(
        None, "adversarial weight perturbation of this relative size: 0.01 for AT, 0.005 for TRADES", above=0, below=1
    )
    threat_model: ThreatModel = field(default_factory=ThreatModel, metadata={"prefix": ""})
    attack: AttackConfig = field(default_factory=AttackConfig, metadata={"prefix": ""})
    epochs: int = option(120, "passes over the training images", unit="epochs", least=1)
    clean_epochs: int | None = option(
        None, "clean warm-up (default: the recipe's share of epochs, none for score)", unit="epochs", least=0
    )
    clean_share: float = option(1 / 12, "clean warm-up as a share of epochs", flag=None, least=0, below=1)
    batch_size: int = option(128, "global batch, divided by processes and accumulation", unit="images", least=1)
    accumulation: int = option(1, "micro-batches whose gradients add up to one step", least=1)
    lr: float = option(0.01, "learning rate: the highest of its schedule", above=0)
    lr_knots: tuple[tuple[float, float], ...] = option(
        ((0.5, 1.0), (0.75, 0.1), (1.0, 0.01)), "(share of the run, factor of lr), linear between", flag=None
    )
    momentum: float = option(0.9, "momentum, of optimizers that have it", least=0, below=1)
    weight_decay: float = option(3.5e-3, "weight decay, on all parameters that --undecayed does not leave out", least=0)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig, metadata={"prefix": ""})
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig, metadata={"prefix": ""})
    seed: int = option(0, "seeds initialisation, order, augmentation and attack starts", least=0)
    mixed_precision: Literal["no", "bf16", "fp16"] = option("no", "autocast precision of training; checks stay fp32")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm == "L1":
            raise InputError(
                "training attacks under Linf or L2, with its checks by PGD, not under L1; "
                "craft in your own loop: piat_hub.attacks.apgd(model, x, y, 12, 10, norm='L1')"
            )
        if self.attack.crafting == "pgd":
            self.threat_model.check_step(self.step_size)
        if self.warmup >= self.epochs:
            raise InputError(
                f"{self.epochs} epochs with {self.warmup} clean ones leave no adversarial epoch; lower --clean-epochs"
            )
        rise, eps_rise = self.schedule.rise(self.epochs), self.schedule.eps_rise(self.epochs)
        if rise >= 1 or self.warmup / self.epochs + eps_rise >= 1:
            rises = [f"{share * self.epochs:g}" for share in (rise, eps_rise)]
            raise InputError(
                f"{self.epochs} epochs leave none after {rises[0]} of --warmup-epochs, or after {self.warmup} of --clean-epochs "
                f"and {rises[1]} of --eps-warmup-epochs; lower them"
            )
        for name, low in (("warmup-lr", self.schedule.warmup_lr if rise else 0), ("min-lr", self.schedule.min_lr)):
            if low > self.lr:
                raise InputError(f"{name} {low:g} is above lr {self.lr:g}, the highest of the schedule; lower it")
        if self.ema is None and (self.ema_start or self.ema_bn != "average"):
            raise InputError("--ema-start and --ema-bn go with --ema; give its decay too, 0.999 is usual")
        if self.stream and self.epoch_size is None:
            raise InputError("--stream and --epoch-size go together: say how many images of the stream are an epoch")
        if self.epoch_size and not self.stream and self.extra_data is None:
            raise InputError("--epoch-size goes with --stream or --extra-data; give one of them, or leave it out")
        if self.stream and (self.train_size or self.pictures.skip_broken or self.dataset == "digits"):
            raise InputError("--stream reads images through, and not digits; leave out --train-size and --skip-broken")
        if self.epoch_size and self.batch_size > self.epoch_size:
            raise InputError(f"epoch-size {self.epoch_size} is less than one batch of {self.batch_size}; raise it")
        if self.extra_data is None and (self.extra_fraction != 0.7 or self.extra_license):
            raise InputError("--extra-fraction and --extra-license go with --extra-data; give it too")
        if self.extra_data is not None and self.stream:
            raise InputError(
                "--extra-data shares batches with images that are held; leave out --stream, or --extra-data"
            )
        if self.extra_data is not None and not 0 < self.extra_share < self.batch_size:
            raise InputError(
                f"extra-fraction {self.extra_fraction} is {self.extra_share} images of a batch of {self.batch_size}: a batch "
                "needs some of both; change --extra-fraction or --batch-size"
            )
        if self.pictures.augment == "pad" and (self.pictures.aa or self.pictures.reprob):
            raise InputError("--aa and --reprob change pictures that are cut anew; give --augment rrc, not pad")
        if not isinstance(self.method_args, Mapping):
            raise InputError(f"method_args must be an object of named values, got {self.method_args!r:.80}")
        knots: Any = self.lr_knots if isinstance(self.lr_knots, tuple) else ()
        pairs = all(isinstance(k, tuple) and len(k) == 2 and {type(v) for v in k} <= {int, float} for k in knots)
        shares = [share for share, _ in knots] if pairs else []
        if (
            shares != sorted(shares)
            or not shares
            or shares[-1] != 1
            or not all(0 <= factor < math.inf for _, factor in knots)
        ):
            raise InputError(
                f"lr_knots must be (share, factor >= 0) of rising shares that end at 1, got {self.lr_knots!r:.80}"
            )

    @property
    def norm(self) -> str:
        """Of the threat model."""
        return self.threat_model.norm

    @property
    def step_size(self) -> float:
        """Length of one step of PGD, in pixel units: the attack's, else eps/4, which is the paper's 2/255 of 8/255."""
        return self.threat_model.eps / 4 if self.attack.step_size is None else self.attack.step_size

    @property
    def least_said(self) -> Self:
        """The same configuration without a step size that is eps/4, as it is unless said."""
        if self.attack.step_size != self.threat_model.eps / 4:
            return self
        return dataclasses.replace(self, attack=dataclasses.replace(self.attack, step_size=None))

    @property
    def extra_share(self) -> int:
        """Images of every batch that come from the extra data."""
        return 0 if self.extra_data is None else round(self.extra_fraction * self.batch_size)

    @property
    def warmup(self) -> int:
        """Clean epochs before the adversarial ones: `clean_epochs`, or the recipe's share of this run, or none if `COLD`."""
        share = 0.0 if self.method in COLD else self.clean_share
        return round(share * self.epochs) if self.clean_epochs is None else self.clean_epochs

    @property
    def swa_start(self) -> int:
        """The first epoch in SWA's mean."""
        return math.floor(round((self.swa or 0) * self.epochs, 9)) + 1  # 0.57 of 100 is a little less than 57


def as_decided(config: TrainConfig, run: TrainConfig) -> TrainConfig:
    """The configuration with a step's length, and with what its data decide, where it says nothing, taken from a run that began.

    Args:
        config: as asked for.
        run: as recorded.
    """
    holdout = run.holdout if config.holdout is None else config.holdout
    found_images = run.extra_images if config.extra_images is None else config.extra_images
    asked, found = config.pictures, run.pictures
    decided = dataclasses.replace(
        asked, augment=asked.augment or found.augment, crop_pct=asked.crop_pct or found.crop_pct
    )
    attack = dataclasses.replace(config.attack, step_size=config.step_size)
    return dataclasses.replace(config, holdout=holdout, extra_images=found_images, pictures=decided, attack=attack)


def public(config: TrainConfig) -> TrainConfig:
    """The configuration with paths of this machine cut to their last part. Training makes them absolute, so they are known."""
    named = {key: value for key in ("dataset", "extra_data", "init_from") if (value := getattr(config, key))}
    short: dict[str, Any] = {
        key: Path(value).name if key == "init_from" else local_name(value)
        for key, value in named.items()
        if Path(value).is_absolute()
    }
    return dataclasses.replace(config, **short)
