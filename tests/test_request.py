"""MODEL and the request of an evaluation, as they are prepared."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from piat_hub import cli, data
from piat_hub.config import EvalConfig, InputError, number
from piat_hub.evaluation import request
from piat_hub.evaluation.loop import evaluate
from piat_hub.evaluation.verdict import verdict_mode

MODELS = """
import torch
from torch import nn
torch.manual_seed(0)
attacked = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
wide = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
half = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).bfloat16()

class Shifted(nn.Module):
    shift = 0

    def __init__(self):
        super().__init__()
        self.rest = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x):
        return self.rest(x).roll(self.shift, 1)

shifted = Shifted()
"""


@pytest.fixture(autouse=True)
def some_models(tmp_path, monkeypatch):
    """A module of models, a new one for each test."""
    Path("some_models.py").write_text(MODELS)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("some_models", None)
    return lambda: importlib.reload(importlib.import_module("some_models"))


def asked(**fields):
    return EvalConfig(**{"dataset": "digits", "n": 8, "eps": 0.05, "attacks": ("clean", "pgd2")} | fields)


def measured(spec, **fields):
    one = request.prepare_evaluation(spec, asked(**fields))
    with one.writing():
        list(one.measure())
    return one.results


def test_mean_and_std_stand_before_the_model_and_not_before_its_surrogate():
    prepared = request.prepare_evaluation(
        "some_models:attacked", asked(mean=(0.5,), std=(0.25,), surrogate="some_models:other")
    )
    import some_models

    assert prepared.surrogate is some_models.other
    assert prepared.model[1] is some_models.attacked and prepared.model[0].mean.flatten().tolist() == [0.5]


def test_a_surrogate_that_does_not_take_the_images_is_refused_before_anything_runs():
    said = "--surrogate some_models:wide does not go with the images: the model cannot take the 1x8x8"
    with pytest.raises(InputError, match=said):
        request.prepare_evaluation("some_models:attacked", asked(surrogate="some_models:wide", checks=True))


def test_code_that_was_changed_is_another_question(some_models):
    """A model's forward holds no tensor."""
    measured("some_models:shifted", output="r")
    assert measured("some_models:shifted", output="r").verdicts.keys() == {"clean", "pgd2"}
    Path("some_models.py").write_text(MODELS.replace("shift = 0", "shift = 1"))
    some_models()
    with pytest.raises(InputError, match="holds results for weights_sha256 .* in code .*, this call asks for"):
        measured("some_models:shifted", output="r")


@pytest.mark.parametrize(
    ("text", "spec", "message"),
    [
        ("x = (", "broken:model", r"model 'broken:model' cannot be imported: SyntaxError: .*; mend it"),
        ("1 / 0", "broken:model", r"cannot be imported: ZeroDivisionError: division by zero \(broken.py, line 1\)"),
        (
            "def model():\n    raise KeyError('w')",
            "broken:model",
            r"broken:model raised KeyError: 'w' \(broken.py, line 2\)",
        ),
    ],
)
def test_code_that_breaks_is_told_with_its_line(some_models, text, spec, message):
    Path("broken.py").write_text(text)
    sys.modules.pop("broken", None)
    importlib.invalidate_caches()
    with pytest.raises(InputError, match=message):
        measured(spec)


def test_a_front_part_that_is_no_function_is_told(some_models):
    Path("some_models.py").write_text(MODELS + "\nthree = 3\n")
    some_models()
    with pytest.raises(InputError, match="some_models:three is a int; a front part is a function or nn.Module"):
        measured("some_models:attacked", through="some_models:three")


def test_an_attack_whose_code_was_changed_is_not_taken_for_the_one_measured(some_models):
    Path("an_attack.py").write_text("def nothing(model, x, y):\n    return x\n")
    measured("some_models:attacked", output="r", attacks=("clean", "an_attack:nothing"))
    Path("an_attack.py").write_text("def nothing(model, x, y):\n    return 1 * x\n")
    importlib.reload(sys.modules["an_attack"])
    with pytest.raises(InputError, match="an_attack:nothing was measured with code .*, this call asks for"):
        measured("some_models:attacked", output="r", attacks=("clean", "an_attack:nothing"))


