"""card.py: every number on the card is one of results.json or config.json; the YAML head reads back."""

import ast
import dataclasses
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from PIL import Image

import piat_hub
from piat_hub import cli
from piat_hub.config import InputError, InterpolationConfig, TrainConfig, from_dict, recipes
from piat_hub.evaluation.model import predict
from piat_hub.figures import plots, report
from piat_hub.figures.style import SERIES, save
from piat_hub.hub import card, plain_timm
from piat_hub.hub.push import publication
from piat_hub.hub.save import save_pretrained, save_weights
from piat_hub.records.files import read_json
from piat_hub.records.labels import attack_name, command, method_name, title
from piat_hub.records.model_config import ModelConfig
from piat_hub.records.results import Results, read_record, read_results
from piat_hub.records.rundir import RunDirectory
from piat_hub.training import setup


def test_every_number_is_one_that_was_measured_or_configured(evaluated):
    """Every number on the card, but those of the template's own words: code, citation, the 95 of the interval."""
    results, config = (json.loads((evaluated / name).read_text()) for name in ("results.json", "config.json"))
    body = ModelCard.load(evaluated / "README.md").content.split("---", 2)[2]
    text = re.sub("```.*?```|`[^`]*`", "", body, flags=re.DOTALL).replace("95 % interval (Wilson)", "")
    shown = set(re.findall(r"[\d.]*\d", re.sub(r"(?<=[A-Za-z_])[-\d.]*\d|\d+(?=[A-Za-z])|sha256", "", text)))
    figures = results["attacks"].values()
    known = {f"{100 * v:.2f}" for f in figures for v in (f["accuracy"], *f["ci95"])}
    known |= {str(f[key]) for f in figures for key in ("correct", "n")} | {str(results["seed"]), "0.15"}
    known |= {v for text in results["versions"].values() for v in re.findall(r"[\d.]*\d", text)}
    known |= set(re.findall(r"\d+", results["device"])) | {str(n) for n in config["pretrained_cfg"]["input_size"]}
    run = config["piat"]
    known |= {str(run[key]) for key in ("epochs", "clean_epochs", "batch_size", "lr", "weight_decay")}
    known |= {str(run["attack"][key]) for key in run["attack"]} | {str(config["num_classes"])}
    known |= {"0", "1"}  # images in [0, 1]
    known |= {read_record(evaluated / "results.json").one_class}  # digits' classes are called by numbers
    known |= (
        {str(int(a)) for a in re.findall(r"\d+", str(results["attacks"]["aa"]["changed"]))}
        if "changed" in results["attacks"]["aa"]
        else set()
    )
    names = {re.sub(r"\D", "", attack_name(name)) for name in results["attacks"]}
    assert len(shown) > 15 and shown <= known | names, shown - known - names


def test_metadata_has_an_entry_per_attack(evaluated):
    data = ModelCard.load(evaluated / "README.md").data
    results = json.loads((evaluated / "results.json").read_text())
    assert data.library_name == "timm" and data.license is None and "adversarial-robustness" in data.tags
    assert {(e.metric_args["attack"], e.metric_value) for e in data.eval_results} == {
        (name, figures["accuracy"]) for name, figures in results["attacks"].items()
    }
    for entry in data.eval_results:
        assert (entry.metric_args["norm"], entry.metric_args["eps"], entry.metric_args["n"]) == ("Linf", "0.15", 30)


def test_an_unmeasured_run_says_so(small_digits, trained):
    text = card.write(trained(small_digits(epochs=2))).read_text()
    assert "Nothing has been measured on a test split yet" in text and "model-index" not in text


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("pgd20", "PGD-20"),
        ("pgd", "PGD-20"),
        ("cw100", "CW-100"),
        ("aa", "AutoAttack"),
        ("clean", "clean"),
        ("fgsm", "FGSM"),
    ],
)
def test_attack_names(name, shown):
    assert attack_name(name) == shown


