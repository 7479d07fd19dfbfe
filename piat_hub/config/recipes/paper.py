"""The paper's rows: He et al. 2023 (PIAT), Tables 1-2 for the accuracies and Appendix A for the hyper-parameters."""

from piat_hub.config.recipes.base import recipe
from piat_hub.config.train import TrainConfig


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
