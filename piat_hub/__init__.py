"""piat_hub: adversarially robust image classifiers on timm and the Hugging Face stack."""

import piat_hub.leaderboard  # noqa: F401  registers published models under RobustBench's names
from piat_hub.backbones import create_model
from piat_hub.evaluation import evaluate
from piat_hub.hub import from_pretrained, list_pretrained
from piat_hub.interpolation import ParameterInterpolation

__version__ = "0.1.0"
__all__ = ["ParameterInterpolation", "create_model", "evaluate", "from_pretrained", "list_pretrained"]