def test_titles():
    config = recipes.get("resnet18-cifar10")
    assert title(config) == "PIAT+NMSE, cifar_resnet18 on cifar10"
    names = {("pgd_at", "none"): "PGD-AT", ("pgd_at", "piat"): "PIAT", ("nmse", "constant"): "lam=0.9+NMSE"}
    for (method, kind), name in names.items():
        law = InterpolationConfig(kind=kind)
        assert method_name(dataclasses.replace(config, method=method, interpolation=law)) == name


@pytest.mark.parametrize(
    "line",
    [
        "digits",
        "resnet18-cifar100 --dataset uoft-cs/cifar100 --epochs 7 --lr 0.2 --eps 4/255 --step-size 2/255 --holdout 0 --no-flip",
        "resnet20-cifar10 --method pgd_at --interpolation constant --interpolation.constant 0.5 --train-size 5000 --seed 3",
        "photos --dataset d --backbone cifar_resnet8 --init-from none --ema none",
        "digits --method.mu 2.0 --mixed-precision bf16 --clean-epochs 0 --norm L2 --eps 0.5 --crop-pad 0",
    ],
)
def test_the_command_on_the_card_gives_the_same_configuration(line, monkeypatch):
    got = []
    monkeypatch.setattr("piat_hub.cli.train.run_training", lambda config, options: got.append(config))
    assert cli.main(["train", *line.split()]) == 0
    words = shlex.split(command(got[0]))
    assert words[0] == "piat" and cli.main(words[1:]) == 0
    assert got[0] == got[1]


def test_what_no_flag_says_is_named_beside_the_command(evaluated):
    assert "asks for the same configuration; `config.json` holds" in (evaluated / "README.md").read_text()
    config = recipes.get("digits")
    assert recipes.unsaid(dataclasses.replace(config, lr=1.0, extra_images=3)) == []
    assert recipes.unsaid(dataclasses.replace(config, clean_epochs=2, clean_share=0.25)) == []
    assert recipes.unsaid(dataclasses.replace(config, lr_knots=((1.0, 1.0),), clean_share=0.0)) == [
        "clean_share",
        "lr_knots",
    ]
    content = read_json(evaluated / "config.json")
    content["piat"]["lr_knots"] = [[1.0, 1.0]]
    (evaluated / "config.json").write_text(json.dumps(content))
    assert "the same configuration, but for what has no flag (lr_knots);" in card.write(evaluated).read_text()


def test_the_card_of_a_run_that_is_not_finished_says_so(evaluated):
    assert "not finished" not in (evaluated / "README.md").read_text()
    for name in ("timing.jsonl", "metrics.jsonl"):
        lines = (evaluated / name).read_text().splitlines(keepends=True)
        (evaluated / name).write_text(lines[0])
    assert f"**It is not finished:** so far 1 of these {len(lines)} epochs (" in card.write(evaluated).read_text()


def test_results_of_other_weights_are_left_out(evaluated):
    assert "AutoAttack" in (evaluated / "README.md").read_text()
    weights = evaluated / "model.safetensors"
    weights.write_bytes((evaluated / "model_best.safetensors").read_bytes() + b"x")
    assert "Nothing has been measured" in card.write(evaluated).read_text()
    weights.unlink()
    assert "Nothing has been measured" in card.write(evaluated).read_text()


def test_damaged_results_are_named(evaluated):
    (evaluated / "results.json").write_text("{")
    with pytest.raises(InputError, match="results.json is damaged"):
        card.write(evaluated)


def test_a_standard_model_is_not_called_adversarially_trained(small_digits, do_train, tmp_path):
    config = small_digits(epochs=2, method="standard", interpolation=InterpolationConfig(kind="none"))
    do_train(config, tmp_path / "r")
    path = card.write(tmp_path / "r")
    assert "without adversarial training" in path.read_text()
    assert not {"adversarial-training", "piat"} & set(ModelCard.load(path).data.tags)


def test_what_is_no_run(tmp_path):
    with pytest.raises(InputError, match="is no run directory"):
        card.write(tmp_path)


