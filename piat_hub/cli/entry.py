"""The command line's door: argv in, an exit code out. What a command needs is imported when it is called."""

import contextlib
import importlib
import logging
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence

from piat_hub.cli.signals import go_on, handling, terminate
from piat_hub.config import Alone, Broken, Diverged, InputError, Refuted, lookup

COMMANDS = {  # command: (its function as MODULE:NAME in this folder, what it does)
    "train": ("train:train", "train a recipe, on its own data or yours"),
    "evaluate": ("evaluate:evaluate", "measure how robust one or several models are"),
    "compare": ("look:compare", "pair two evaluated models on the same images"),
    "predict": ("look:predict", "classify image files"),
    "label": ("label:label", "pictures with the labels that a model gives them, to train with"),
    "list": ("look:list_known", "models with their robust accuracy, recipes, methods and backbones"),
    "card": ("publish:card", "write a run's model card anew from what is measured"),
    "push": ("publish:push", "publish a run on the Hub, in one commit"),
    "export": ("publish:export", "model.pt2 for torch alone, and model.onnx"),
    "import": ("publish:import_checkpoint", "another project's checkpoint as a model directory"),
    "leaderboard": ("leaderboard:leaderboard", "robust models side by side on one page, or a benchmark on the Hub"),
    "verify": ("leaderboard:verify", "measure a published figure again on some of its images"),
    "robustbench": ("publish:robustbench", "the files of a submission to RobustBench"),
    "study": ("study:study", "one of the paper's comparisons as a sweep, with a table at its end"),
    "figures": ("draw:figures", "draw what runs recorded, as SVG and PNG"),
    "report": ("draw:report", "one self-contained page of tables, figures and checks"),
    "demo": ("demo:demo", "open a page where anyone sees an attack"),
}


def main(argv: Sequence[str] | None = None, prog: str = "piat", command: str | None = None) -> int:
    """Run a command and say how it ended.

    Args:
        argv: the words after the command's name, or with `command` None that name too; by default the process's own.
        prog: what usage and errors call the program.
        command: the one command that this program is, as for train.py.

    Returns:
        0 when it worked, 2 for unusable input, 1 for a run that diverged or broke and a claim that does not stand,
        130 for Ctrl-C, 141 for a reader that went away; each but the first and the last with one line on stderr.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    with _quiet_dependencies(), handling({signal.SIGTERM: terminate}):
        try:
            if command is None:
                if not argv or argv[0] in ("-h", "--help"):
                    print(_usage(prog))
                    return 0 if argv else 2
                command, argv = argv[0], argv[1:]
                prog = f"{prog} {command}"
            module, _, name = lookup("command", command, COMMANDS)[0].partition(":")
            getattr(importlib.import_module(f"piat_hub.cli.{module}"), name)(argv, prog)
        except InputError as error:
            return _fail(prog, error, 2)
        except KeyboardInterrupt as stop:
            kept = str(stop) or ("what is finished is saved" if command == "evaluate" else "")
            again = f"{kept}: {go_on(str(command), argv)}" if kept else "start it again"
            return _fail(prog, f"stopped, {again}", 130)
        except BrokenPipeError:  # who reads our lines, as `head` does, has had enough of them
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except (Diverged, Broken, Refuted, OSError) as error:
            return _fail(prog, error, 1)
        except RuntimeError as error:
            if not (said := _from_outside(error, command, argv)):
                raise
            return _fail(prog, Broken(said), 1)
    return 0


def _usage(prog: str) -> str:
    lines = [f"  {name:12} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join([f"usage: {prog} COMMAND …", "", *lines, "", f"{prog} COMMAND --help says more."])


def _from_outside(error: RuntimeError, command: str | None, argv: Sequence[str]) -> str:
    """What torch says of a lost connection between processes, or of memory, in a few words; "" for any other error."""
    line, kind = next((line for line in str(error).splitlines() if line.strip()), ""), type(error).__name__
    said = re.sub(r"^\[\S*\] ", "", line).split(". ")[0]
    if "gloo" in line.lower() or kind.startswith("Dist"):  # NCCL's errors are of such types
        return f"another process has ended ({said}); what is finished is saved: {go_on(str(command), argv)}"
    if kind == "OutOfMemoryError":
        less = "take fewer or smaller images"
        if command == "train":
            less = (
                "--gradient-checkpointing, --accumulation, --mixed-precision bf16 or a smaller --batch-size needs less"
            )
        return f"the device's memory is used up ({said}); {less}"
    return ""


def _fail(prog: str, error: object, code: int) -> int:
    """Tell it once on every machine; what can happen to one of several processes alone, from each that it happens to."""
    rank, local = os.environ.get("RANK", "0"), os.environ.get("LOCAL_RANK", "0")
    if local == "0" or isinstance(error, Alone | Broken | OSError):
        print(f"{prog}: error{f' (process {rank})' if rank != '0' else ''}: {error}", file=sys.stderr)
    else:
        time.sleep(3)  # a launcher stops them all when one ends: let the first be that, and tell it
    return code


@contextlib.contextmanager
def _quiet_dependencies() -> Iterator[None]:
    """Keep the libraries' notices off the user's screen; errors still come through. Imports none of them."""
    for name in ("DATASETS_VERBOSITY", "HF_HUB_VERBOSITY"):  # they set their own level when they are imported
        os.environ.setdefault(name, "error")
    if not sys.stderr.isatty():
        for name in ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(name, "1")
    for name in ("accelerate", "datasets", "huggingface_hub", "timm"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
