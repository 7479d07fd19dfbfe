"""records.py: runs in groups, and what their curves and verdicts say, against closed forms and other libraries."""

import dataclasses
import json
import statistics
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from conftest import changed, made_run

from piat_hub import methods
from piat_hub.config import InputError, MixingConfig, TrainConfig, recipes
from piat_hub.records import groups
from piat_hub.records.groups import (
    CURVES,
    LAW,
    benchmarks,
    beside,
    common_attacks,
    generalisation_gap,
    grouped,
    mean_accuracy,
    mean_interval,
    oscillation,
    read_run,
    robust_gap,
    strongest,
    tracked_images,
    varied,
    with_and_without,
)
from piat_hub.records.labels import method_name
from piat_hub.records.published import PAPER_ATTACKS, method_of, paper
from piat_hub.records.statistics import proportion

DIGITS = recipes.get("digits")


def config(kind="piat", base=DIGITS, **changes):
    law = {k: changes.pop(k) for k in ("constant", "bn") if k in changes}
    return dataclasses.replace(base, interpolation=dataclasses.replace(base.interpolation, kind=kind, **law), **changes)


def line(epoch, held, train=0.9, **more):
    return {
        "epoch": epoch,
        "lam": 0.5,
        "holdout_clean_acc": 0.99,
        "holdout_pgd10_acc": held,
        "train_pgd10_acc": train,
    } | more


def run(correct=None, held=(0.5, 0.7, 0.6, 0.65), where="r", **changes):
    """A run whose attacks, of 400 images, left so many correct."""
    return made_run(where, config(**changes), [line(k, h) for k, h in enumerate(held, 1)], correct)


def test_groups_differ_by_their_seed_alone():
    runs = [run(kind="none", seed=s, method="nmse") for s in (0, 1)] + [run(seed=s) for s in (0, 1, 2)]
    assert {label: len(group) for label, group in grouped(runs).items()} == {"NMSE": 2, "PIAT+NMSE": 3}


def test_labels_say_what_differs_and_nothing_else():
    runs = [run(), run(method_args={"mu": 3.0}), run(bn="copy"), run(kind="constant", constant=0.3), run(method="mart")]
    assert list(grouped(runs)) == [
        "PIAT+NMSE, mu 5.0, bn interpolate",
        "PIAT+NMSE, mu 3.0, bn interpolate",
        "PIAT+NMSE, mu 5.0, bn copy",
        "lam=0.3+NMSE",
        "PIAT+MART",
    ]


def test_gaps_and_oscillation_against_their_definitions():
    held = [0.2, 0.5, 0.8, 0.6, 0.7, 0.4]
    metrics = [line(k, h, train=0.75) for k, h in enumerate(held, 1)]
    assert robust_gap(metrics) == pytest.approx(0.4)
    assert generalisation_gap(metrics) == pytest.approx(0.35)
    assert oscillation(metrics) == pytest.approx(float(np.diff(held[3:]).std(ddof=1)))
    steady = [line(k, 0.5 + 0.01 * k) for k in range(8)]
    assert oscillation(steady) == pytest.approx(0, abs=1e-12)  # a trend is no oscillation
    assert oscillation(metrics[:3]) is None  # one change has no standard deviation
    nothing = [m | {"holdout_pgd10_acc": None} for m in metrics]
    assert [of(nothing) for of in CURVES.values()] == [None] * 3


def test_the_interval_over_seeds_is_students():
    values = [0.8, 0.82, 0.85, 0.79, 0.81]
    mean, low, high = mean_interval(values)
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((statistics.fmean(values), expected.low, expected.high))
    with pytest.raises(ValueError, match="at least two values, got 1"):
        mean_interval([0.5])


def test_a_group_of_one_has_wilsons_interval_and_more_have_that_over_seeds():
    one, two = run({"clean": 390, "pgd20": 300}), run({"clean": 380, "pgd20": 320}, seed=1)
    assert mean_accuracy([one], "pgd20") == (0.75, *proportion(300, 400)["ci95"])
    mean, low, high = mean_interval([0.75, 0.8])
    assert high > 1 and mean_accuracy([one, two], "pgd20") == pytest.approx((mean, low, 1.0))
    assert mean_accuracy([one, run(seed=1)], "pgd20") is None and mean_accuracy([one], "aa") is None


