"""Name -> TrainConfig. A recipe is one function; its docstring says command, source, expected accuracy, time and hardware.

The paper's rows: He et al. 2023 (PIAT), Tables 1-2 for the accuracies and Appendix A for the hyper-parameters.
"""

import dataclasses
from collections.abc import Callable

from piat_hub.config.errors import lookup
from piat_hub.config.fields import flag, flags
from piat_hub.config.optimizer import OptimizerConfig, ScheduleConfig
from piat_hub.config.pictures import PictureConfig
from piat_hub.config.train import AttackConfig, InterpolationConfig, MixingConfig, ThreatModel, TrainConfig

RECIPES: dict[str, Callable[[], TrainConfig]] = {}


def recipe(make: Callable[[], TrainConfig]) -> Callable[[], TrainConfig]:
    """Decorator: register a recipe under its function's name, with dashes."""
    RECIPES[make.__name__.replace("_", "-")] = make
    return make


def words(config: TrainConfig) -> list[str]:
    """What follows `train` for this configuration: its recipe, and the flags of what differs from that."""
    recipe = config.recipe if config.recipe in RECIPES else "resnet18-cifar10"  # whose fields have all their defaults
    if config.step_size == config.threat_model.eps / 4:
        config = dataclasses.replace(config, attack=dataclasses.replace(config.attack, step_size=None))
    fields = [word for name, value in config.method_args.items() for word in flag(f"method.{name}", str(value))]
    return [recipe, *flags(config, get(recipe)), *fields]


def get(name: str) -> TrainConfig:
    """The recipe's configuration.

    Raises:
        InputError: if there is none of this name, with the nearest one.
    """
    return lookup("recipe", name, RECIPES)()


def names() -> tuple[str, ...]:
    """All recipes."""
    return tuple(RECIPES)


def described() -> str:
    """All recipes, a line each."""
    width = max(map(len, RECIPES))
    lines = [f"  {name:{width}} {(make.__doc__ or '').splitlines()[0]}" for name, make in RECIPES.items()]
    return "\n".join(["Recipes:", *lines])


@recipe
def digits() -> TrainConfig:
    """Handwritten 8x8 digits (scikit-learn's, embedded): PIAT+NMSE from start to end in a minute or two.

    Command: accelerate launch train.py
    Source: our own; eps 0.15 leaves a standard model little, so robustness is a real question.
    Expected: docs/methods.md, measured. Time: a minute or two. Hardware: two CPU cores.
    """
    return TrainConfig(
        recipe="digits",
        backbone="cifar_resnet8",
        dataset="digits",
        holdout=150,
        crop_pad=1,
        flip=False,
        epochs=80,
        batch_size=64,
        lr=0.1,
        weight_decay=5e-4,
        threat_model=ThreatModel(eps=0.15),
    )


@recipe
def resnet18_cifar10() -> TrainConfig:
    """ResNet-18 on CIFAR-10 with PIAT+NMSE.

    Command: accelerate launch train.py resnet18-cifar10
    Source: He et al. 2023, Table 1, row PIAT+NMSE. Published: clean 80.76 %, PGD-20 53.54 %, AutoAttack 48.80 %.
    Time: not measured here. Hardware: one GPU.
    """
    return TrainConfig(recipe="resnet18-cifar10")


@recipe
def resnet18_cifar100() -> TrainConfig:
    """ResNet-18 on CIFAR-100 with PIAT+NMSE.

    Command: accelerate launch train.py resnet18-cifar100
    Source: He et al. 2023, Table 1, row PIAT+NMSE. Published: clean 54.34 %, PGD-20 31.11 %, AutoAttack 25.79 %.
    Time: not measured here. Hardware: one GPU.
    """
    return TrainConfig(recipe="resnet18-cifar100", dataset="cifar100")


@recipe
def resnet18_svhn() -> TrainConfig:
    """ResNet-18 on SVHN (cropped digits, no flip) with PIAT+NMSE.

    Command: accelerate launch train.py resnet18-svhn
    Source: He et al. 2023, Table 1, row PIAT+NMSE. Published: clean 91.70 %, PGD-20 61.21 %, AutoAttack 51.29 %.
    Time: not measured here. Hardware: one GPU.
    """
    return TrainConfig(recipe="resnet18-svhn", dataset="svhn", flip=False)


def _wrn_32_10(recipe: str, dataset: str) -> TrainConfig:
    """Appendix A for WRN-32-10; the knots at epochs 90, 135 and 180 are the default's shares."""
    return TrainConfig(
        recipe=recipe,
        backbone="cifar_wrn_32_10",
        dataset=dataset,
        epochs=180,
        clean_share=1 / 18,
        lr=0.1,
        weight_decay=7e-4,
    )