def test_two_models_never_write_to_one_place(finished, small_digits, capsys):
    whole = finished(small_digits(epochs=2))
    for team in ("a", "b"):
        Path(team, "model").mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            Path(team, "model", name).write_bytes((whole / name).read_bytes())
    assert cli.main(["evaluate", "a/model", "b/model", "--n", "4", "--attacks", "clean"]) == 2
    assert "two of these would write to results/model" in capsys.readouterr().err and not Path("results").exists()


def test_half_precision_models_are_evaluated_by_the_command_too():
    assert measured("some_models:half").attacks["pgd2"]["n"] == 8


def test_a_clean_pass_that_took_all_the_time_is_kept():
    one = request.prepare_evaluation("some_models:attacked", asked(output="r"))
    with one.writing():
        assert len(list(one.measure(ends=0.0))) == 1
    assert list(json.loads(Path("r/results.json").read_text())["attacks"]) == ["clean"]


def test_a_sweep_takes_the_step_that_was_asked_for_and_each_budget_is_checked_first():
    one = request.prepare_evaluation("some_models:attacked", asked(step_size=0.002, sweep_eps=(0.05, 0.1)))
    with one.writing():
        list(one.measure())
        points = list(one.sweep())
        assert [number(p["attacks"]["pgd2"]["step_size"]) for p in points] == [0.002, 0.002]
        assert points[0]["attacks"]["pgd2"]["correct"] == one.results.attacks["pgd2"]["correct"]
    with pytest.raises(InputError, match="eps must be in .0, 1. for Linf, got 8"):
        request.prepare_evaluation("some_models:attacked", asked(sweep_eps=(8.0,)))
    with pytest.raises(InputError, match="step-size must be in"):
        request.prepare_evaluation("some_models:attacked", asked(step_size=0.05, sweep_eps=(0.01,)))


def test_corrupted_images_of_another_size_are_refused():
    test = data.load("digits", "test").first(8)
    Path("c").mkdir()
    np.save("c/fog.npy", np.concatenate([test.images.permute(0, 2, 3, 1).numpy()] * 5))
    np.save("c/labels.npy", np.concatenate([test.labels.numpy()] * 5))
    request.prepare_evaluation("some_models:attacked", asked(corruptions="c"))
    Path("some_models.py").write_text(MODELS.replace("64, 10", "256, 10"))
    sys.modules.pop("some_models")
    with pytest.raises(InputError, match="images in c are .1, 8, 8., those that the model gets here .1, 16, 16."):
        request.prepare_evaluation("some_models:attacked", asked(corruptions="c", img_size=16))


def test_verdicts_are_fp32_within_autocast_and_precisions_are_put_back(some_models):
    model = some_models().attacked
    with torch.autocast("cpu", torch.bfloat16), verdict_mode(model) as exact:
        assert exact(torch.rand(2, 1, 8, 8)).dtype == torch.float32
    for precision in ("medium", "high", "highest"):
        torch.set_float32_matmul_precision(precision)
        try:
            with verdict_mode(model):
                assert torch.get_float32_matmul_precision() == "highest"
            assert torch.get_float32_matmul_precision() == precision
        finally:
            torch.set_float32_matmul_precision("highest")


class Noisy(torch.nn.Module):
    """Its answers are random, as dropout's are."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)

    def forward(self, x):
        z = self.layer(x.flatten(1))
        return z + 0.3 * torch.randn_like(z)


def test_a_curve_of_a_random_model_never_lies_above_its_clean_accuracy():
    with pytest.warns(UserWarning, match="upper bound"):
        results = evaluate(Noisy(), "digits", ["fmn5"], n=60)
    curve = [point["attacks"]["fmn5"]["correct"] for point in results.sweep]
    assert max(curve) <= results.attacks["clean"]["correct"]
    assert (results.reach["fmn5"][~results.verdicts["clean"]] == 0).all()


def test_a_random_models_results_are_taken_up_as_they_were_measured(quick_autoattack):
    Path("some_models.py").write_text(MODELS + "\nfrom test_request import Noisy\nnoisy = Noisy()\n")
    sys.modules.pop("some_models", None)
    first = measured("some_models:noisy", output="r", attacks=("clean", "apgd-ce"))
    again = measured("some_models:noisy", output="r", attacks=("clean", "apgd-ce"))
    assert first.attacks["apgd-ce"]["version"] == "not standard"
    assert np.array_equal(first.verdicts["apgd-ce"], again.verdicts["apgd-ce"])