def test_the_card_names_what_the_weights_are(small_digits, do_train, tmp_path):
    do_train(small_digits(method="free_at", ema=0.9, awp=0.01, epochs=2, train_size=128), tmp_path / "r")
    text = card.write(tmp_path / "r").read_text()
    assert "# PIAT+Free-AT+AWP with EMA, cifar_resnet8 on digits" in text
    assert "are an average over training" in text and "adversarial examples by" not in text
    assert "--method free_at" in text and "--ema 0.9" in text and "--awp 0.01" in text


def test_training_time_and_checksums_are_the_runs_own(evaluated):
    text = (evaluated / "README.md").read_text()
    for name in ("model.safetensors", "model_best.safetensors"):
        assert f"| `{name}` | `{hashlib.sha256((evaluated / name).read_bytes()).hexdigest()}` |" in text
    known = json.loads((evaluated / "timing.jsonl").read_text().splitlines()[0])
    assert f"It took under a minute on {known['device']}, with python " in text
    assert f"torch {known['versions']['torch']}, " in text and (not known["git"] or f"commit {known['git']}." in text)
    slow = {"train_seconds": 5000.0, "check_seconds": 400.0, "processes": 2, "device": "GPU X"}
    (evaluated / "timing.jsonl").write_text(2 * (json.dumps(slow) + "\n"))
    assert "It took 3 h 0 min on 2 x GPU X." in card.render(RunDirectory.read(evaluated))
    (evaluated / "timing.jsonl").unlink()
    assert "It took" not in card.render(RunDirectory.read(evaluated))


def test_paths_of_this_machine_stay_here(evaluated):
    config = read_json(evaluated / "config.json")
    for dataset, shown in (
        ("/data/secret/faces", "faces"),
        ("/secret/cifar10", "local-cifar10"),
        ("uoft-cs/cifar10", "uoft-cs/cifar10"),
    ):
        config["piat"] |= {"dataset": dataset, "init_from": "/secret/older"}
        (evaluated / "config.json").write_text(json.dumps(config))
        run = RunDirectory.read(evaluated)
        found, trained = run.model.content, run.config
        assert found["piat"]["dataset"] == trained.dataset == shown and trained.init_from == "older"
        text = card.render(run, "org/net")
        assert "secret" not in text + json.dumps(found) and "uoft-cs" not in text.replace(dataset, "")


def test_a_folder_is_named_absolutely_so_that_it_is_known_everywhere(small_digits, tmp_path):
    (tmp_path / "cifar10-mine").mkdir()
    config = small_digits(dataset="cifar10-mine", init_from="uoft-cs/net")
    settled = setup.settled(config)
    assert (settled.dataset, settled.init_from) == (str(tmp_path / "cifar10-mine"), "uoft-cs/net")
    (tmp_path / "digits").mkdir()  # an alias stays one
    assert setup.settled(small_digits()).dataset == "digits"


def blocks(text):
    return re.findall("```python\n(.*?)```", text, re.DOTALL)


def test_from_an_image_file_to_a_label_in_four_lines(evaluated, capsys):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save("image.png")
    lines = blocks((evaluated / "README.md").read_text())[0]
    assert len(lines.strip().splitlines()) == 4
    exec(lines.replace('"r"', f'"{evaluated}"'), {})
    shown = capsys.readouterr().out.strip()
    (_, found), *_ = predict(str(evaluated), ["image.png"])
    assert shown == found[0][0]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * ("wrn" in n)) for n in plain_timm.BUILT])
def test_the_plain_lines_build_our_backbones(name, tmp_path):
    """As the card has them; tests/test_push.py runs them where there is no piat_hub."""
    channels = 1 if name == "cifar_resnet8" else 3
    model = piat_hub.create_model(name, num_classes=7, in_chans=channels).eval()
    save_pretrained(model, tmp_path, input_size=(channels, 32, 32))
    config = ModelConfig.read(tmp_path / "config.json")
    namespace = {}
    exec(plain_timm.lines(config, f'"{tmp_path}/model.safetensors"'), namespace)
    x = torch.rand(1, channels, 32, 32)
    with torch.no_grad():
        assert torch.equal(namespace["model"](x), model(x)) and not namespace["model"].training


