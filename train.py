"""Train a robust classifier: `accelerate launch train.py [RECIPE] [flags]`; see `--help`."""

import sys

from piat_hub.cli import main

if __name__ == "__main__":
    sys.exit(main(prog="train.py", command="train"))
