"""figures.py: the lines hold the metrics, in percent, and say what they are."""

import dataclasses
from xml.etree import ElementTree

import pytest
import torch
from conftest import changed, made_run

from piat_hub.config import InputError, recipes
from piat_hub.figures import NAMES, gallery, pictures, plots, probes
from piat_hub.figures.style import GREY, WITH, WITHOUT, save, spread
from piat_hub.records.statistics import proportion

METRICS = [
    {"epoch": e, "lam": e / 10, "holdout_clean_acc": 0.5 + e / 10, "holdout_pgd10_acc": 0.3, "train_pgd10_acc": 0.31}
    for e in (1, 2, 3)
]


def test_curves_hold_the_metrics():
    top, bottom = plots.curves(METRICS, "title").axes
    lines = {line.get_label(): list(line.get_ydata()) for line in top.lines}
    assert lines["clean, held out"] == pytest.approx([60, 70, 80])
    assert lines["PGD-10, held out"] == pytest.approx([30] * 3)
    assert list(bottom.lines[0].get_ydata()) == [0.1, 0.2, 0.3]
    assert top.get_title() == "title" and top.get_ylabel() == "accuracy (%)" and bottom.get_xlabel() == "epoch"
    texts = sorted(t.get_text() for t in top.texts)
    assert texts == ["PGD-10, held out: 30.0 %", "PGD-10, training images: 31.0 %", "clean, held out: 80.0 %"]
    heights = sorted(t.xy[1] for t in top.texts)
    assert heights[1] - heights[0] >= 5  # labels do not lie on each other


def test_series_that_were_not_measured_are_left_out():
    top = plots.curves([m | {"holdout_clean_acc": None, "holdout_pgd10_acc": None} for m in METRICS]).axes[0]
    assert [line.get_label() for line in top.lines] == ["PGD-10, training images"]


def test_png_is_written_whole(tmp_path):
    save(plots.curves(METRICS), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]


def test_sweep_draws_each_attack_against_eps_with_its_interval():
    def point(eps, accuracy):
        return {"eps": eps, "attacks": {"pgd20": {"accuracy": accuracy, "ci95": [accuracy - 0.1, accuracy + 0.05]}}}

    figure = plots.sweep([point("2/255", 0.8), point("8/255", 0.4)], title="mine")
    (axis,) = figure.axes
    (line, _caps, (bars,)) = axis.containers[0]
    assert line.get_xdata().tolist() == [2 / 255, 8 / 255] and line.get_ydata().tolist() == [80.0, 40.0]
    low, high = bars.get_segments()[1][:, 1]
    assert (round(low, 6), round(high, 6)) == (30, 45)
    assert [t.get_text() for t in axis.texts] == ["PGD-20"] and axis.get_title() == "mine"


def test_a_sweep_leaves_no_attack_out():
    found = {"accuracy": 0.5, "ci95": [0.4, 0.6]}
    names = [f"pgd{k}" for k in range(1, 9)]
    points = [{"eps": "1/255", "attacks": {"pgd1": found}}, {"eps": "2/255", "attacks": dict.fromkeys(names, found)}]
    (axis,) = plots.sweep(points).axes
    assert len(axis.containers) == len(axis.texts) == 8


def runs_of(*configs, correct=(390, 300), epochs=6):
    """Runs without files: each of (changes of the digits recipe), attacked by PGD-20 on 400 images."""
    found = []
    for k, changes in enumerate(configs):
        law = {key: changes[key] for key in ("kind", "constant", "a", "c", "bn") if key in changes}
        changes = {key: value for key, value in changes.items() if key not in law}
        base = recipes.get("digits")
        config = dataclasses.replace(base, interpolation=dataclasses.replace(base.interpolation, **law), **changes)
        lam = {"none": 0.0, "constant": config.interpolation.constant}.get(config.interpolation.kind, 0.5)
        metrics = [
            {
                "epoch": e,
                "lam": lam,
                "holdout_clean_acc": 0.9,
                "holdout_pgd10_acc": 0.1 * e + 0.01 * k,
                "train_pgd10_acc": 0.8,
            }
            for e in range(1, epochs + 1)
        ]
        found.append(made_run(f"r{k}", config, metrics, {"clean": correct[0] - k, "pgd20": correct[1] - 10 * k}))
    return found