@pytest.mark.slow
def test_timms_own_architectures_need_no_piat_hub(evaluated, tmp_path):
    """The cards' second blocks, run where piat_hub is not installed."""
    script = "import importlib.util, torch; assert importlib.util.find_spec('piat_hub') is None\n"
    config = from_dict(TrainConfig, json.loads((evaluated / "config.json").read_text())["piat"])
    models = {}
    for name, options in (("vit_tiny_patch16_224", {"depth": 1}), ("convnext_atto", {"depths": [1, 1, 1, 1]})):
        models[name] = piat_hub.create_model(name, img_size=32, **options).eval()
        save_pretrained(models[name], tmp_path / name, config=config, input_size=(3, 32, 32))
        lines = blocks(card.write(tmp_path / name).read_text())
        assert len(lines) == 2 and "piat_hub" not in lines[1]
        script += f"{lines[1]}\ntorch.save(model(torch.ones(1, 3, 32, 32)).detach(), '{name}.pt')\n"
    bare = os.environ | {"PYTHONPATH": str(Path(np.__file__).parent.parent)}  # see tests/test_push.py
    subprocess.run([sys.executable, "-S", "-c", script], env=bare, check=True, cwd=tmp_path)
    for name, model in models.items():
        assert torch.equal(torch.load(tmp_path / f"{name}.pt", weights_only=True), model(torch.ones(1, 3, 32, 32)))


def test_what_only_piat_hub_can_build_says_so(evaluated, tmp_path):
    model = piat_hub.create_model("resnet18", img_size=32)
    config = json.loads((evaluated / "config.json").read_text())["piat"]
    save_pretrained(model, tmp_path / "v", config=from_dict(TrainConfig, config), input_size=(3, 32, 32))
    text = card.write(tmp_path / "v").read_text()
    assert len(blocks(text)) == 2 and "timm cannot build this architecture; `piat export`" in text


def test_what_a_card_quotes_stays_text(evaluated):
    """Names that a stranger, or a folder, chose neither end a code span, a table, a heading nor a Python literal."""
    name = "a`b|c*d<img src=x onerror=y>[e](http://f)#$g$"
    config, results = read_json(evaluated / "config.json"), read_json(evaluated / "results.json")
    config["piat"] |= {"dataset": name, "recipe": name, "backbone": name}
    results["dataset"]["name"] = results["device"] = results["dataset"]["split"] = name
    results["checks"] = [{"check": name, "found": name, "passed": True, "n": 1}]
    (evaluated / "config.json").write_text(json.dumps(config))
    (evaluated / "results.json").write_text(json.dumps(results))
    folder = evaluated.with_name('quo"te')
    evaluated.rename(folder)
    text = card.render(RunDirectory.read(folder))
    body = text.split("---", 2)[2]
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(body)
    shown = name.replace("<", "&lt;").replace(">", "&gt;")
    assert html.count(shown) > 5 and "<img src=x" not in html and 'href="http://f"' not in html
    assert f"<h1>PIAT+NMSE, {shown} on {shown}</h1>" in html
    line = re.search(r"```bash\n(.*)\n```", body)[1]
    assert f"--dataset {shlex.quote(name)} " in line and ModelCard(text).data.to_dict()
    for block in re.findall(r"```python\n(.*?)```", body, flags=re.S):
        ast.parse(block)
    save(
        plots.curves([{"epoch": 1, "lam": 0.1} | dict.fromkeys((key for key, *_ in SERIES), 0.5)], title=name),
        folder / "c.png",
    )


