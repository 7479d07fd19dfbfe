"""records/advice.py: which model to take, against verdicts made for the purpose."""

import shutil

import numpy as np
import pytest

from piat_hub import cli
from piat_hub.records.advice import advice
from piat_hub.records.files import file_digest
from piat_hub.records.results import Results, read_record, read_results

N, AA = 200, {"version": "standard", "per_attack": {}}


@pytest.fixture
def measured(evaluated):
    """A model directory whose first so many images stand, by attack; written where it is asked for."""
    template = vars(read_record(evaluated / "results.json"))

    def make(folder, *, dataset="digits", notes=(), images="a" * 64, step_size="0.0375", **standing):
        shutil.copytree(evaluated, folder)
        weights = file_digest(folder / "model.safetensors")
        facts = template | {
            "dataset": dataset,
            "n": N,
            "notes": list(notes),
            "checks": [],
            "attacks": {},
            "images": images,
            "weights": weights,
        }
        results = Results(**facts, labels=np.arange(N) % 10)
        for attack, count in standing.items():
            how = (
                AA
                if attack == "aa"
                else {}
                if attack == "clean"
                else {"steps": 20, "step_size": step_size, "restarts": 1}
            )
            results.record(attack, np.arange(N) < count, how)
        results.save(folder)
        return folder

    return make


def test_the_accurate_and_the_robust_where_the_images_tell_them_apart(measured, tmp_path):
    a, b = measured(tmp_path / "a", clean=160, aa=80), measured(tmp_path / "b", clean=150, aa=100)
    (said,) = advice([a, b])
    by = interval(a, b)
    assert said == f"digits, Linf eps 0.15: take {a} for clean images (80.00 % of 200), {b} for AutoAttack ({by})"
    assert by.startswith("+10.00 points, 95 % +")


def test_one_model_where_no_other_is_told_from_it(measured, tmp_path):
    a, b = measured(tmp_path / "a", clean=160, aa=80), measured(tmp_path / "b", clean=150, aa=81)
    (said,) = advice([b, a])
    assert (
        f"take {a}, of the highest clean accuracy (80.00 % of 200); under AutoAttack {b} is highest, and not told"
        in said
    )
    assert "(+0.50 points, 95 % -" in said and said.endswith("n 200)")
    c = measured(tmp_path / "c", clean=170, aa=90)
    whole = f"take {c}, of the highest accuracy on clean images (85.00 % of 200) and under AutoAttack"
    assert advice([a, b, c])[0].endswith(whole)
    d = measured(tmp_path / "d", clean=170, aa=80)  # as accurate, and less robust
    assert advice([d, c, a])[0].endswith(whole) and advice([c, d, a])[0].endswith(whole)


def test_pgd20_where_no_two_have_autoattack(measured, tmp_path):
    a, b = measured(tmp_path / "a", clean=160, pgd20=80, aa=80), measured(tmp_path / "b", clean=150, pgd20=120)
    assert f"{b} for PGD-20 (+20.00 points" in advice([a, b])[0]
    c = measured(tmp_path / "c", clean=170)
    assert advice([a, b, c])[0].endswith(f"take {c}, of the highest clean accuracy (85.00 % of 200); under PGD-20, where it "
                                         f"was not measured, {b} is highest")  # fmt: skip
    d, e = measured(tmp_path / "d", clean=160), measured(tmp_path / "e", clean=150)
    assert advice([d, e])[0].endswith(f"take {d}, of the highest clean accuracy (80.00 % of 200)")


def test_only_figures_of_the_same_images_stand_beside_each_other(measured, tmp_path):
    a, b = measured(tmp_path / "a", clean=160), measured(tmp_path / "b", clean=170, images="b" * 64)
    assert advice([a, b]) == []
    c = measured(tmp_path / "c", clean=150)
    assert advice([a, b, c])[0].endswith(f"take {a}, of the highest clean accuracy (80.00 % of 200)")


def test_what_cannot_be_paired_is_said(measured, tmp_path):
    a, b = (
        measured(tmp_path / "a", clean=160, pgd20=80),
        measured(tmp_path / "b", clean=150, pgd20=120, step_size="0.05"),
    )
    assert f"{b} is higher, but cannot be paired with it: pgd20 was run with another step_size in" in advice([a, b])[0]


def test_a_model_that_alone_was_measured_on_something_is_named_for_it(measured, tmp_path):
    a, b = (measured(tmp_path / name, clean=160) for name in "ab")
    c = measured(tmp_path / "c", clean=160, dataset="letters")
    assert advice([a, b, c])[1] == f"letters, Linf eps 0.15: take {c}, which alone was measured"


def test_one_model_alone_or_figures_that_need_a_note_are_no_choice(measured, tmp_path, monkeypatch, capsys):
    a, b = measured(tmp_path / "model_cards" / "a", clean=160), measured(tmp_path / "model_cards" / "b", clean=150)
    assert advice([a]) == [] and len(advice([a, b])) == 1
    monkeypatch.chdir(tmp_path)
    assert cli.main(["list"]) == 0
    shown = capsys.readouterr().out
    assert "last checkpoints:\n  digits, Linf eps 0.15: take model_cards/a, of the highest" in shown
    shutil.rmtree(b)
    measured(b, clean=170, notes=["two passes of the model over the same images differ"])
    assert cli.main(["list"]) == 0 and "to take" not in capsys.readouterr().out


def interval(a, b):
    """The pair's difference under AutoAttack by numpy, with records/statistics.py's interval in words."""
    from piat_hub.records.statistics import paired

    one, other = (read_results(path)[1]["aa"] for path in (a, b))
    pair = paired("aa", one, other)
    assert pair.difference == pytest.approx(other.mean() - one.mean())
    return f"{100 * pair.difference:+.2f} points, 95 % {100 * pair.ci95[0]:+.2f} to {100 * pair.ci95[1]:+.2f}, n {N}"