def caption(figure):
    return figure.get_label()


def test_epochs_draw_the_mean_over_seeds_and_the_range():
    runs = runs_of(*({"seed": s} for s in (0, 1, 2)), {"kind": "none", "method": "pgd_at"})
    clean, robust = plots.epochs(runs).axes
    lines = {line.get_label(): line for line in robust.lines}
    assert list(lines["PIAT+NMSE"].get_ydata()) == pytest.approx([10 * e + 1 for e in range(1, 7)])
    assert list(lines["PGD-AT"].get_ydata()) == pytest.approx([10 * e + 3 for e in range(1, 7)])
    (band,) = robust.collections
    assert band.get_paths()[0].vertices[:, 1].min() == pytest.approx(10)
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(62)
    assert sorted(t.get_text() for t in robust.texts) == ["PGD-AT", "PIAT+NMSE"]
    assert clean.get_ylabel() == "clean accuracy (%)" and robust.get_ylabel() == "PGD-10 accuracy (%)"
    assert "150 held-out images of digits, Linf eps 0.15; mean of seeds 0, 1, 2" in caption(plots.epochs(runs))


def test_epochs_are_of_test_images_where_those_were_tracked():
    (run,) = runs_of({})
    tracked = [m | {"test_clean_acc": 0.5, "test_pgd10_acc": 0.25} for m in run.metrics]
    figure = plots.epochs([changed(run, metrics=tracked)])
    assert list(figure.axes[1].lines[0].get_ydata()) == [25] * 6 and "1,000 test images" in caption(figure)


def test_many_methods_have_a_panel_each():
    names = ["pgd_at", "trades", "mart", "alp", "nmse"]
    runs = runs_of(*({"method": m, "kind": kind} for m in names for kind in ("none", "piat")))
    shown = [axis for axis in plots.epochs(runs).axes if axis.get_visible()]
    assert [axis.get_title() for axis in shown] == ["PGD-AT", "TRADES", "MART", "ALP", "NMSE"]
    assert all(len(axis.lines) == 4 for axis in shown)  # clean and PGD-10, without and with


def test_interpolation_draws_two_bars_a_method_with_their_intervals():
    runs = runs_of(*({"method": m, "kind": kind} for m in ("pgd_at", "trades") for kind in ("none", "piat")))
    (axis,) = plots.interpolation(runs).axes
    assert sorted(round(bar.get_width(), 2) for bar in axis.patches) == [67.5, 70.0, 72.5, 75.0]
    low, high = (100 * end for end in proportion(300, 400)["ci95"])
    assert any(list(line.get_xdata()) == pytest.approx([low, high]) for line in axis.lines)
    assert [t.get_text() for t in axis.get_yticklabels()] == ["TRADES", "PGD-AT"]
    assert axis.get_xlabel() == "PGD-20 accuracy (%)" and "of one model (Wilson)" in caption(plots.interpolation(runs))
    with pytest.raises(InputError, match="no method has runs with and without PIAT"):
        plots.interpolation(runs[:1])


def test_interpolation_prefers_autoattack_of_the_runs_that_have_it():
    runs = runs_of(*({"method": "pgd_at", "kind": kind, "seed": s} for kind in ("none", "piat") for s in (0, 1)))
    for run in runs[::2]:
        run.measured.extend(made_run("r", run.config, correct={"aa": 40}, n=100).measured)
    figure = plots.interpolation(runs)
    assert [bar.get_width() for bar in figure.axes[0].patches] == [40.0, 40.0]
    assert "AutoAttack accuracy on 100 test images" in caption(figure) and "seed 0," in caption(figure)


