"""figures.py: the lines hold the metrics, in percent, and say what they are."""

import pytest

from piat_hub import figures

METRICS = [
    {"epoch": e, "lam": e / 10, "holdout_clean_acc": 0.5 + e / 10, "holdout_pgd10_acc": 0.3, "train_pgd10_acc": 0.31}
    for e in (1, 2, 3)
]


def test_curves_hold_the_metrics():
    top, bottom = figures.curves(METRICS, "title").axes
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
    top = figures.curves([m | {"holdout_clean_acc": None, "holdout_pgd10_acc": None} for m in METRICS]).axes[0]
    assert [line.get_label() for line in top.lines] == ["PGD-10, training images"]


def test_png_is_written_whole(tmp_path):
    figures.save(figures.curves(METRICS), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]


def test_sweep_draws_each_attack_against_eps_with_its_interval():
    def point(eps, accuracy):
        return {"eps": eps, "attacks": {"pgd20": {"accuracy": accuracy, "ci95": [accuracy - 0.1, accuracy + 0.05]}}}

    figure = figures.sweep([point("2/255", 0.8), point("8/255", 0.4)], title="mine")
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
    (axis,) = figures.sweep(points).axes
    assert len(axis.containers) == len(axis.texts) == 8
