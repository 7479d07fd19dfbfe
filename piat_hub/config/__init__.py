"""What a run can be told, as frozen dataclasses that validate themselves. Imports no torch.

A field is a default, a doc and, where it has one, a unit: the command line, `--help` and config.json are all read off
these fields. `to_dict` and `from_dict` are exact inverses, so a configuration survives JSON.
"""

from piat_hub.config.errors import Broken, Diverged, InputError, lookup, nearest, printable
from piat_hub.config.evaluate import EvalConfig
from piat_hub.config.fields import (
    check,
    choices,
    duration,
    flags,
    flat,
    from_dict,
    number,
    option,
    pixels,
    scalar_type,
    show,
    to_dict,
)
from piat_hub.config.optimizer import OptimizerConfig, ScheduleConfig
from piat_hub.config.train import (
    DATASETS,
    TRACKED,
    AttackConfig,
    InterpolationConfig,
    MixingConfig,
    PushOptions,
    RunOptions,
    StudyOptions,
    ThreatModel,
    TrainConfig,
    check_law,
    local_name,
    public,
)

__all__ = [
    "DATASETS",
    "TRACKED",
    "AttackConfig",
    "Broken",
    "Diverged",
    "EvalConfig",
    "InputError",
    "InterpolationConfig",
    "MixingConfig",
    "OptimizerConfig",
    "PushOptions",
    "RunOptions",
    "ScheduleConfig",
    "StudyOptions",
    "ThreatModel",
    "TrainConfig",
    "check",
    "check_law",
    "choices",
    "duration",
    "flags",
    "flat",
    "from_dict",
    "local_name",
    "lookup",
    "nearest",
    "number",
    "option",
    "pixels",
    "printable",
    "public",
    "scalar_type",
    "show",
    "to_dict",
]
