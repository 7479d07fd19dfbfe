"""Who trained a model that piat_hub did not train, as its config.json says under "piat_origin"."""

from dataclasses import dataclass

from piat_hub.config import Checked, InputError, ThreatModel, option


@dataclass(frozen=True)
class Origin(Checked):
    """What is known of a model that came in by `piat import`.

    Raises:
        InputError: for an address that is none, or a field that is no printable text.
    """

    name: str = option("", "what its authors, or the zoo that it is from, call it")
    authors: str = option("", "who trained it: 'Leslie Rice, Eric Wong'")
    paper: str = option("", "the title of the paper that describes it")
    link: str = option("", "the paper's address, https://…")
    source: str = option("", "where the checkpoint can be had, https://…")
    license: str = option("unknown", "of the weights, in the Hub's words: mit")
    dataset: str | None = option(None, "what it was trained for, as --dataset takes it")
    threat_model: ThreatModel | None = None  # what it was trained against
    extra_data: bool = option(False, "it was trained on more than the data set's own images")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("name", "authors"):
            if not getattr(self, name).strip():
                raise InputError(f"the origin of a model needs its {name}; the card says who trained it")
        for name in ("link", "source"):
            if getattr(self, name) and not getattr(self, name).startswith(("https://", "http://")):
                raise InputError(
                    f"{name} {getattr(self, name)!r:.80} must be an address, https://…; leave it out or mend it"
                )
