"""A search in bf16: what it claims is confirmed in fp32, and it is said wherever a figure stands."""

import itertools
import json

import pytest
import torch
from test_fmn import centred
from torch import nn

from piat_hub import cli
from piat_hub.config import EvalConfig, InputError, ThreatModel
from piat_hub.data import Split
from piat_hub.evaluation.loop import evaluate, measure
from piat_hub.evaluation.request import prepare_evaluation
from piat_hub.records.compare import compare
from piat_hub.records.labels import rows, said
from piat_hub.records.results import Results

THREAT = ThreatModel("Linf", 8 / 255)


def images(model, n=30):
    """Images with what the model calls them as labels."""
    x = torch.randint(64, 192, (n, 3, 2, 2), dtype=torch.uint8)
    with torch.no_grad():
        z = model(x / 255)
    return Split(x, z.argmax(1), tuple("abcd")[: z.shape[1]], "n")


def near():
    """A model whose boundaries run close to many of the images."""
    layer = nn.Linear(12, 4)
    with torch.no_grad():
        layer.weight.copy_(centred(torch.randn(4, 12)))
        layer.bias.zero_()
    return nn.Sequential(nn.Flatten(), layer)


def test_it_finds_what_is_there_and_the_figures_say_so(quick_autoattack):
    model, attacks = near(), ["pgd5", "fmn5", "aa"]
    split = images(model)
    fp32 = evaluate(model, split, attacks, threat_model=THREAT)
    bf16 = evaluate(model, split, attacks, threat_model=THREAT, search_precision="bf16")
    for attack in attacks:
        assert abs(fp32.attacks[attack]["correct"] - bf16.attacks[attack]["correct"]) <= 2
        assert bf16.attacks[attack]["search_precision"] == "bf16" and "search_precision" not in fp32.attacks[attack]
        assert 0 < bf16.attacks[attack]["correct"] < 25
    assert "search_precision" not in bf16.attacks["clean"]
    assert (bf16.attacks["aa"]["version"], fp32.attacks["aa"]["version"]) == ("not standard", "standard")
    names = [row[0] for row in rows(bf16)]
    assert names[1:4] == [
        "PGD-5 (found in bf16)",
        "FMN-5 (found in bf16)",
        "AutoAttack (not standard, found in bf16)",
    ]
    assert "confirmed by the model in fp32" in said(bf16)[0] and not any("bf16" in sentence for sentence in said(fp32))
    assert bf16.sweep[0]["attacks"]["fmn5"]["search_precision"] == "bf16"


