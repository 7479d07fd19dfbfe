"""premises.py: a model that is no function of one image, or gives no gradient, is found before the first attack."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import piat_hub
from piat_hub.attacks import pgd
from piat_hub.config import InputError, ThreatModel
from piat_hub.data import Split, derived_seed, to_unit
from piat_hub.evaluation import premises
from piat_hub.evaluation.loop import Processes, measure
from piat_hub.evaluation.verdict import correct
from piat_hub.records.labels import rows, said
from piat_hub.records.results import Results

THREAT = ThreatModel("Linf", 0.08)


class Model(nn.Module):
    """A small network whose forward is `how(net, x)`; counts the images that it is asked about."""

    def __init__(self, how=lambda net, x: net(x), norm=nn.Identity):
        super().__init__()
        torch.manual_seed(5)
        layers = [nn.Flatten(), nn.Linear(12, 32), norm(), nn.ReLU(), nn.Linear(32, 5)]
        self.net, self.how, self.asked = nn.Sequential(*layers), how, 0

    def forward(self, x):
        self.asked += len(x)
        return self.how(self.net, x)


def images(n=60):
    """Images, with what `Model` calls them as labels."""
    found = torch.randint(0, 256, (n, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        labels = Model()(to_unit(found)).argmax(1)
    return Split(found, labels, tuple("abcde"), "n")


def seeded(net, x):
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))  # the same for a place in the batch
    return net(x + 0.1 * noise)


def resized(net, x):
    return net(x * (0.9 + 0.05 * torch.randint(4, (1,))))  # one of four, for a whole batch


RANDOM = {
    "noise": lambda net, x: net(x + 0.1 * torch.randn_like(x)),
    "little noise": lambda net, x: net(x + 1e-3 * torch.randn_like(x)),
    "dropout": lambda net, x: net(F.dropout(x, 0.1, training=True)),
    "resizing": resized,
}
BESIDE = {
    "seeded noise": seeded,
    "spread of the batch": lambda net, x: net(0.3 * x / x.std()),
    "softmax over the batch": lambda net, x: net(x).softmax(0),
    "number of images": lambda net, x: net(x) / len(x),
}
FUNCTIONS = {
    "plain": lambda net, x: net(x),
    "large": lambda net, x: 1e4 * net(x),
    "half": lambda net, x: net(x).half(),
    "constant": lambda net, x: 0 * net(x),
    "bf16 within": lambda net, x: F.linear(net[:4](x).bfloat16(), net[4].weight.bfloat16()).float(),
    "per image": lambda net, x: net(x - x.mean((1, 2, 3), keepdim=True)),
}


def measured(model, *attacks, batch_size=25, **options):
    split = images()
    results = Results.of(split, THREAT)
    list(measure(model, split, attacks or ("pgd5",), results, batch_size=batch_size, **options))
    return results


@pytest.mark.parametrize("how", [*RANDOM, *BESIDE])
def test_the_whole_attack_is_judged_by_its_last_examples(how):
    """The figures are those of `pgd` called on each of the data's batches, with the same random numbers."""
    model = Model((RANDOM | BESIDE)[how])
    results, split, whole = measured(model), images(), []
    for number, index in enumerate(torch.arange(60).split(25)):
        x, y = to_unit(split.images[index]), split.labels[index]
        torch.manual_seed(derived_seed(0, *b"pgd5", 0, number))
        whole.append(correct(model, pgd(model, x, y, 0.08, 0.02, 5), y))
    expected = torch.cat(whole).numpy() & results.verdicts["clean"]
    assert (results.verdicts["pgd5"] == expected).all() and 0 < expected.sum() < 60
    words = "two passes of the model over the same images differ" if how in RANDOM else "depends on what else is in its"
    assert len(results.notes) == 1 and words in results.notes[0]
    assert results.attacks["pgd5"]["whole"] and results.attacks["pgd5"].get("batch_size") == (
        25 if how in BESIDE else None
    )


def norm():
    return nn.BatchNorm1d(32, track_running_stats=False)


def test_a_norm_without_statistics_is_found_and_its_batch_is_part_of_the_question(tmp_path):
    results = measured(Model(norm=norm), save=lambda r: r.save(tmp_path))
    assert "batches of 25" in results.notes[0]
    again = Results.of(images(), THREAT)
    again.resume(tmp_path)
    assert again.notes == results.notes
    with pytest.raises(InputError, match="clean was measured with batch_size 25, this call asks for 20"):
        list(measure(Model(norm=norm), images(), ["mim2"], again, batch_size=20))


@pytest.mark.parametrize("how", FUNCTIONS)
def test_a_function_of_one_image_is_left_as_it_was_at_the_cost_of_two_passes(how):
    model = Model(FUNCTIONS[how])
    results = measured(model, "clean")
    assert results.notes == [] and results.attacks["clean"].keys() == {"accuracy", "correct", "n", "ci95"}
    assert model.asked == 2 + 3 * 60  # two images before all
    if how == "plain":
        assert "whole" not in measured(model).attacks["pgd5"]


def test_more_than_a_thousand_images_cost_less_than_two_passes():
    model, split = Model(), images(1500)
    list(measure(model, split, ["clean"], Results.of(split, THREAT), batch_size=500))
    assert model.asked == 2 + 1500 + 2 * premises.TRIED


