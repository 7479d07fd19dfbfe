"""What the page says of an attack so far, as HTML with its pictures inside."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image
from torch import Tensor

from piat_hub.config import ThreatModel
from piat_hub.records.labels import percent

ENVIRONMENT = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
ENVIRONMENT.filters["percent"] = percent
PANEL = ENVIRONMENT.from_string(Path(__file__).with_name("panel.html").read_text(encoding="utf-8"))
REFUSED = ENVIRONMENT.from_string('<section class="piat"><p class="refused" role="alert">{{ reason }}</p></section>')
GUESSES = 3  # classes of each answer that are shown
TINY = 96  # pixels a side below which each is drawn as a square


@dataclass
class Trail:
    """What one model was shown and answered, from the clean image on.

    Attributes:
        name: of the model.
        label_names: one a class; () for numbers.
        own: the class of the picture; None where nobody knows it, and what the model saw at first is attacked.
        steps: an image (1, C, H, W) in [0, 1] and probabilities (1, K) each, the clean image first.
    """

    name: str
    label_names: tuple[str, ...]
    own: int | None
    steps: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def says(self, label: int) -> str:
        """A class by its name."""
        return self.label_names[label] if self.label_names else str(label)

    @property
    def sees(self) -> list[int]:
        """The class seen after each step."""
        return [int(answer.argmax()) for _, answer in self.steps]

    @property
    def label(self) -> int:
        """The class attacked."""
        return int(self.steps[0][1].argmax()) if self.own is None else self.own

    @property
    def trust(self) -> list[float]:
        """The probability of that class after each step."""
        return [float(answer[0, self.label]) for _, answer in self.steps]

    def told(self) -> str:
        """What happened to this model, as a part of a sentence."""
        sees, label = self.sees, self.label
        wrong = next((step for step, seen in enumerate(sees) if seen != label), None)
        if wrong == 0:
            return f"{self.name} sees {self.says(sees[0])} without any attack"
        if wrong:
            return f"{self.name} is misled at step {wrong}, from {self.says(label)} into {self.says(sees[wrong])}"
        still = "still sees" if len(sees) > 1 else "sees"
        return f"{self.name} {still} {self.says(label)}, at {percent(self.trust[-1])}"


def panel(trails: Sequence[Trail], attack: str, threat_model: ThreatModel | None, steps: int) -> str:
    """The models side by side: images, answers, the true class's probability over the steps, and a sentence.

    Args:
        trails: one a model, of equally many steps.
        attack: its name for people.
        threat_model: None for no attack, eps 0.
        steps: how many there will be.
    """
    done = len(trails[0].steps) - 1
    under = f"{attack}, {threat_model}" if threat_model else "No change, eps 0"
    running = f"Step {done} of {steps}. " if threat_model and done < steps else ""
    what = "the class seen at first" if trails[0].own is None else "the true class"
    ticks = [(step, round(across(step, steps), 1)) for step in sorted({0, steps // 2, steps})]
    return PANEL.render(
        sentence=f"{running}{under}: {'; '.join(trail.told() for trail in trails)}.",
        answers=[_answer(trail, steps) for trail in trails],
        what=what,
        ticks=ticks,
    )


def refused(reason: object) -> str:
    """The panel that says why there is nothing to see."""
    return REFUSED.render(reason=reason)


def across(step: int, steps: int) -> float:
    """Where a step lies in the plot."""
    return 30 + 360 * step / max(1, steps)


def _answer(trail: Trail, steps: int) -> dict[str, Any]:
    """What the template says of one model."""
    (x, before), (x_adv, after) = trail.steps[0], trail.steps[-1]
    delta = x_adv - x
    factor = max(1, int(0.5 / float(delta.abs().max()))) if delta.any() else 1
    shown = {"clean": x, f"perturbation ×\u00a0{factor}": 0.5 + factor * delta, "attacked": x_adv}
    line = [(across(step, steps), 140 - 130 * share) for step, share in enumerate(trail.trust)]
    return {
        "name": trail.name,
        "now": trail.says(trail.sees[-1]),
        "misled": trail.sees[-1] != trail.label,
        "tiny": max(x.shape[2:]) < TINY,
        "pictures": [{"words": words, "png": png(image[0])} for words, image in shown.items()],
        "guesses": [("clean", _bars(trail, before[0])), ("under attack", _bars(trail, after[0]))],
        "line": " ".join(f"{x:.1f},{y:.1f}" for x, y in line),
    }


def _bars(trail: Trail, answer: Tensor) -> list[dict[str, Any]]:
    """The likeliest classes."""
    shares, labels = answer.topk(min(GUESSES, len(answer)))
    pairs = zip(shares.tolist(), labels.tolist(), strict=True)
    return [{"label": trail.says(label), "share": share, "true": label == trail.label} for share, label in pairs]


def picture(image: Tensor) -> Image.Image:
    """An image (1 or 3, H, W) in [0, 1] as a picture of 8 bits a channel."""
    levels = np.rint(255 * image.detach().cpu().clamp(0, 1).numpy()).astype(np.uint8)
    return Image.fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0))


def png(image: Tensor) -> str:
    """An image as the address of a PNG that it holds itself."""
    out = io.BytesIO()
    picture(image).save(out, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
