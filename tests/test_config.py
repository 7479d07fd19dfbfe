"""config.py: fractions, validation, and the exact round trip through JSON."""

import dataclasses
import json

import pytest

from piat_hub import cli
from piat_hub.config import (
    AttackConfig,
    EvalConfig,
    InputError,
    InterpolationConfig,
    ScheduleConfig,
    ThreatModel,
    TrainConfig,
    from_dict,
    nearest,
    number,
    pixels,
    recipes,
    to_dict,
)
from piat_hub.training.guards import refuse_idle


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), ("0.15", 0.15), ("1e-3", 1e-3), (0.5, 0.5), ("2", 2.0), ("0.5/255", 0.5 / 255)],
)
def test_number_reads_fractions_and_decimals(text, value):
    assert number(text) == value


@pytest.mark.parametrize("text", ["", "eight", "8/0", "nan", "inf", "1e999", "8//255", None, True, "1" * 5000, 10**400])
def test_number_refuses_what_is_no_finite_number(text):
    with pytest.raises(InputError, match="8/255"):
        number(text)


def test_an_exponent_without_end_is_zero_at_once():
    assert number("1e-999999999") == 0.0 and number("-3/4") == -0.75


def test_only_near_names_are_offered():
    known = ["--img-size", "--opt", "--epochs", "--method"]
    assert nearest("--optimizer", known) == " (did you mean '--opt'?)"
    assert nearest("--optimizer", ["--img-size", "--epochs"]) == nearest("--lr", known) == ""
    assert nearest("--epoch", known) == " (did you mean '--epochs'?)"


@pytest.mark.parametrize("value", [8 / 255, 2 / 255, 0.15, 0.0375, 1.0, 128 / 255, 1e-4])
def test_pixels_is_undone_by_number(value):
    assert number(pixels(value)) == value


def test_pixels_prefers_levels():
    assert pixels(8 / 255) == "8/255"
    assert pixels(0.15) == "0.15"


@pytest.mark.parametrize("eps", [0.0, -1.0, 1.01])
def test_linf_budget_lies_in_the_unit_interval(eps):
    with pytest.raises(InputError, match="eps"):
        ThreatModel("Linf", eps)


def test_l2_budget_may_exceed_one():
    assert ThreatModel("L2", 2.0).eps == 2.0
    with pytest.raises(InputError, match="eps"):
        ThreatModel("L2", 0.0)


def test_unknown_norm_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'Linf'"):
        ThreatModel("linf", 0.1)


@pytest.mark.parametrize("step_size", [0.0, 17 / 255])
def test_step_size_is_at_most_twice_eps(step_size):
    with pytest.raises(InputError, match="step-size"):
        TrainConfig(attack=AttackConfig(step_size=step_size))
    TrainConfig(attack=AttackConfig(step_size=16 / 255))
    TrainConfig(attack=AttackConfig(step_size=1.0, crafting="apgd"))  # whose steps are its own


def test_a_step_is_a_quarter_of_eps_unless_it_is_given():
    assert TrainConfig().step_size == 2 / 255 and recipes.get("digits").step_size == 0.0375
    assert TrainConfig(threat_model=ThreatModel("L2", 0.5)).step_size == 0.125
    assert TrainConfig(attack=AttackConfig(step_size=0.01)).step_size == 0.01
    shorter = dataclasses.replace(recipes.get("digits"), attack=AttackConfig(step_size=0.01))
    assert recipes.words(shorter) == ["digits", "--step-size", "0.01"]
    same = dataclasses.replace(recipes.get("digits"), attack=AttackConfig(step_size=0.0375))
    assert recipes.words(same) == ["digits"]


def test_another_norm_wants_a_budget_of_its_own():
    with pytest.raises(
        InputError, match="norm L2 needs a budget of its own, Linf eps 8/255 says nothing of it; give --eps"
    ):
        EvalConfig(norm="L2").threat_model(ThreatModel())
    assert EvalConfig(norm="L2", eps=0.5).threat_model(ThreatModel()) == ThreatModel("L2", 0.5)
    assert EvalConfig(norm="L2").threat_model(ThreatModel("L2", 0.5)) == ThreatModel("L2", 0.5)
    with pytest.raises(InputError, match="eps"):
        EvalConfig(norm="Linf", eps=8.0)


def test_swa_begins_where_its_share_says():
    assert [TrainConfig(swa=share, epochs=100).swa_start for share in (0.56, 0.57, 0.58)] == [57, 58, 59]


def test_a_run_needs_an_adversarial_epoch():
    with pytest.raises(InputError, match="no adversarial epoch"):
        TrainConfig(epochs=3, clean_epochs=3)
    assert TrainConfig(epochs=3, clean_epochs=2).warmup == 2