def test_lambdas_draw_each_schedule_and_its_accuracy():
    laws = [{"kind": "none"}, {"kind": "constant", "constant": 0.3}, {"kind": "piat"}]
    figure = plots.lambdas(runs_of(*(law | {"seed": s} for law in laws for s in (0, 1))))
    top, bottom = figure.axes
    assert {line.get_label(): line.get_ydata()[0] for line in top.lines} == {"0": 0.0, "0.3": 0.3, "g(n)": 0.5}
    means = [container[0].get_ydata()[0] for container in bottom.containers]
    assert means == pytest.approx([73.75, 68.75, 63.75])
    assert [t.get_text() for t in bottom.get_xticklabels()] == ["λ = 0", "λ = 0.3", "λ = g(n)"]
    assert [len(dots.get_offsets()) for dots in bottom.collections if len(dots.get_offsets()) > 1] == [2, 2, 2]
    with pytest.raises(InputError, match="fewer than three schedules of lam among runs that share all else"):
        plots.lambdas(runs_of({}, {"kind": "none"}))


def test_lambdas_at_other_speeds_are_told_apart_and_stand_in_their_order():
    speeds = [{"kind": "piat", "a": s, "c": s} for s in (1.0, 4.0, 0.0625)]
    others = [{"kind": "piat", "a": 1.0, "c": 2.0}, {"kind": "piat", "bn": "copy"}]
    runs = runs_of({"kind": "none"}, *speeds, *others)
    for run, lam in zip(runs, (0.0, 0.5, 0.8, 0.2, 0.4, 0.5), strict=True):
        for metrics in run.metrics:
            metrics["lam"] = lam
    ticks = [t.get_text() for t in plots.lambdas(runs).axes[1].get_xticklabels()]
    assert ticks == [f"λ = {law}" for law in ("0", "g(0.0625n)", "(1n + 1) / (2n + 10)", "g(n)", "g(4n)")]


def test_two_schedules_of_one_name_are_both_drawn():
    laws = [
        {"kind": "none"},
        {"kind": "constant", "constant": 0.0},
        {"kind": "constant", "constant": 0.3},
        {"kind": "piat"},
    ]
    ticks = [t.get_text() for t in plots.lambdas(runs_of(*laws)).axes[1].get_xticklabels()]
    assert sorted(ticks) == ["λ = 0", "λ = 0", "λ = 0.3", "λ = g(n)"]


def test_lambdas_leave_other_averages_out():
    laws = [{"kind": "none"}, {"kind": "none", "ema": 0.99}, {"kind": "constant", "constant": 0.3}, {"kind": "piat"}]
    bottom = plots.lambdas(runs_of(*laws)).axes[1]
    assert len(bottom.containers) == 3


def test_mus_draw_clean_and_robust_against_mu():
    figure = plots.mus(runs_of({"method_args": {"mu": 3.0}}, {}, {"method_args": {"mu": 6.0}}))
    clean, robust = figure.axes
    assert [c[0].get_xdata()[0] for c in robust.containers] == [3, 5, 6]
    assert [c[0].get_ydata()[0] for c in robust.containers] == [75, 72.5, 70]
    assert [c[0].get_ydata()[0] for c in clean.containers] == [97.5, 97.25, 97]
    with pytest.raises(InputError, match="piat study mu"):
        plots.mus(runs_of({}))


def test_gaps_have_a_dot_a_run_and_a_tick_at_the_mean():
    figure = plots.gaps(runs_of({"seed": 0}, {"seed": 1}, {"kind": "none"}))
    overfitting, generalisation, oscillation = figure.axes
    assert [t.get_text() for t in overfitting.get_yticklabels()] == ["NMSE", "PIAT+NMSE"]
    dots = [list(c.get_offsets()[:, 0]) for c in generalisation.collections]
    assert dots == [pytest.approx([18.0]), pytest.approx([20.0, 19.0])]  # .8 minus the last held-out value
    ticks = [line.get_xdata()[0] for line in generalisation.lines if line.get_marker() == "|"]
    assert ticks == pytest.approx([18, 19.5])
    flat = [x for c in [*overfitting.collections, *oscillation.collections] for x in c.get_offsets()[:, 0]]
    assert flat == pytest.approx([0] * 6)
    with pytest.raises(InputError, match="need held-out images"):
        plots.gaps(runs_of({}, epochs=2))


