"""zoo.py and imported models: the table's rows are whole, and a model that others trained says so wherever it goes."""

import dataclasses
import json

import pytest
import timm
import torch
from huggingface_hub import ModelCard

import piat_hub
from piat_hub import cli
from piat_hub.config import InputError, from_dict
from piat_hub.hub import card, layouts, zoo
from piat_hub.hub.push import publication
from piat_hub.leaderboard import board
from piat_hub.records.origin import Origin
from piat_hub.records.rundir import read_model

ROW = """
[Doe2026Robust]
paper = "Robust | *Models*"
authors = "Jane Doe"
link = "https://example.org/paper"
source = "https://example.org/weights.pt"
license = "cc-by-4.0"
[Doe2026Robust.models]
"ours/tiny" = {layout = "robustbench-resnet", dataset = "digits", threat_model = "L2:0.5", mean = [0.5], std = [0.25]}
"""
ORIGIN = {"name": "ours/tiny", "authors": "Jane Doe", "paper": "Robust | *Models*", "license": "cc-by-4.0"}


def test_every_row_is_whole():
    table = zoo.rows()
    assert len(table) > 100
    for name, values in table.items():
        row = from_dict(zoo.Known, values)
        assert row.layout in layouts.LAYOUTS or timm.is_model(row.layout), row
        assert row.paper and row.link and row.authors and row.license != "unknown" and len(row.mean) == len(row.std)
        dataset, norm, _ = name.split("/")
        assert row.dataset == {"imagenet": "ILSVRC/imagenet-1k"}.get(dataset, dataset) and row.source
        assert (row.threat_model.norm if row.threat_model else "corruptions") == norm


@pytest.fixture
def imported(tmp_path):
    """A tiny ResNet of grey 8x8 digits in their layout, imported by a row of the user's own."""
    torch.manual_seed(0)
    model = timm.create_model("cifar_resnet18", in_chans=1, layers=[1] * 4, channels=[8] * 4, stem_chs=8)
    renamed = {k.replace("downsample", "shortcut").replace("fc.", "linear."): t for k, t in model.state_dict().items()}
    torch.save({"state_dict": renamed}, tmp_path / "c.pt")
    (tmp_path / "mine.toml").write_text(ROW)
    cli.main(["import", "c.pt", "--name", "ours/tiny", "--zoo", "mine.toml", "--output", "run"])
    return tmp_path / "run"


def test_config_and_card_say_who_trained_it(imported):
    config = json.loads((imported / "config.json").read_text())
    assert (
        config["piat_origin"].items()
        >= {**ORIGIN, "threat_model": {"norm": "L2", "eps": "0.5"}, "dataset": "digits"}.items()
    )
    cfg = config["pretrained_cfg"]
    assert (cfg["license"], cfg["paper_name"]) == ("cc-by-4.0", "Robust | *Models*") and "piat" not in config
    text = (imported / "README.md").read_text()
    ModelCard(text)
    assert (
        "Jane Doe trained against L2 perturbations of at most 0.5" in text
        and "not piat_hub, which only converted" in text
    )
    assert r"[Robust \| \*Models\*](<https://example.org/paper>)" in text and "license: cc-by-4.0" in text
    assert "## Training" not in text and "he2023piat" not in text and "adversarial-training" not in text
    assert piat_hub.from_pretrained(imported).origin == read_model(imported).model.origin
    assert card.summary(imported)["method"] == "of Jane Doe"


def test_it_is_evaluated_compared_and_pushed_with_that_said(imported, capsys):
    """By default on its own data and under its own threat model; what was measured then stands on the card."""
    cli.main(["evaluate", "run", "--attacks", "clean", "pgd2", "--n", "16"])
    results = json.loads((imported / "results.json").read_text())
    assert results["threat_model"] == {"norm": "L2", "eps": "0.5"} and results["dataset"]["name"] == "digits"
    text = (imported / "README.md").read_text()
    assert "PGD-2" in text and "of 16" in text and "Jane Doe" in text
    cli.main(["compare", "run", "run"])
    assert "PGD-2" in capsys.readouterr().out
    facts = board.read("run").facts
    assert (facts["method"], facts["extra_data"]) == ("of Jane Doe", "none")
    sent = publication(read_model(imported), "org/tiny")
    assert json.loads(sent["config.json"])["piat_origin"].items() >= ORIGIN.items()
    assert b'from_pretrained("org/tiny")' in sent["README.md"] and b"Jane Doe" in sent["README.md"]
    assert {"model.safetensors", "results.json", "verdicts.npz"} <= sent.keys()


BAD = [
    ("ours/tinny", ROW, r"no model 'ours/tinny' in the zoo \(did you mean 'ours/tiny'\?\); zoo\.toml lists all"),
    (
        "ours/tiny",
        ROW.replace("Jane Doe", ""),
        r"mine\.toml says of ours/tiny: the origin of a model needs its authors",
    ),
    (
        "ours/tiny",
        ROW.replace("L2:0.5", "L2"),
        r"mine\.toml is no table of models \(threat model 'L2' must be NORM:EPS",
    ),
    (
        "ours/tiny",
        ROW.replace("layout", "layuot"),
        r"says of ours/tiny: unknown Known field 'layuot' .did you mean 'layout'",
    ),
    ("ours/tiny", ROW.replace("https://example.org/paper", "javascript:x"), r"link 'javascript:x' must be an address"),
    ("ours/tiny", "x = ", r"mine\.toml is no table of models \(.*\); write \[PAPER\] with its fields"),
    ("ours/tiny", "x = 1", r"mine\.toml is no table of models"),
]


@pytest.mark.parametrize(("name", "table", "message"), BAD)
def test_a_row_that_cannot_be_used(name, table, message, tmp_path):
    (tmp_path / "mine.toml").write_text(table)
    with pytest.raises(InputError, match=message):
        layouts.import_known("c.pt", name, tmp_path / "run", tmp_path / "mine.toml")
    assert not (tmp_path / "run").exists()


def test_name_or_layout(capsys):
    for words in (
        ["c.pt"],
        ["c.pt", "--name", "a/b", "--layout", "resnet18"],
        ["c.pt", "--name", "a/b", "--img-size", "32"],
    ):
        assert cli.main(["import", *words]) == 2
        assert "give --name, which says all of the rest, or --layout with what belongs to it" in capsys.readouterr().err


def test_hostile_words_are_text_on_the_card(imported):
    config = json.loads((imported / "config.json").read_text())
    config.pop("checksum")
    config["piat_origin"] |= {"authors": "<script>x</script> [a](b)", "link": "https://x.org/>)<b>"}
    (imported / "config.json").write_text(json.dumps(config))
    text = card.write(imported).read_text()
    assert r"\<script\>x\</script\> \[a\](b)" in text and "<https://x.org/%3E%29%3Cb%3E>" in text
    config["piat_origin"] = {"name": "x"}
    (imported / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config\.json: the origin of a model needs its authors"):
        piat_hub.from_pretrained(imported)


def test_the_same_origin_comes_back():
    row = zoo.known("cifar10/Linf/Rice2020Overfitting")
    assert type(row.origin()) is Origin and row.mean == (0.4914, 0.4822, 0.4465)
    assert dataclasses.asdict(row).items() >= dataclasses.asdict(row.origin()).items()
