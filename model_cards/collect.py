"""Put trained runs beside this file as a push would publish them: `python model_cards/collect.py RUN [RUN…]`."""

import shutil
import sys
from pathlib import Path

from piat_hub.hub import card
from piat_hub.hub.push import publication
from piat_hub.records.rundir import RunDirectory

HERE = Path(__file__).parent


def collect(run: Path) -> Path:
    """Copy a run to the folder of its name here, and write its card; returns the folder."""
    target = Path(HERE.name) / run.name  # as the card calls it: from the root of the repository
    sent = publication(RunDirectory.read(run), "")
    files = {name: Path(f).read_bytes() if isinstance(f, str) else f for name, f in sent.items()}
    shutil.rmtree(target, ignore_errors=True)
    for name, content in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(content)
    card.write(target)
    return target


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(collect(Path(argument)))