def test_what_the_captions_call_intervals():
    none, piat = ([{"kind": kind, "seed": s} for s in (0, 1)] for kind in ("none", "piat"))
    assert "seeds 0, 1, 95 % intervals over seeds (Student's t)" in caption(plots.interpolation(runs_of(*none, *piat)))
    assert "seeds 0, 1, 95 % intervals of one model (Wilson)" in caption(plots.interpolation(runs_of(none[0], piat[1])))
    mixed = caption(plots.interpolation(runs_of(*none, piat[0])))
    assert "over seeds (Student's t), of one model (Wilson) where there is one" in mixed


def test_figures_leave_out_what_differs_in_more():
    laws = [{"kind": "none"}, {"kind": "constant", "constant": 0.3}, {"kind": "piat"}]
    strays = [{"method_args": {"mu": 3.0}}, {"kind": "piat", "epochs": 9}, {"method": "mart"}, {"ema": 0.9}]
    bottom = plots.lambdas(runs_of(*laws, *strays)).axes[1]
    assert [c[0].get_ydata()[0] for c in bottom.containers] == pytest.approx([75, 72.5, 70])
    weights = [{}, {"ema": 0.9}, {"method_args": {"mu": 3.0}}, {"kind": "none", "method_args": {"mu": 4.0}}]
    robust = plots.mus(runs_of(*weights)).axes[1]
    assert [(c[0].get_xdata()[0], c[0].get_ydata()[0]) for c in robust.containers] == [(3, 70), (5, 75)]
    (axis,) = plots.interpolation(runs_of(*laws)).axes
    assert [bar.get_width() for bar in axis.patches] == [75, 70]


def test_a_constant_lam_is_not_shown_as_piat():
    methods = [{"method": m, "kind": kind} for m in ("pgd_at", "trades", "mart") for kind in ("none", "piat")]
    lams = [{"kind": "none"}, {"kind": "constant", "constant": 0.1}, {"kind": "piat"}, {"method_args": {"mu": 3.0}}]
    figure = plots.epochs(runs_of(*methods, *lams))
    panels = {axis.get_title(): axis for axis in figure.axes if axis.get_visible()}
    assert list(panels) == ["PGD-AT", "TRADES", "MART", "NMSE", "lam=0.1+NMSE", "PIAT+NMSE, mu 3.0"]
    assert {line.get_color() for line in panels["lam=0.1+NMSE"].lines} == {GREY}
    assert {line.get_color() for line in panels["NMSE"].lines} == {WITHOUT, WITH}


def test_all_or_none_correct_are_no_error(tmp_path):
    every, none = runs_of({}, correct=(400, 400)), runs_of({"kind": "none"}, correct=(400, 0))
    save(plots.scatter([*every, *none]), tmp_path / "x.png")
    save(plots.interpolation([*every, *none]), tmp_path / "y.png")


def test_without_held_out_images_there_are_no_curves():
    (run,) = runs_of({})
    bare = changed(run, metrics=[m | {"holdout_clean_acc": None, "holdout_pgd10_acc": None} for m in run.metrics])
    with pytest.raises(InputError, match="no held-out images"):
        plots.epochs([bare])


def test_scatter_has_both_intervals_and_a_label_each():
    (axis,) = plots.scatter(runs_of({}, {"kind": "none"})).axes
    points = {c.get_label(): (c[0].get_xdata()[0], c[0].get_ydata()[0]) for c in axis.containers}
    assert points == {"PIAT+NMSE": (97.5, 75.0), "NMSE": (97.25, 72.5)}
    assert all(c.has_xerr and c.has_yerr for c in axis.containers)
    assert sorted(t.get_text() for t in axis.texts) == ["NMSE", "PIAT+NMSE"]