def test_what_one_process_finds_holds_for_all():
    """Another process of the same launch saw two passes differ: this one's images do not leave either."""
    other = torch.tensor([-0.5, 0.0, 0.0])
    processes = Processes(
        0, 1, lambda t: torch.minimum(t, other) if t.dtype == torch.float32 and t.shape == (3,) else t
    )
    results = measured(Model(), processes=processes)
    assert "two passes" in results.notes[0] and results.attacks["pgd5"]["whole"]


def test_autoattack_of_such_a_model_is_not_called_standard(quick_autoattack):
    results = measured(Model(RANDOM["noise"]), "aa")
    figures = results.attacks["aa"]
    assert figures["version"] == "not standard" and "every part attacks every image" in figures["changed"]
    assert rows(results)[1][0] == "AutoAttack (not standard)" and "not standard" not in rows(results)[0][0]
    assert said(results)[0] == results.notes[0] and "AutoAttack differs from its standard version" in said(results)[1]
    assert figures["correct"] <= measured(Model(RANDOM["noise"]), "pgd10").attacks["pgd10"]["correct"] + 6


def test_a_batch_that_memory_halves_is_refused_where_the_answer_depends_on_it():
    def cramped(net, x):
        if len(x) > 10:
            raise torch.OutOfMemoryError("out of memory")
        return net(x) / len(x)

    with pytest.raises(InputError, match="takes 6 images at a time, .* ask for --batch-size 6"):
        measured(Model(cramped))


WITHOUT = {
    "no_grad": torch.no_grad()(lambda net, x: net(x)),
    "inference_mode": torch.inference_mode()(lambda net, x: net(x)),
    "detach": lambda net, x: net(x.detach()),
    "numpy": lambda net, x: net(torch.from_numpy(x.numpy())),
    "argmax": lambda net, x: F.one_hot(net(x).argmax(1), 5).float(),
}


@pytest.mark.parametrize("how", WITHOUT)
def test_a_model_without_a_gradient_is_refused_before_any_attack_that_follows_one(how):
    attacks = []
    for name in ("pgd5", "aa", "apgd-ce"):
        with pytest.raises(InputError, match="the model gives no gradient .* without gradients: square"):
            measured(Model(WITHOUT[how]), name, save=attacks.append)
    assert attacks == []


def test_square_goes_on_without_a_gradient_and_says_so(quick_autoattack):
    for how in ("argmax", "inference_mode"):
        results = measured(Model(WITHOUT[how]), "square")
        assert results.notes == ["the model gives no gradient, and no attack here follows one"]
        assert results.attacks["square"]["correct"] < 60 or how == "argmax"


def test_a_gradient_of_zero_is_said_beside_the_figures():
    with pytest.warns(UserWarning, match="gradient is zero at each of the first 8 images"):
        results = piat_hub.evaluate(Model(lambda net, x: net((8 * x).round() / 8)), images(), ["pgd5"])
    assert results.attacks["pgd5"]["correct"] > 40


@pytest.mark.parametrize("attack", ["pgd5", "apgd5", "malt", "fast"])
def test_a_gradient_that_is_not_finite_makes_no_examples_and_is_said(attack):
    """The slope of sqrt at 0 is infinite, and 0 times that is NaN: no budget of 1e-6 misleads these images."""
    dark = images(20)
    dark.images[:, :, 0, 0] = 0
    model = Model(lambda net, x: net(x.sqrt()))
    with torch.no_grad():
        dark = Split(dark.images, model(to_unit(dark.images)).argmax(1), dark.label_names, "dark")
    results = Results.of(dark, ThreatModel("L2", 1e-6))
    list(measure(model, dark, [attack], results, batch_size=25))
    assert results.attacks[attack]["correct"] >= 19
    (note,) = results.notes
    assert "the gradient is not finite at 8 of the first 8 images" in note and "figures may be too high" in note


def test_inference_mode_around_an_evaluation_is_refused_and_no_grad_is_not():
    with torch.inference_mode(), pytest.raises(InputError, match="inference_mode.. forbids; torch.no_grad.. around"):
        measured(Model())
    with torch.no_grad():
        assert measured(Model()).attacks["pgd5"]["correct"] == measured(Model()).attacks["pgd5"]["correct"] < 60


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda net, x: net(x.mul_(0.9)), "changes the images it is given.*x = x.clone"),
        (lambda net, x: (net(x),), "returns a tuple for 2 images, not logits"),
        (lambda net, x: net(x)[..., None], r"a tensor of shape \(2, 5, 1\)"),
        (lambda net, x: net(x).mean(0, keepdim=True), r"a tensor of shape \(1, 5\) for 2 images"),
        (lambda net, x: type("Output", (dict,), {"logits": 0})(), "returns a Output .*let it return its .logits"),
    ],
)
def test_what_is_no_classifier_is_told_in_one_line(how, message):
    with pytest.raises(InputError, match=message):
        measured(Model(how), "clean")


def test_logits_that_are_no_numbers_are_counted_and_said():
    results = measured(Model(lambda net, x: net(x) + torch.where(x[:, 0, 0, :1] > 0.5, torch.nan, 0.0)), "clean")
    lost = int((to_unit(images().images)[:, 0, 0, 0] > 0.5).sum())
    assert results.notes == [
        f"{lost} of the first 60 images have logits that are NaN or Inf, which count as misclassified"
    ]
    assert results.attacks["clean"]["correct"] == 60 - lost
    assert json.loads(json.dumps(results.to_dict()))["notes"] == results.notes
