"""Measure how robust a model is: `python evaluate.py MODEL [MODEL…] [flags]`; see `--help`."""

import sys

from piat_hub.cli import main

if __name__ == "__main__":
    sys.exit(main(prog="evaluate.py", command="evaluate"))
