"""piat_hub: adversarially robust image classifiers on timm and the Hugging Face stack.

The front door opens lazily: importing it loads no torch. `import piat_hub.backbones` registers our architectures with timm,
`import piat_hub.leaderboard` the published models with RobustBench.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from piat_hub.backbones import create_model
    from piat_hub.evaluation.loop import evaluate
    from piat_hub.hub.load import from_pretrained, list_pretrained
    from piat_hub.training.interpolation import ParameterInterpolation

__version__ = "0.1.0"
__all__ = ["ParameterInterpolation", "create_model", "evaluate", "from_pretrained", "list_pretrained"]
_HOME = {
    "ParameterInterpolation": "piat_hub.training.interpolation",
    "create_model": "piat_hub.backbones",
    "evaluate": "piat_hub.evaluation.loop",
    "from_pretrained": "piat_hub.hub.load",
    "list_pretrained": "piat_hub.hub.load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'piat_hub' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
