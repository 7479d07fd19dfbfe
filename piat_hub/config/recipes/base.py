"""What a recipe is, and the register of their names."""

import inspect
from collections.abc import Callable

from piat_hub.config.errors import lookup
from piat_hub.config.fields import flag, flagless, flags
from piat_hub.config.train import TrainConfig

RECIPES: dict[str, Callable[[], TrainConfig]] = {}


def recipe(make: Callable[[], TrainConfig]) -> Callable[[], TrainConfig]:
    """Decorator: register a recipe under its function's name, with dashes."""
    RECIPES[make.__name__.replace("_", "-")] = make
    return make


def words(config: TrainConfig) -> list[str]:
    """What follows `train` for this configuration: its recipe, and the flags of what differs from that."""
    name = _begun_from(config)
    config = config.least_said
    fields = [word for key, value in config.method_args.items() for word in flag(f"method.{key}", str(value))]
    return [name, *flags(config, get(name)), *fields]


def unsaid(config: TrainConfig) -> list[str]:
    """The fields of a configuration made in Python that no flag can give: `words` leaves them out."""
    idle = ("clean_share",) if config.clean_epochs is not None else ()  # the number of clean epochs was given
    return flagless(config, get(_begun_from(config)), but=("recipe", "extra_images", "method_args", *idle))


def _begun_from(config: TrainConfig) -> str:
    """The recipe that `words` begin with: without one the one whose fields have all their defaults."""
    return config.recipe if config.recipe in RECIPES else "resnet18-cifar10"


def get(name: str) -> TrainConfig:
    """The recipe's configuration.

    Raises:
        InputError: if there is none of this name, with the nearest one.
    """
    return lookup("recipe", name, RECIPES)()


def names() -> tuple[str, ...]:
    """All recipes."""
    return tuple(RECIPES)


def told(name: str) -> str:
    """What a recipe is, its command, its source, what was published of it, what it costs: as its docstring says.

    Raises:
        InputError: if there is none of this name, with the nearest one.
    """
    return inspect.cleandoc(lookup("recipe", name, RECIPES).__doc__ or "")


def described() -> str:
    """All recipes, a line each."""
    width = max(map(len, RECIPES))
    lines = [f"  {name:{width}} {(make.__doc__ or '').splitlines()[0]}" for name, make in RECIPES.items()]
    return "\n".join(["Recipes:", *lines])
