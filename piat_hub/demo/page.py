"""The page itself: what a visitor chooses, and how it is served."""

import html
import math
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piat_hub.config import InputError, ThreatModel
from piat_hub.data import to_unit
from piat_hub.demo.attack import ATTACKS, watched
from piat_hub.demo.panel import Trail, panel, picture, refused
from piat_hub.demo.shown import WIDEST, Shown
from piat_hub.machine import set_threads
from piat_hub.records.labels import attack_name

if TYPE_CHECKING:
    import gradio

LARGEST = "20 MB"  # of an uploaded file
FRAME = 0.05  # seconds that a panel stands at least, but for the last
UNITS = {
    "Linf": (255, 0.25, "eps, in levels of 255"),
    "L2": (1, 0.1, "eps"),
}  # of the slider: 1 in it, its step, its name


def page(models: Sequence[Shown]) -> "gradio.Blocks":
    """The page of these models; its visitors wait in one queue.

    Args:
        models: at least one, all with the same test images or none.
    """
    import gradio as gr

    first = models[0]
    usual = budget(first)
    run: dict[str, Any] = {"fn": partial(attacked, models), "show_progress": "hidden", "trigger_mode": "always_last"}
    run |= {"concurrency_limit": 1, "concurrency_id": "attack", "api_visibility": "private"}
    quick: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
    with gr.Blocks(title="See an attack", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gr.Markdown(
            "# See an attack\n"
            "It changes each pixel a little, step by step towards where a model errs. "
            "Every model here gets an attack of its own on the same picture."
        )
        chosen = gr.State(None if isinstance(first.tests, str) else 0)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                if isinstance(first.tests, str):
                    gr.HTML(f"<p>There are no test images: {html.escape(first.tests)}</p>")
                else:
                    thumbnails = [picture(image) for image in to_unit(first.tests.images[:])]
                    look: dict[str, Any] = {"columns": 5, "allow_preview": False, "interactive": False, "buttons": []}
                    gallery = gr.Gallery(thumbnails, label="Test images", format="png", elem_id="tests", **look)

                    def number(event: gr.SelectData) -> int:
                        return int(event.index)

                    gallery.select(number, None, chosen, **quick)
                words = f"A picture of yours, at most {LARGEST} and {WIDEST:,} pixels a side"
                upload = gr.File(label=words, file_types=["image"], height=120, elem_id="upload")
                norm = gr.Radio(list(UNITS), value=usual.norm, label="Norm", elem_id="norm")
                eps = gr.Slider(**slider(first, usual.norm), elem_id="eps")
                attack = gr.Radio([(n.upper(), n) for n in ATTACKS], value="pgd", label="Attack", elem_id="attack")
                steps = gr.Slider(1, 100, 20, step=1, label="Steps", elem_id="steps")
                button = gr.Button("Attack", variant="primary", elem_id="go")
            with gr.Column(scale=3, min_width=320):
                run |= {
                    "inputs": [chosen, norm, eps, attack, steps],
                    "outputs": gr.HTML(elem_id="seen", apply_default_css=False),
                }
        upload.upload(str, upload, chosen, **quick)
        norm.change(lambda norm: gr.Slider(**slider(first, norm)), norm, eps, **quick)  # whose change is an attack
        gr.on([blocks.load, chosen.change, eps.change, attack.change, steps.change, button.click], **run)
    return blocks


def launch(models: Sequence[Shown], **options: Any) -> "gradio.Blocks":
    """Serve the page; no file is given out but what a visitor uploaded, and nobody else is asked for anything.

    Args:
        models: as in `page`.
        **options: of Gradio's `launch`.

    Raises:
        OSError: where the port is taken.
    """
    small = max(side for model in models for side in model.shape[1:]) <= 64
    set_threads(1 if small else None)  # of one small image threads only wait for each other
    blocks = page(models)
    off: dict[str, Any] = {"footer_links": [], "run_history": False, "enable_monitoring": False, "share": False}
    off |= {"ssr_mode": False, "pwa": False, "mcp_server": False}
    styled = {"css_paths": Path(__file__).with_name("panel.css")}
    blocks.launch(max_file_size=LARGEST.replace(" ", ""), **off, **styled, **options)
    return blocks


def budget(model: Shown, norm: str | None = None) -> ThreatModel:
    """A model's own threat model, or in another norm a ball about as large: half as wide as the own one's corners.

    Args:
        model: Linf 8/255 where it has none.
        norm: "Linf" or "L2"; by default its own.
    """
    own = model.threat_model if model.threat_model and model.threat_model.norm in UNITS else ThreatModel()
    if norm in (None, own.norm):
        return own
    half = math.sqrt(math.prod(model.shape)) / 2
    return ThreatModel("L2", own.eps * half) if norm == "L2" else ThreatModel("Linf", min(1.0, own.eps / half))


def slider(model: Shown, norm: str) -> dict[str, Any]:
    """What the eps slider is in a norm: from none to twice the usual budget.

    Args:
        model: whose budget is usual.
        norm: "Linf" or "L2".
    """
    unit, step, label = UNITS[norm]
    usual = round(max(1, round(budget(model, norm).eps * unit / step)) * step, 2)
    return {"minimum": 0, "maximum": min(2 * usual, 255), "value": usual, "step": step, "label": label}


def attacked(
    models: Sequence[Shown], chosen: int | str | None, norm: str, eps: float, attack: str, steps: int
) -> Iterator[str]:
    """The panel as the attack goes on, after each step unless that is too quick to be seen.

    Args:
        models: those attacked, a step of each in turn.
        chosen: the number of a test image, the path of an uploaded picture, or None.
        norm: "Linf" or "L2".
        eps: as the slider has it.
        attack: of `ATTACKS`.
        steps: how many.

    Yields:
        HTML; for what cannot be shown, the reason.
    """
    if chosen is None:
        yield refused("Choose a picture first.")
        return
    try:
        eps = round(eps, 6) / UNITS[norm][0]  # a slider's steps of 0.1 are not quite that
        threat_model = ThreatModel(norm, eps) if eps else None  # type: ignore[arg-type]
        seen = [model.sees(chosen) for model in models]
        walks = [watched(m.model, x, y, attack, norm, eps, steps) for m, (x, y) in zip(models, seen, strict=True)]
        trails = [
            Trail(m.name, m.label_names, None if y is None else int(y)) for m, (_, y) in zip(models, seen, strict=True)
        ]
        last, shown = steps if eps else 0, -math.inf
        for done, answers in enumerate(zip(*walks, strict=True)):
            for trail, answer in zip(trails, answers, strict=True):
                trail.steps.append(answer)
            if done == last or time.monotonic() - shown > FRAME:
                yield panel(trails, attack_name(f"{attack}{steps}"), threat_model, steps)
                shown = time.monotonic()
    except InputError as error:
        yield refused(error)