@recipe
def wrn_32_10_cifar10() -> TrainConfig:
    """WRN-32-10 (Madry's count: 46,160,474 parameters) on CIFAR-10 with PIAT+NMSE.

    Command: accelerate launch train.py wrn-32-10-cifar10
    Source: He et al. 2023, Table 2, row PIAT+NMSE. Published: clean 85.04 %, PGD-20 58.04 %, AutoAttack 53.83 %.
    Time: not measured here. Hardware: eight GPUs, or one and patience.
    """
    return _wrn_32_10("wrn-32-10-cifar10", "cifar10")


@recipe
def wrn_32_10_cifar100() -> TrainConfig:
    """WRN-32-10 on CIFAR-100 with PIAT+NMSE.

    Command: accelerate launch train.py wrn-32-10-cifar100
    Source: He et al. 2023, Table 2, row PIAT+NMSE. Published: clean 61.04 %, PGD-20 35.15 %, AutoAttack 30.07 %.
    Time: not measured here. Hardware: eight GPUs, or one and patience.
    """
    return _wrn_32_10("wrn-32-10-cifar100", "cifar100")


@recipe
def preact_resnet18_cifar10_fast() -> TrainConfig:
    """PreActResNet-18 on CIFAR-10 with N-FGSM, one attack step a batch and 30 epochs of one cycle.

    Command: accelerate launch train.py preact-resnet18-cifar10-fast
    Source: de Jorge et al. 2022 (NeurIPS) and their code: lr from 0 to .2 and back to 0, batch 128, weight decay 5e-4;
    Wong et al. 2020 (ICLR) take 15 epochs of the same cycle: --method fgsm_rs --epochs 15.
    Time: not measured here. Hardware: one small GPU.
    """
    return TrainConfig(
        recipe="preact-resnet18-cifar10-fast",
        backbone="cifar_preact_resnet18",
        method="n_fgsm",
        interpolation=InterpolationConfig(kind="none"),
        epochs=30,
        clean_share=0.0,
        lr=0.2,
        lr_knots=((0.0, 0.0), (0.5, 1.0), (1.0, 0.0)),
        weight_decay=5e-4,
    )


@recipe
def resnet18_cifar10_awp() -> TrainConfig:
    """ResNet-18 on CIFAR-10 with TRADES and AWP, without other images.

    Command: accelerate launch train.py resnet18-cifar10-awp
    Source: Wu et al. 2020 (NeurIPS) and their code, whose AWP begins in epoch 10 and here in the first; theirs lowers the
    rate an epoch earlier. Published: AutoAttack 51.62 % (MAIR's ResNet-18).
    Cost: 0.3 GPU hours, computed (docs/scaling.md: bf16, an H200). Hardware: one GPU.
    """
    return TrainConfig(
        recipe="resnet18-cifar10-awp",
        method="trades",
        interpolation=InterpolationConfig(kind="none"),
        awp=0.005,
        epochs=200,
        clean_share=0.0,
        lr=0.1,
        lr_knots=((0.5, 1.0), (0.5, 0.1), (0.75, 0.1), (0.75, 0.01), (1.0, 0.01)),
        weight_decay=5e-4,
    )


def _edm(recipe: str, backbone: str) -> TrainConfig:
    """Wang et al. 2023 (ICML) as their code trains for 400 epochs: TRADES, 70 % of a batch generated by EDM.

    Theirs starts the attack anywhere in the ball and crafts in train mode, where TRADES here starts at x + 0.001 N and crafts
    in eval mode. Their rate changes once an epoch, and with it the momentum, from .95 to .85 and back; here it is .9. They
    draw generated images with replacement, give the first step to BatchNorm's statistics whole, and choose the epoch by
    PGD-40 on a margin.
    """
    return TrainConfig(
        recipe=recipe,
        backbone=backbone,
        bn_momentum=0.01,
        holdout=1024,
        extra_data="",
        mixing=MixingConfig(smoothing=0.1),
        method="trades",
        method_args={"beta": 5.0},
        interpolation=InterpolationConfig(kind="none"),
        ema=0.995,
        ema_start=0.025,
        ema_bn="copy",
        epochs=400,
        clean_share=0.0,
        batch_size=512,
        lr=0.2,
        weight_decay=5e-4,
        optimizer=OptimizerConfig(opt="sgd", undecayed="norms"),
        schedule=ScheduleConfig(sched="onecycle", warmup_share=0.025, warmup_lr=0.2 / 25, min_lr=0.2 / 25e4),
    )


def _with_piat(recipe: str, base: TrainConfig) -> TrainConfig:
    """The same with PIAT+NMSE in place of TRADES: nobody has published that."""
    piat = InterpolationConfig()
    return dataclasses.replace(base, recipe=recipe, method="nmse", method_args={}, interpolation=piat)