class Fine(nn.Module):
    """Logits so large that bf16 does not tell them apart; in fp32 every image is of class 1 by a clear margin."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 2)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[0.0], [0.01]]).expand(2, 12))
            self.layer.bias.copy_(torch.tensor([256.0, 256.4]))

    def forward(self, x):
        return self.layer(x.flatten(1))


@pytest.mark.parametrize("attack", ["pgd3", "fmn3"])
def test_a_break_that_fp32_does_not_confirm_is_none(attack):
    model = Fine()
    split = images(model)
    assert split.labels.tolist() == [1] * 30
    with torch.autocast("cpu", torch.bfloat16):
        assert model(split.images / 255).argmax(1).tolist() == [0] * 30  # what the twin claims of every image
    results = evaluate(model, split, [attack], threat_model=THREAT, search_precision="bf16")
    assert results.attacks[attack]["correct"] == 30


def test_what_is_not_confirmed_is_attacked_again_in_fp32():
    """A model of whose logits bf16 sees nothing is broken where fp32 breaks it."""
    model = near()
    model[1].bias.data += 4096  # bf16 rounds these logits to steps of 32
    split = images(model)
    fp32 = evaluate(model, split, ["pgd5"], threat_model=THREAT).verdicts["pgd5"]
    bf16 = evaluate(model, split, ["pgd5"], threat_model=THREAT, search_precision="bf16").verdicts["pgd5"]
    assert 5 < (~fp32).sum() < 30 and (~fp32 & ~bf16).sum() >= 0.9 * (~fp32).sum()


def test_another_precision_is_another_question(tiny, tmp_path):
    model = tiny()
    split = images(model)

    def run(precision, results=None, folder=tmp_path / "a"):
        results = results or Results.of(split, THREAT)
        return results, measure(
            model, split, ["pgd2"], results, batch_size=7, search_precision=precision, save=lambda r: r.save(folder)
        )

    for first, second in (("bf16", "fp32"), ("fp32", "bf16")):
        results, events = run(first, folder=tmp_path / first)
        list(events)
        again = Results.of(split, THREAT)
        again.resume(tmp_path / first)
        with pytest.raises(InputError, match=f"pgd2 was measured with search_precision {first}, .* asks for {second}"):
            list(run(second, again)[1])
        list(run(first, again)[1])
        assert (again.verdicts["pgd2"] == results.verdicts["pgd2"]).all()
    with pytest.raises(InputError, match="pgd2 was run with another search_precision"):
        compare(tmp_path / "fp32", tmp_path / "bf16")
    list(itertools.islice(run("bf16")[1], 3))
    stopped = Results.of(split, THREAT)
    stopped.resume(tmp_path / "a", stopped=True)
    with pytest.raises(InputError, match="pgd2 was stopped with .*bf16.* leave out --resume"):
        list(run("fp32", stopped)[1])
    stopped.resume(tmp_path / "a", stopped=True)
    list(run("bf16", stopped)[1])
    assert (stopped.verdicts["pgd2"] == evaluate_again(model, split)).all()


def evaluate_again(model, split):
    options = {"threat_model": THREAT, "batch_size": 7, "search_precision": "bf16"}
    return evaluate(model, split, ["pgd2"], **options).verdicts["pgd2"]


class Whole(nn.Module):
    """It cannot be copied."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 4)

    def forward(self, x):
        return self.layer(x.flatten(1))

    def __deepcopy__(self, memo):
        raise TypeError("it is one of a kind")


class Noisy(Whole):
    def forward(self, x):
        return super().forward(x + 0.1 * torch.randn_like(x))


def test_what_is_attacked_itself_is_refused_in_one_line(tiny, tmp_path):
    (tmp_path / "own_search.py").write_text("def attack(model, x, y, eps):\n    return x\n")
    refused = {
        "own_search:attack attacks the model itself, in fp32; leave out --search-precision": (
            tiny(),
            "own_search:attack",
        ),
        "the model cannot be copied to search in half precision .it is one of a kind": (Whole(), "pgd2"),
        "two passes .* differ.*; such a model is attacked itself: leave out --search-precision": (Noisy(), "pgd2"),
    }
    for message, (model, attack) in refused.items():
        with pytest.raises(InputError, match=message) as error:
            evaluate(model, images(model), [attack], search_precision="bf16")
        assert len(str(error.value).splitlines()) == 1


def test_the_command_says_it_too(evaluated, capsys):
    for _ in range(2):  # the second call finds it measured
        assert cli.main(["evaluate", "r", "--n", "30", "--attacks", "pgd1", "--search-precision", "bf16"]) == 0
        shown = capsys.readouterr().out
        assert "PGD-1 (found in bf16)" in shown and "note: what is said to be found in bf16" in shown
    card = (evaluated / "README.md").read_text()
    assert (
        "PGD-1 (found in bf16)" in card
        and "PGD-1 (found in bf16) accuracy" in card
        and "**Note:** what is said" in card
    )
    kept = json.loads((evaluated / "results.json").read_text())["attacks"]
    assert kept["pgd1"]["search_precision"] == "bf16" and kept["aa"]["version"] == "standard"
    with pytest.raises(InputError, match="search-precision 'bf61' is unknown"):
        EvalConfig(search_precision="bf61")
    asked = EvalConfig(attacks=("pgd1",), n=30, search_precision="bf16", sweep_eps=(0.1,))
    list(prepare_evaluation("r", asked).sweep())
    (fp32,) = prepare_evaluation("r", EvalConfig(attacks=("pgd1",), n=30, sweep_eps=(0.1,))).sweep()
    assert "search_precision" not in fp32["attacks"]["pgd1"]  # measured anew