def test_the_strongest_attack_measured_on_all():
    runs = [run({"pgd20": 300, "clean": 390, "aa": 200}), run({"clean": 390, "pgd20": 310, "cw20": 290}, seed=1)]
    assert common_attacks(runs) == ["clean", "pgd20"] and strongest(runs) == "pgd20"
    assert common_attacks(runs[1:]) == ["clean", "pgd20", "cw20"] and strongest(runs[1:]) == "cw20"
    for none in ([run()], [run({"clean": 1})]):
        with pytest.raises(InputError, match="no attack was measured on all runs; evaluate them with the same"):
            strongest(none)


def test_one_configuration_and_seed_twice_is_no_second_seed():
    with pytest.raises(InputError, match="a and b are one configuration and seed; give one of them"):
        grouped([run(where="a"), run(where="b")])


def test_settings_without_effect_tell_no_groups_apart():
    runs = [run(kind="none", constant=0.3), run(kind="none", bn="copy", seed=1), run(constant=0.5), run(seed=1)]
    assert {label: len(group) for label, group in grouped(runs).items()} == {"NMSE": 2, "PIAT+NMSE": 2}


def test_a_methods_field_is_not_the_trainings_of_that_name():
    smooth = [run(method="score", mixing=MixingConfig(smoothing=s), seed=int(s > 0)) for s in (0.0, 0.1)]
    assert [len(group) for group in grouped(smooth).values()] == [1, 1]
    own = [run(method="score", method_args={"smoothing": s}, seed=int(s > 0)) for s in (0.0, 0.1)]
    assert [len(group) for group in grouped(own).values()] == [1, 1]


def test_what_varies_alone_is_told_from_what_varies_with_more():
    lams = [run(kind="none"), run(), run(kind="constant", constant=0.3)]
    others = [run(method_args={"mu": 3.0}), run(ema=0.9), run(kind="none", epochs=8)]
    assert [g[0] for g in varied([*others, *lams], *LAW)] == lams
    assert [g[0] for g in varied([*others, *lams], "mu")] == [others[0], lams[1]]


def test_pairs_with_and_without_piat_differ_in_nothing_else():
    plain, piat = run(kind="none"), run()
    strays = [
        run(kind="constant", constant=0.3),
        run(bn="copy"),
        run(ema=0.9),
        run(method="mart"),
        run(method_args={"mu": 3.0}),
    ]
    assert with_and_without([*strays, piat, plain]) == {"NMSE": ([plain], [piat])}
    assert with_and_without([plain, *strays]) == {}
    idle = run(constant=0.5, seed=1)  # a constant that g(n) does not use
    assert with_and_without([plain, idle]) == {"NMSE": ([plain], [idle])}


def test_curves_are_of_test_images_where_every_run_tracked_those():
    held = run()
    metrics = [m | {"test_clean_acc": 0.9, "test_pgd10_acc": 0.4} for m in held.metrics]
    tracked = changed(held, metrics=metrics)
    assert groups.tracked([tracked]) == "test" and "test images" in tracked_images([tracked])
    assert (
        groups.tracked([tracked, held])
        == "holdout"
        == groups.tracked([changed(held, metrics=[*metrics[:2], *held.metrics[2:]])])
    )
    assert tracked_images([held, run(holdout=40)]) == "40 or 150 held-out images"
    with pytest.raises(InputError, match="no held-out images; train with --holdout above 0, or with --track-test"):
        groups.tracked([changed(held, metrics=[m | {"holdout_pgd10_acc": None} for m in held.metrics])])


def test_other_images_by_the_same_name_do_not_compare():
    one, two = run({"clean": 390}, where="a"), run({"clean": 390}, where="b", seed=1)
    one.measured[0].record.images, two.measured[0].record.images = "x", "y"
    with pytest.raises(InputError, match="a and b were measured on other images, both called digits, Linf eps 0.15"):
        benchmarks([one, two])
    two.measured[0].record.images = ""  # of before it was recorded
    assert benchmarks([one, two]) == {"digits, Linf eps 0.15": [one, two]}