@recipe
def wrn_28_10_cifar10_edm() -> TrainConfig:
    """WRN-28-10 with SiLU on CIFAR-10 and generated images with TRADES.

    Command: accelerate launch train.py wrn-28-10-cifar10-edm --extra-data 1m.npz
    The file: cifar10/1m.npz of huggingface.co/datasets/P2333/DM-Improves-AT.
    Source: Wang et al. 2023 (ICML, arXiv:2302.04638) and their code. Published with 20 million images: clean 92.44 %,
    AutoAttack 67.31 %; of one million less is to be expected.
    Cost: 3.9 GPU hours, computed (docs/scaling.md: bf16, an H200). Hardware: one GPU.
    """
    return _edm("wrn-28-10-cifar10-edm", "cifar_wrn_28_10_silu")


@recipe
def wrn_70_16_cifar10_edm() -> TrainConfig:
    """WRN-70-16 with SiLU on CIFAR-10 and generated images with TRADES.

    Command: accelerate launch train.py wrn-70-16-cifar10-edm --extra-data 1m.npz
    Source: Wang et al. 2023 (ICML, arXiv:2302.04638) and their code. Published with 50 million images: clean 93.25 %,
    AutoAttack 70.69 %; of one million less is to be expected.
    Cost: 28.6 GPU hours, computed (docs/scaling.md: bf16, an H200). Hardware: eight GPUs, or one and patience.
    """
    return _edm("wrn-70-16-cifar10-edm", "cifar_wrn_70_16_silu")


@recipe
def preact_resnet18_cifar10_edm() -> TrainConfig:
    """PreActResNet-18 with SiLU on CIFAR-10 and generated images with TRADES.

    Command: accelerate launch train.py preact-resnet18-cifar10-edm --extra-data 1m.npz
    Source: Wang et al. 2023 (ICML, arXiv:2302.04638) and their code. Published for this network with a million images of
    another generator: clean 86.86 %, AutoAttack 57.09 % (Rade & Moosavi-Dezfooli 2021).
    Cost: 0.4 GPU hours, computed (docs/scaling.md: bf16, an H200). Hardware: one GPU.
    """
    return _edm("preact-resnet18-cifar10-edm", "cifar_preact_resnet18_silu")


@recipe
def wrn_28_10_cifar10_edm_piat() -> TrainConfig:
    """WRN-28-10 with SiLU on CIFAR-10 and generated images with PIAT+NMSE.

    Command: accelerate launch train.py wrn-28-10-cifar10-edm-piat --extra-data 1m.npz
    Source: our own, wrn-28-10-cifar10-edm with another method. Nothing is published.
    Cost: 3.7 GPU hours, computed (docs/scaling.md: bf16, an H200). Hardware: one GPU.
    """
    return _with_piat("wrn-28-10-cifar10-edm-piat", wrn_28_10_cifar10_edm())


@recipe
def wrn_70_16_cifar10_edm_piat() -> TrainConfig:
    """WRN-70-16 with SiLU on CIFAR-10 and generated images with PIAT+NMSE.

    Command: accelerate launch train.py wrn-70-16-cifar10-edm-piat --extra-data 1m.npz
    Source: our own, wrn-70-16-cifar10-edm with another method. Nothing is published.
    Cost: 27.5 GPU hours, computed (docs/scaling.md: bf16, an H200). Hardware: eight GPUs, or one and patience.
    """
    return _with_piat("wrn-70-16-cifar10-edm-piat", wrn_70_16_cifar10_edm())


@recipe
def preact_resnet18_cifar10_edm_piat() -> TrainConfig:
    """PreActResNet-18 with SiLU on CIFAR-10 and generated images with PIAT+NMSE.

    Command: accelerate launch train.py preact-resnet18-cifar10-edm-piat --extra-data 1m.npz
    Source: our own, preact-resnet18-cifar10-edm with another method. Nothing is published.
    Cost: 0.4 GPU hours, computed (docs/scaling.md: bf16, an H200). Hardware: one GPU.
    """
    return _with_piat("preact-resnet18-cifar10-edm-piat", preact_resnet18_cifar10_edm())


@recipe
def resnet20_cifar10() -> TrainConfig:
    """ResNet-20 (16-32-64) on CIFAR-10 with PIAT+NMSE: a row that two CPU cores can train.

    Command: accelerate launch train.py resnet20-cifar10 --train-size 5000 --epochs 10
    Source: our own. Expected: docs/cifar10-jpeg.md, measured on a JPEG-coded copy. Hardware: two CPU cores.
    """
    return TrainConfig(recipe="resnet20-cifar10", backbone="cifar_resnet20", epochs=30, lr=0.1, weight_decay=5e-4)