def test_scatter_takes_clean_and_robust_accuracy_from_the_same_images():
    (run,) = runs_of({})
    few = made_run("r", run.config, correct={"clean": 90, "aa": 50}, n=100).measured
    figure = plots.scatter([changed(run, measured=[*run.measured, *few])])
    (point,) = figure.axes[0].containers
    assert (point[0].get_xdata()[0], point[0].get_ydata()[0]) == (90, 50) and "on 100 test images" in caption(figure)


def test_two_landscapes_share_one_vertical_scale_and_one_set_of_levels():
    low = probes.Surface([-1.0, 0.0, 1.0], [[1.0, 0.5, 1.0]] * 3, False, 10, 10, "Linf eps 0.15", 0)
    high = dataclasses.replace(low, losses=[[4.0, 2.0, 4.0]] * 3)
    figure = pictures.landscape({"a": low, "b": high})
    solid = [axis for axis in figure.axes if axis.name == "3d"]
    flat = [axis for axis in figure.axes if axis.name != "3d"]
    assert [axis.get_zlim() for axis in solid] == [(0, 4)] * 2
    levels = [axis.collections[0].levels.tolist() for axis in flat]
    assert levels[0] == levels[1] and levels[0][0] == pytest.approx(0.5) and levels[0][-1] == pytest.approx(4)
    assert [axis.get_title() for axis in flat] == [
        "loss 0.50 at the weights, 0.88 on average at the edge",
        "loss 2.00 at the weights, 3.50 on average at the edge",
    ]
    assert "PGD-10, Linf eps 0.15" in caption(figure) and "as long as the weights" in caption(figure)


def test_images_show_the_perturbation_magnified_and_both_predictions():
    x = torch.full((2, 3, 4, 4), 0.5)
    delta = torch.zeros_like(x)
    delta[0, 0, 0, 0], delta[1, 2, 3, 3] = 0.125, -0.125
    shown = probes.Examples(
        x, x + delta, torch.tensor([0, 1]), torch.tensor([[0, 1], [1, 1]]), "PGD-20, Linf eps 0.125"
    )
    figure = pictures.images(shown, ["cat", "dog"], "mine")
    grid = [axis.images[0].get_array() for axis in figure.axes]
    assert len(grid) == 6 and grid[2][0, 0].tolist() == [1.0, 0.5, 0.5] and grid[3][3, 3].tolist() == [0.5, 0.5, 0.0]
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["cat ✓", "dog ✓", "", "", "dog ✗", "dog ✓"]
    assert figure.axes[2].get_ylabel() == "perturbation x 4" and "magnified 4 times" in caption(figure)
    long = pictures.images(shown, ["cat", "great white shark, man-eater"], "mine")
    assert [axis.get_title() for axis in long.axes[:2]] == ["cat ✓", "great white sha… ✓"]


def test_saved_figures_carry_their_caption_and_are_the_same_bytes_each_time(tmp_path):
    for name in ("a", "b"):
        save(plots.epochs(runs_of({})), tmp_path / f"{name}.svg")
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    root = ElementTree.fromstring(text)
    words = " ".join("".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text"))
    assert "held-out images of digits, Linf eps 0.15" in words and "PGD-10 accuracy (%)" in words


def test_labels_move_apart_in_both_directions():
    assert spread([1, 2, 3], 2) == [1, 3, 5]
    assert spread([1, 2, 3], 2, top=4) == [0, 2, 4]
    assert spread([], 1) == []


def test_a_names_underscores_and_dollars_are_no_formula(tmp_path):
    save(plots.curves(METRICS, "a_b $c$"), tmp_path / "x.svg")
    assert "a_b $c$" in (tmp_path / "x.svg").read_text()


def test_every_figure_that_records_give_can_be_asked_for():
    assert {*gallery.FROM_RECORDS, *gallery.IMAGES} == set(NAMES)
