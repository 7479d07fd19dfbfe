"""Recipes of our own: digits, a small network for two cores, photographs, a small ViT."""

from piat_hub.config.optimizer import OptimizerConfig, ScheduleConfig
from piat_hub.config.pictures import PictureConfig
from piat_hub.config.recipes.base import recipe
from piat_hub.config.train import AttackConfig, InterpolationConfig, MixingConfig, ThreatModel, TrainConfig


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
def resnet20_cifar10() -> TrainConfig:
    """ResNet-20 (16-32-64) on CIFAR-10 with PIAT+NMSE: a row that two CPU cores can train.

    Command: accelerate launch train.py resnet20-cifar10 --train-size 5000 --epochs 10
    Source: our own. Expected: docs/cifar10-jpeg.md, measured on a JPEG-coded copy. Hardware: two CPU cores.
    """
    return TrainConfig(recipe="resnet20-cifar10", backbone="cifar_resnet20", epochs=30, lr=0.1, weight_decay=5e-4)


@recipe
def photos() -> TrainConfig:
    """Your own photographs, of any sizes: a small backbone with ImageNet weights, PGD-AT on APGD's two steps, with EMA.

    Command: accelerate launch train.py photos --dataset DIR
    Source: our own; the attack is Singh et al. 2023's. Expected: docs/photographs.md, measured on 3,068 photographs of clothing.
    Time: those in 2.5 hours, beside two other trainings on two cores. Hardware: a CPU; with a GPU give --img-size 224 and
    --batch-size 128.
    """
    return TrainConfig(
        recipe="photos",
        backbone="tf_efficientnet_lite0",
        init_from="imagenet",
        dataset="",
        img_size=96,
        pictures=PictureConfig(augment="rrc", scale=(0.3, 1.0), crop_pct=0.875),
        mixing=MixingConfig(smoothing=0.1),
        method="pgd_at",
        interpolation=InterpolationConfig(kind="none"),
        ema=0.998,
        threat_model=ThreatModel(eps=2 / 255),
        attack=AttackConfig(crafting="apgd", steps=2),
        epochs=24,
        clean_share=2 / 24,
        batch_size=32,
        lr=1e-3,
        weight_decay=0.05,
        optimizer=OptimizerConfig(opt="adamw", undecayed="1d"),
        schedule=ScheduleConfig(sched="cosine", warmup_share=1 / 18, eps_warmup_share=4 / 24),
    )


@recipe
def vit_tiny_cifar10() -> TrainConfig:
    """ViT-Tiny with patches of 4 x 4 pixels on CIFAR-10 with PIAT+NMSE: AdamW, cosine, clipped gradients.

    Command: accelerate launch train.py vit-tiny-cifar10
    Source: our own. Liu et al. 2025 (IEEE TIFS 20) train ViTs with PIAT+NMSE too; their settings are not known here.
    Patches, epochs and clipping are those of Mo et al. 2022 (NeurIPS), who take SGD (lr 0.1, weight decay 1e-4), mixup and
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