@recipe
def photos() -> TrainConfig:
    """Your own photographs, of any sizes: a small backbone with ImageNet weights, tuned first as usual, then with PIAT+NMSE.

    Command: accelerate launch train.py photos --dataset DIR
    Source: our own. Expected: not measured as it stands; docs/photographs.md has what two attack steps in place of ten gave,
    and why not to take them. Hardware: a CPU and patience; with a GPU give --img-size 224 and --batch-size 128.
    """
    return TrainConfig(
        recipe="photos",
        backbone="tf_efficientnet_lite0",
        init_from="imagenet",
        dataset="",
        img_size=96,
        pictures=PictureConfig(augment="rrc", scale=(0.3, 1.0), crop_pct=0.875),
        mixing=MixingConfig(smoothing=0.1),
        threat_model=ThreatModel(eps=2 / 255),
        epochs=18,
        clean_share=4 / 18,
        batch_size=64,
        lr=1e-3,
        weight_decay=0.05,
        optimizer=OptimizerConfig(opt="adamw", undecayed="1d"),
        schedule=ScheduleConfig(sched="cosine", warmup_share=1 / 18, eps_warmup_share=3 / 18),
    )


@recipe
def vit_tiny_cifar10() -> TrainConfig:
    """ViT-Tiny with patches of 4 x 4 pixels on CIFAR-10 with PIAT+NMSE: AdamW, cosine, clipped gradients.

    Command: accelerate launch train.py vit-tiny-cifar10
    Source: our own. Liu et al. 2025 (IEEE TIFS 20) train ViTs with PIAT+NMSE too; their settings are not known here.
    Patches, epochs and clipping are those of Mo et al. 2022 (NeurIPS), who take SGD (lr .1, weight decay 1e-4), mixup and
    ImageNet's weights: --init-from imagenet. Time: not measured here. Hardware: one GPU.
    """
    return TrainConfig(
        recipe="vit-tiny-cifar10",
        backbone="vit_tiny_patch16_224",
        epochs=40,
        lr=1e-3,
        weight_decay=0.05,
        optimizer=OptimizerConfig(opt="adamw", undecayed="1d", clip_grad=1.0),
        schedule=ScheduleConfig(sched="cosine", warmup_share=5 / 40),
    )


def _cvst_imagenet(recipe: str, backbone: str) -> TrainConfig:
    """Singh et al. 2023, App. A and their code: 80 images on each of 8 GPUs, the rate's peak at epoch 20 of 300.

    Theirs has an EMA without warm-up, erases with noise, and begins with weights of ordinary training.
    """
    return TrainConfig(
        recipe=recipe,
        backbone=backbone,
        dataset="ILSVRC/imagenet-1k",
        img_size=224,
        pictures=PictureConfig(augment="rrc", aa="rand-m9-mstd0.5-inc1", reprob=0.25, crop_pct=0.875),
        mixing=MixingConfig(smoothing=0.1, mixup=0.8, cutmix=1.0),
        method="pgd_at",
        interpolation=InterpolationConfig(kind="none"),
        ema=0.9999,
        threat_model=ThreatModel(eps=4 / 255),
        attack=AttackConfig(crafting="apgd", steps=2),
        epochs=300,
        clean_share=0.0,
        batch_size=640,
        lr=1e-3,
        weight_decay=0.05,
        optimizer=OptimizerConfig(opt="adamw", opt_betas=(0.9, 0.95), undecayed="1d"),
        schedule=ScheduleConfig(sched="cosine", warmup_share=20 / 300, warmup_lr=1e-7, min_lr=5e-6),
    )


@recipe
def convnext_tiny_cvst_imagenet() -> TrainConfig:
    """ConvNeXt-T with a ConvStem on ImageNet with PGD-AT: AdamW, cosine, mixup and CutMix, APGD-2 at 4/255.

    Command: accelerate launch train.py convnext-tiny-cvst-imagenet --init-from MODEL
    Source: Singh, Croce & Hein 2023 (arXiv:2303.01870). Published:
    clean 72.7 %, AutoAttack 49.5 % on RobustBench's 5,000 images. Time: not measured here. Hardware: eight GPUs of 40 GB.
    """
    return _cvst_imagenet("convnext-tiny-cvst-imagenet", "convnext_tiny_cvst")


@recipe
def vit_small_cvst_imagenet() -> TrainConfig:
    """DeiT-S with a ConvStem on ImageNet with PGD-AT: AdamW, cosine, mixup and CutMix, APGD-2 at 4/255.

    Command: accelerate launch train.py vit-small-cvst-imagenet --init-from MODEL
    Source: Singh, Croce & Hein 2023 (arXiv:2303.01870). Published:
    clean 72.5 %, AutoAttack 48.1 % on RobustBench's 5,000 images. Time: not measured here. Hardware: eight GPUs of 40 GB.
    """
    return _cvst_imagenet("vit-small-cvst-imagenet", "vit_small_cvst")
