"""How pictures of any size become images of one, in timm's words."""

from dataclasses import dataclass
from typing import Literal

from piat_hub.config.errors import InputError
from piat_hub.config.fields import check, option


@dataclass(frozen=True)
class PictureConfig:
    """How training looks at a picture, and how everything after it does; a run that begins settles what is None.

    Where the pictures differ in size, or `augment` is rrc, training cuts a random part out of each and evaluation the
    middle. Images of one size are padded, cropped and squeezed, as in the papers.
    """

    augment: Literal["pad", "rrc"] | None = option(
        None, "random crop after padding, or of a random part (RandomResizedCrop; default: where sizes differ)"
    )
    scale: tuple[float, ...] = option((0.08, 1.0), "share of the picture that this part has, from and to")
    aa: str = option("", "timm's AutoAugment, RandAugment or AugMix after it: rand-m9-mstd0.5-inc1, augmix-m3-w3, …")
    reprob: float = option(0.0, "random erasing: probability of a grey rectangle after that", least=0, most=1)
    crop_pct: float | None = option(
        None,
        "evaluate the middle of a picture: its short side becomes img-size / crop-pct (default: 0.875 where sizes "
        "differ, 1 for rrc on one size, else pictures are squeezed)",
        above=0,
        most=1,
    )
    skip_broken: bool = option(False, "leave out training pictures that cannot be read, and say how many")

    def __post_init__(self) -> None:
        check(self)
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(
                f"scale must be two shares of the picture, 0 < from <= to <= 1, got {self.scale}; 0.08 1 is usual"
            )
