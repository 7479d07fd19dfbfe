"""Where and how a run or a study happens."""

from dataclasses import dataclass, field
from typing import Literal

from piat_hub.config.errors import InputError
from piat_hub.config.fields import Checked, option
from piat_hub.config.train import TRACKED


@dataclass(frozen=True)
class PushOptions(Checked):
    """How a run is published."""

    private: bool = option(False, "a new repository is private")
    revision: str | None = option(None, "push to this branch, made if there is none (default: main)")
    create_pr: bool = option(False, "open a pull request instead of writing to main")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.revision and self.create_pr:
            raise InputError(
                f"a pull request is made against main, not {self.revision!r}; leave out --revision or --create-pr"
            )


@dataclass(frozen=True)
class RunOptions(Checked):
    """Where and how a run happens; decides nothing about what it learns but by rounding (threads and compile order sums)."""

    output: str | None = option(None, "the run directory (default: runs/RECIPE)")
    resume: bool = option(False, "go on from the state in the run directory")
    save_every_steps: int | None = option(
        None, "also save the state within epochs, every so many steps (default: at their ends)", unit="steps", least=1
    )
    threads: int | None = option(
        None, "CPU threads (default: OMP_NUM_THREADS, else this process's share of the cores)", least=1
    )
    compile: bool = option(
        False, "compile attack and update with torch.compile; left off on a CPU, where it does not pay"
    )
    gradient_checkpointing: bool = option(False, "keep fewer activations and compute them again: less memory, slower")
    track_test: bool = option(
        False,
        f"also record accuracy on {TRACKED:,} test images after each epoch, for a figure; nothing is chosen by it",
    )
    device_data_limit: float = option(
        4.0, "training data that would take more than this on the device, decoded, is streamed", unit="GiB", least=0
    )
    tracker: Literal["none", "tensorboard", "trackio"] = option(
        "none", "also log to an experiment tracker (its own extra)"
    )
    push_to_hub: str | None = option(None, "after the last epoch, publish the run as ORG/NAME")
    push: PushOptions = field(default_factory=PushOptions, metadata={"prefix": ""})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.push != PushOptions() and not self.push_to_hub:
            raise InputError("--private, --revision and --create-pr go with --push-to-hub ORG/NAME; give it too")


@dataclass(frozen=True)
class StudyOptions(Checked):
    """The size of a sweep, and where it goes."""

    seeds: int = option(3, "runs of each member, with seeds that follow each other", least=1)
    jobs: int | None = option(None, "members that run at a time (default: one a GPU, else one)", least=1)
    attacks: tuple[str, ...] = option((), "as in evaluate (default: clean pgd20, or the columns of the paper's table)")
    n: int | None = option(None, "evaluate on the first n test images (default: all)", unit="images", least=1)
    track_test: bool = option(False, "also record accuracy on test images after each epoch, as in training")
    output: str | None = option(None, "the directory of the members and the table (default: runs/study/RECIPE)")
