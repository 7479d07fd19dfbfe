"""The command line: argv in, lines out. A file for each group of commands; every flag is read off a dataclass."""

from piat_hub.cli.entry import main

__all__ = ["main"]