def test_other_labels_of_the_same_images_do_not_pair(evaluated, tmp_path):
    import shutil

    import numpy as np

    from piat_hub.records.compare import compare

    shutil.copytree(evaluated, tmp_path / "s")
    with np.load("s/verdicts.npz") as file:
        arrays = {name: file[name] for name in file.files}
    np.savez("s/verdicts.npz", **arrays | {"label": 9 - arrays["label"]})  # the same classes, numbered otherwise
    assert compare(evaluated, tmp_path / "s")
    np.savez("s/verdicts.npz", **arrays | {"label": arrays["label"] // 2})
    with pytest.raises(InputError, match="was measured with other labels of these images"):
        compare(evaluated, tmp_path / "s")


def test_a_run_measured_only_at_its_best_has_no_attack_of_its_last_weights():
    best = run({"clean": 390, "pgd20": 300})
    best = changed(best, measured=[dataclasses.replace(best.measured[0], checkpoint="best")])
    assert common_attacks([best]) == [] and best.figures("pgd20") is None


def test_every_row_of_the_papers_tables_is_a_method_we_have():
    assert len(paper()) == 51
    for row in paper():
        method, kind = method_of(row["method"])
        methods.get(method)
        assert kind == ("piat" if row["method"].startswith("PIAT") else "none")
        again = method_name(config(kind, base=TrainConfig(), method=method))
        assert again == row["method"].replace("PGD-AT+NMSE", "NMSE")


def test_published_rows_stand_beside_the_papers_own_data_only():
    real = recipes.get("resnet18-cifar10")
    assert beside(real)["aa"] == pytest.approx(0.4880) and beside(real)["pgd20"] == pytest.approx(0.5354)
    assert set(beside(real)) == set(PAPER_ATTACKS.values())
    assert beside(config("none", base=recipes.get("wrn-32-10-cifar100"), method="trades"))["aa"] == pytest.approx(
        0.2676
    )
    assert beside(dataclasses.replace(real, epochs=30, clean_epochs=0, holdout=1000, seed=3)) == beside(real)
    weaker = dataclasses.replace(real.threat_model, eps=4 / 255)
    for other in (
        dataclasses.replace(real, dataset="cifar10-jpeg"),
        dataclasses.replace(real, dataset="local-cifar10"),
        dataclasses.replace(real, threat_model=weaker),
        dataclasses.replace(real, backbone="cifar_resnet20"),
        dataclasses.replace(real, awp=0.01),
        dataclasses.replace(real, img_size=16),
        dataclasses.replace(real, method_args={"mu": 3.0}),
        dataclasses.replace(real, extra_data="1m.npz", extra_images=1_000_000),
        dataclasses.replace(real, init_from="ORG/NAME"),
        dataclasses.replace(real, attack=dataclasses.replace(real.attack, steps=1)),
        dataclasses.replace(real, lr=1.0, batch_size=1024),
        dataclasses.replace(real, train_size=5000),
        dataclasses.replace(real, interpolation=dataclasses.replace(real.interpolation, bn="copy")),
        config("constant", base=real),
        config("none", base=real, method="fat"),
        DIGITS,
    ):
        assert beside(other) == {}


def test_only_runs_of_one_benchmark_compare():
    other = dataclasses.replace(DIGITS.threat_model, eps=0.1)
    found = benchmarks([run(), run(threat_model=other), run(seed=1)])
    assert {name: len(group) for name, group in found.items()} == {
        "digits, Linf eps 0.15": 2,
        "digits, Linf eps 0.1": 1,
    }


def test_a_run_is_read_from_its_directory(small_digits, trained, do_evaluate):
    trained(small_digits(epochs=2))
    do_evaluate("r", "pgd2", n=50)
    read = read_run("r")
    assert len(read.metrics) == 2 and read.figures("pgd2")["n"] == 50 and read.figures("aa") is None
    do_evaluate("r", "pgd3", n=50, eps=0.01, output="r/weak")  # another question of the same weights
    read = read_run("r")
    assert read.figures("pgd3") is None
    assert [m.name for m in read.elsewhere] == ["weak/last"] and [m.name for m in read.results] == ["last"]
    Path("empty").mkdir()
    with pytest.raises(InputError, match="empty is no run directory"):
        read_run("empty")
    lines = [{k: v for k, v in m.items() if k != "holdout_pgd10_acc"} for m in read.metrics]
    Path("r/timing.jsonl").unlink()
    Path("r/metrics.jsonl").write_text("".join(f"{json.dumps(m)}\n" for m in lines))
    with pytest.raises(InputError, match="metrics.jsonl is damaged in line 1 .it must have .*holdout_pgd10_acc"):
        read_run("r")
    Path("r/metrics.jsonl").unlink()
    with pytest.raises(InputError, match="no metrics.jsonl with an epoch"):
        read_run("r")
