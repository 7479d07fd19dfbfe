"""`piat demo`."""

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from piat_hub.cli.flags import Parser
from piat_hub.config import InputError
from piat_hub.records.files import check_output


def demo(argv: Sequence[str], prog: str) -> None:
    """`piat demo [MODEL…]`: a page on this machine where anyone sees an attack, until Ctrl-C; or the same as a Space."""
    parser = Parser(prog=prog, description="Open a page where anyone sees an attack on models, side by side.")
    usual = "as in evaluate (default: an ordinary and a robust model of handwritten digits)"
    parser.add_argument("models", nargs="*", metavar="MODEL", help=usual)
    parser.add_argument("--dataset", help="whose test images are offered (default: what the models were trained for)")
    parser.add_argument("--port", type=int, help="of 127.0.0.1 (default: the first free one from 7860)")
    parser.add_argument("--no-browser", action="store_true", help="open no browser")
    parser.add_argument("--export", metavar="DIR", help="write the page as a Hugging Face Space, and do not open it")
    given = parser.parse_all(argv)
    if given.port is not None and not 0 < given.port < 2**16:
        raise InputError(f"--port must be from 1 to 65535, got {given.port}; leave it out for a free one")
    if given.export and (given.port is not None or given.no_browser):
        raise InputError("--export writes the page and opens none; leave out --port and --no-browser")
    if not find_spec("gradio"):
        raise InputError("the page needs one more package: pip install 'PATH/TO/piat_hub[demo]'")
    if given.export:
        check_output(Path(given.export))

    from piat_hub.demo import shown, space
    from piat_hub.demo.page import launch

    specs = given.models or shown.DIGITS
    if given.export:
        print(f"space    {space.export(specs, Path(given.export), given.dataset)}")
        return
    models = shown.load(specs, given.dataset)
    with TemporaryDirectory(prefix="piat-demo-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        os.environ["no_proxy"] = ",".join(
            filter(None, [direct, "127.0.0.1"])
        )  # Gradio looks whether its own page is there
        options = {"server_name": "127.0.0.1", "server_port": given.port, "inbrowser": not given.no_browser}
        try:
            blocks = launch(models, **options, quiet=True, prevent_thread_lock=True)
        except OSError as error:
            where = f"port {given.port}" if given.port else "every port from 7860 to 7959"
            raise InputError(f"{where} of 127.0.0.1 is taken; choose another with --port") from error
        print(f"page     {blocks.local_url} (Ctrl-C ends it)", flush=True)
        with suppress(KeyboardInterrupt):  # and SIGTERM
            threading.Event().wait()
        blocks.close(verbose=False)
