"""timm backbones for 32x32 images and any other size; importing this registers ours with timm."""

import piat_hub.backbones.cifar
import piat_hub.backbones.convstem
import piat_hub.backbones.small_image  # noqa: F401
from piat_hub.backbones.create import OURS, checkpoint_gradients, create_model, ours

__all__ = ["OURS", "checkpoint_gradients", "create_model", "ours"]
