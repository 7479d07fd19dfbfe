"""What a run can be told, as frozen dataclasses that validate themselves. Imports no torch.

A field is a default, a doc and, where it has one, a unit: the command line, `--help` and config.json are all read off
these fields. `to_dict` and `from_dict` are exact inverses, so a configuration survives JSON.
"""

from piat_hub.config.classes import numbers_of as numbers_of, plainly as plainly
from piat_hub.config.corruptions import (
    ALEXNET as ALEXNET,
    COMMON as COMMON,
    EXTRA as EXTRA,
    SEVERITIES as SEVERITIES,
)
from piat_hub.config.errors import (
    Alone as Alone,
    Broken as Broken,
    Diverged as Diverged,
    InputError as InputError,
    InUse as InUse,
    Refuted as Refuted,
    first_line as first_line,
    lookup as lookup,
    nearest as nearest,
    printable as printable,
    shortened as shortened,
)
from piat_hub.config.evaluate import LISTED as LISTED, EvalConfig as EvalConfig
from piat_hub.config.fields import (
    NONE as NONE,
    Checked as Checked,
    check as check,
    choices as choices,
    duration as duration,
    flags as flags,
    flat as flat,
    from_dict as from_dict,
    number as number,
    option as option,
    pixels as pixels,
    scalar_type as scalar_type,
    show as show,
    to_dict as to_dict,
)
from piat_hub.config.optimizer import OptimizerConfig as OptimizerConfig, ScheduleConfig as ScheduleConfig
from piat_hub.config.options import (
    PushOptions as PushOptions,
    RunOptions as RunOptions,
    StudyOptions as StudyOptions,
)
from piat_hub.config.pictures import PictureConfig as PictureConfig
from piat_hub.config.train import (
    DATASETS as DATASETS,
    TRACKED as TRACKED,
    WIDEST as WIDEST,
    AttackConfig as AttackConfig,
    InterpolationConfig as InterpolationConfig,
    MixingConfig as MixingConfig,
    ThreatModel as ThreatModel,
    TrainConfig as TrainConfig,
    as_decided as as_decided,
    check_law as check_law,
    local_name as local_name,
    public as public,
)