def test_score_has_clean_epochs_only_where_they_are_asked_for():
    assert TrainConfig(method="trades").warmup == 10 and TrainConfig(method="score").warmup == 0
    assert TrainConfig(method="score", clean_epochs=2).warmup == 2


@pytest.mark.parametrize(
    "law", [dict(a=2.0, c=1.0), dict(b=11.0), dict(d=1.0), dict(kind="ema"), dict(constant=1.0), dict(start_epoch=0)]
)
def test_interpolation_law_stays_below_one(law):
    with pytest.raises(InputError):
        InterpolationConfig(**law)


@pytest.mark.parametrize(
    ("changes", "partner"),
    [
        (lambda: dict(interpolation=InterpolationConfig(constant=0.5)), "--interpolation constant"),
        (lambda: dict(interpolation=InterpolationConfig(start_epoch=50), epochs=40), "--interpolation none"),
        (lambda: dict(schedule=ScheduleConfig(min_lr=1e-3)), "--sched cosine or onecycle"),
    ],
)
def test_what_would_do_nothing_is_refused_with_what_it_goes_with(changes, partner):
    with pytest.raises(InputError, match=partner):
        refuse_idle(TrainConfig(**changes()))


@pytest.mark.parametrize(
    "words",
    [
        ["--interpolation", "none", "--interpolation.a", ".5"],
        ["--interpolation", "constant", "--interpolation.d", "20"],
        ["--interpolation", "none", "--interpolation.bn", "copy"],
        ["--augment", "pad", "--scale", ".5", "1"],
        ["--method", "n_fgsm", "--steps", "5"],
        ["--method", "standard", "--eps-warmup-epochs", "1"],
        ["--crafting", "apgd", "--step-size", "2/255"],
        ["--sched", "cosine", "--warmup-lr", ".001"],
    ],
)
def test_a_flag_that_does_nothing_is_told_with_what_it_goes_with(words, capsys, monkeypatch):
    monkeypatch.setattr("piat_hub.cli.train.run_training", lambda config, options: None)
    assert cli.main(["train", "digits", *words]) == 0
    flag = next(word for word in words[2:] if word.startswith("--"))
    assert capsys.readouterr().out.startswith(f"warning: {flag} does nothing here; it goes with ")
    assert cli.main(["train", "digits"]) == 0 and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", 2.5),
        ("batch_size", 0),
        ("lr", 0.0),
        ("momentum", 1.0),
        ("holdout", -1),
        ("flip", "yes"),
    ],
)
def test_fields_hold_their_type_and_range(field, value):
    with pytest.raises(InputError, match=field.replace("_", "-")):
        TrainConfig(**{field: value})


@pytest.mark.parametrize("name", recipes.names())
def test_round_trip_through_json(name):
    config = recipes.get(name)
    text = json.dumps(to_dict(config))
    assert from_dict(TrainConfig, json.loads(text)) == config


def test_pixel_distances_are_written_as_text():
    written = to_dict(TrainConfig())
    assert written["threat_model"] == {"norm": "Linf", "eps": "8/255"}
    assert to_dict(TrainConfig(attack=AttackConfig(step_size=2 / 255)))["attack"]["step_size"] == "2/255"


def test_unknown_field_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'epochs'"):
        from_dict(TrainConfig, {"epoch": 3})
    with pytest.raises(InputError, match="named values"):
        from_dict(TrainConfig, [1])


@pytest.mark.parametrize("knots", [(), ((0.5, 1.0),), ((0.7, 1.0), (0.5, 0.1), (1.0, 0.01))])
def test_knots_rise_to_the_end_of_the_run(knots):
    with pytest.raises(InputError, match="lr_knots"):
        TrainConfig(lr_knots=knots)


def test_evaluation_takes_the_models_threat_model_unless_told():
    trained = ThreatModel("L2", 0.5)
    assert EvalConfig().threat_model() == ThreatModel("Linf", 8 / 255)
    assert EvalConfig().threat_model(trained) == trained
    assert EvalConfig(eps=1.5).threat_model(trained) == ThreatModel("L2", 1.5)
    with pytest.raises(InputError):
        EvalConfig(eps=1.5).threat_model()


@pytest.mark.parametrize("text", ["two\nlines", "\x1b[31mred", "hf_" + 34 * "a"])
def test_no_setting_holds_what_cannot_be_printed_or_a_token(text):
    with pytest.raises(InputError, match="must be printable text without a Hub token") as error:
        TrainConfig(dataset=text)
    assert "aaaaaaaa" not in str(error.value) and str(error.value).isprintable()


def test_a_message_is_one_printable_line_without_a_token():
    said = str(InputError(f"two\nlines, \x1b[31mred, hf_{34 * 'a'}, /mnt/hf_datasets/x and " + "long " * 1000))
    assert said.startswith("two\ufffdlines, \ufffd[31mred, hf_…, /mnt/hf_datasets/x and long") and len(said) < 2100