@pytest.mark.parametrize(
    "change",
    [
        {"seed": "0"},
        {"attacks": {"clean": {"accuracy": 1.0, "correct": 3, "n": 30, "ci95": [0.9, 1.0]}}},
        {"attacks": {"clean": {"accuracy": 1.0, "correct": 30, "n": 30, "ci95": [0.9]}}},
        {"attacks": {"clean": {"accuracy": 1.0, "correct": 0, "n": 0, "ci95": [0.9, 1.0]}}},
        {"attacks": [1]},
        {"threat_model": {"norm": "L7", "eps": "8/255"}},
        {"dataset": {"name": "digits", "split": "test", "n": "1\n2"}},
        {"device": "CPU\x1b[2J"},
        {"checks": [{}]},
        {"versions": 3},
    ],
)
def test_results_that_do_not_fit_are_refused_in_one_line(evaluated, change):
    results = read_json(evaluated / "results.json") | change
    (evaluated / "results.json").write_text(json.dumps(results))
    with pytest.raises(InputError, match=r"results\.json is damaged .*move it away and evaluate again") as error:
        card.render(RunDirectory.read(evaluated))
    assert str(error.value).isprintable()


def test_what_was_measured_on_other_images_lies_in_a_folder_below(evaluated, do_evaluate, tmp_path):
    """As AutoAttack on fewer images: the card, the list and a push have it, each figure with its own n."""
    do_evaluate("r", "clean", "pgd5", n=12, output="r/few")
    text = card.render(RunDirectory.read(evaluated))
    assert "first 30 images" in text and "first 12 images" in text and "`few/verdicts.npz`" in text
    names = {(e.metric_name, e.metric_args["n"]) for e in ModelCard(text).data.eval_results}
    assert {("PGD-3 accuracy", 30), ("PGD-5 accuracy, 12 images", 12), ("clean accuracy", 30)} <= names
    row = card.summary(evaluated)
    few = json.loads((evaluated / "few/results.json").read_text())["attacks"]
    assert row["n"] == {"clean": 30, "pgd3": 30, "aa": 30, "pgd5": 12} and row["pgd5_acc"] == few["pgd5"]["accuracy"]
    sent = publication(RunDirectory.read(evaluated), "org/net")
    assert {"few/results.json", "few/verdicts.npz", "results.json"} <= set(sent)
    with torch.no_grad():
        model = piat_hub.from_pretrained(evaluated)
        model.fc.bias += 1
    save_weights(model, evaluated / "model.safetensors")  # the results are of other weights now
    assert not any("results" in name for name in publication(RunDirectory.read(evaluated), "org/net"))
    shutil.rmtree(evaluated / "few")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/results.json").write_text("{}")
    (evaluated / "few").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="leads out of its folder"):
        card.render(RunDirectory.read(evaluated))


def test_notes_stand_beside_the_figures_everywhere(evaluated, capsys):
    """What is said of results is said on the card, in a comparison, in the report and in a list of models."""
    sentence = "the model's answers are *dice* [1]"
    results = Results(**vars(read_record(evaluated / "results.json")), verdicts=read_results(evaluated)[1])
    results.labels = np.zeros(results.n, np.int64)
    results.note(sentence), results.note(sentence)
    results.save(evaluated)
    assert read_record(evaluated / "results.json").notes == [sentence]
    run = RunDirectory.read(evaluated)
    page = MarkdownIt("commonmark").render(card.render(run).split("---\n", 2)[2])
    assert f"<strong>Note:</strong> {sentence.replace(chr(39), '&#x27;')}." in page.replace("'", "&#x27;")
    assert card.summary(evaluated)["notes"][0] == sentence == report.about(run)["notes"][0]
    assert cli.main(["compare", str(evaluated), str(evaluated)]) == 0
    assert f"note on B: {sentence}\n" in capsys.readouterr().out


def test_our_backbones_without_plain_lines_are_those_with_more_in_them_than_timm_has():
    assert {n for n in timm.list_models("cifar_*") if n not in plain_timm.BUILT} == {
        n for n in timm.list_models("cifar_*") if n.endswith("_silu") or "rawrn" in n
    }


@pytest.mark.parametrize("given", ["agpl-3.0", "cc-by-nc-nd-4.0", "ours-1"])
def test_a_licence_that_the_hub_knows_is_said_in_its_words(evaluated, given):
    config = ModelConfig.read(evaluated / "config.json")
    told = card.licence(dataclasses.replace(config, pretrained_cfg={**config.pretrained_cfg, "license": given}))
    own = {"license": "other", "license_name": given}
    assert told == (own if given == "ours-1" else {"license": given})
