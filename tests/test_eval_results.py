"""Results in the Hub's own form: what a push writes there, and a benchmark's eval.yaml, held to what the Hub documents."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import once
from huggingface_hub import parse_eval_result_entries

from piat_hub import cli
from piat_hub.config import InputError, ThreatModel
from piat_hub.hub import card, eval_results
from piat_hub.hub.push import publication
from piat_hub.leaderboard.benchmark import eval_yaml
from piat_hub.records.files import read_json
from piat_hub.records.results import read_results, verdicts_digest
from piat_hub.records.rundir import RunDirectory
from piat_hub.records.statistics import proportion

ENTRY = {  # the Hub's specification: field -> (its type, whether an entry must have it)
    "dataset": (dict, True),
    "value": (float, True),
    "verifyToken": (str, False),
    "date": (str, False),
    "source": (dict, False),
    "notes": (str, False),
}
DATASET = {"id": (str, True), "task_id": (str, True), "revision": (str, False)}
SOURCE = {"url": (str, True), "name": (str, False), "user": (str, False), "org": (str, False)}
BENCHMARK = dict.fromkeys(("name", "description", "evaluation_framework"), (str, True)) | {"tasks": (list, True)}
TASK = {"id": (str, True), "config": (str, False), "split": (str, False)}


def conforms(values, schema):
    """AssertionError unless an object has what it must, and nothing that the specification does not know."""
    assert {key for key, (_, must) in schema.items() if must} <= set(values) <= set(schema)
    for key, value in values.items():
        assert type(value) is schema[key][0], key


def rewritten(path, change):
    content = read_json(path)
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def measured(evaluated_once):
    """That run, as if its images were those of CIFAR-10."""

    def make(folder):
        shutil.copytree(evaluated_once, folder)
        rewritten(folder / "config.json", lambda content: content["piat"].update(dataset="cifar10"))
        rewritten(folder / "results.json", lambda content: content["dataset"].update(name="cifar10"))

    return once("eval_results/run", make)


def pushed(run, repo_id="org/net"):
    """What a push of a run sends in the Hub's form: path -> the entries as YAML holds them."""
    files = publication(RunDirectory.read(run), repo_id)
    return {path: yaml.safe_load(text) for path, text in files.items() if path.startswith(".eval_results/")}


def test_an_entry_for_each_attack_as_the_hub_specifies_it(measured):
    files = pushed(measured)
    record, verdicts = read_results(measured)
    assert len(files) == len(record.attacks) == 3
    for path, entries in files.items():
        assert path.endswith(".yaml") and path.count("/") == 1
        (entry,) = entries
        conforms(entry, ENTRY)
        conforms(entry["dataset"], DATASET)
        conforms(entry["source"], SOURCE)
        assert entry["source"]["url"] == "https://huggingface.co/org/net/blob/main/verdicts.npz"
    read = {entry.task_id: entry for entries in files.values() for entry in parse_eval_result_entries(entries)}
    names = {
        "clean": "clean-first-30",
        "pgd3": "pgd-3-linf-eps-0.15-first-30",
        "aa": "autoattack-linf-eps-0.15-first-30",
    }
    assert set(read) == set(names.values())
    for attack, task in names.items():
        entry, figures = read[task], record.attacks[attack]
        assert (entry.dataset_id, entry.value) == ("uoft-cs/cifar10", figures["accuracy"])
        assert f"{figures['correct']} of the first 30 images, 95 % interval" in entry.notes
        assert f"verdicts sha256 {verdicts_digest(verdicts[attack])}; images sha256 {record.images}" in entry.notes
        assert ("under Linf eps 0.15" in entry.notes) == (attack != "clean") and "attack seed 0" in entry.notes
        assert entry.verify_token is None  # a signature of the Hub's own jobs


def test_other_images_are_another_task_and_the_same_are_given_once(measured, tmp_path):
    run = Path(shutil.copytree(measured, tmp_path / "run"))
    for folder, n in (("again", 30), ("fewer", 20)):
        (run / folder).mkdir()
        _, verdicts = read_results(run)
        standing = {name: kept[:n] for name, kept in verdicts.items()}
        np.savez(run / folder / "verdicts.npz", index=np.arange(n), label=np.zeros(n, int), **standing)
        content = read_json(run / "results.json") | {"worst_case": None, "per_class": {}}
        content["dataset"]["n"] = n
        content["attacks"] = {
            name: content["attacks"][name] | proportion(int(k.sum()), n) for name, k in standing.items()
        }
        (run / folder / "results.json").write_text(json.dumps(content))
    tasks = [entry["dataset"]["task_id"] for entries in pushed(run).values() for entry in entries]
    assert len(tasks) == len(set(tasks)) == 6 and sum(task.endswith("first-20") for task in tasks) == 3
    links = {entry["source"]["url"].rpartition("main/")[2] for entries in pushed(run).values() for entry in entries}
    assert links == {"verdicts.npz", "fewer/verdicts.npz"}


def test_what_differs_from_an_attacks_name_or_misleads_is_said(measured, tmp_path):
    run = Path(shutil.copytree(measured, tmp_path / "run"))

    def change(content):
        content["attacks"]["aa"] |= {"version": "not standard", "search_precision": "bf16"}
        content["notes"] = ["its answers are random"]

    rewritten(run / "results.json", change)
    entries = {e["dataset"]["task_id"]: e for each in pushed(run).values() for e in each}
    changed = entries["autoattack-not-standard-found-in-bf16-linf-eps-0.15-first-30"]
    assert "autoattack-linf-eps-0.15-first-30" not in entries and len(entries) == 3
    assert all("its answers are random" in entry["notes"] for entry in entries.values())
    assert "a search in fp32 may break more images" in changed["notes"]


def test_a_weaker_step_or_a_list_of_images_is_no_task_of_the_usual_attack(measured, tmp_path):
    run = Path(shutil.copytree(measured, tmp_path / "run"))
    usual = "pgd-3-linf-eps-0.15-first-30"

    def tasks(**how):
        rewritten(run / "results.json", lambda content: content["attacks"]["pgd3"].update(how))
        return {entry["dataset"]["task_id"] for each in pushed(run).values() for entry in each} - written

    written = {entry["dataset"]["task_id"] for each in pushed(run).values() for entry in each} - {usual}
    assert tasks() == {usual}
    assert tasks(step_size="0.0001") == {"pgd-3-step-0.0001-linf-eps-0.15-first-30"}
    assert tasks(step_size="0.0375", restarts=5) == {"pgd-3-5-restarts-linf-eps-0.15-first-30"}
    chosen = "the images are those that list.txt lists, in its order"
    rewritten(run / "results.json", lambda content: content["notes"].append(chosen))
    assert pushed(run) == {} and "on a list of 30 images" in card.render(RunDirectory.read(run))


def test_data_that_is_not_on_the_hub_has_no_benchmark(evaluated_once, measured):
    assert pushed(evaluated_once) == {} and eval_results.hub_id("local-cifar10") == ""
    assert not any("source" in entry for entries in pushed(measured, "").values() for entry in entries)


def test_a_benchmark_has_the_tasks_that_a_push_writes(measured, tmp_path):
    words = "leaderboard init cifar10 --n 30 --attacks clean pgd3 aa --threat-models Linf:0.15 L2:0.5 --output data"
    assert cli.main(words.split()) == 0
    content = yaml.safe_load((tmp_path / "data" / "eval.yaml").read_text())
    conforms(content, BENCHMARK)
    for task in content["tasks"]:
        conforms(task, TASK)
    tasks = [task["id"] for task in content["tasks"]]
    written = {entry["dataset"]["task_id"] for entries in pushed(measured).values() for entry in entries}
    assert len(tasks) == len(set(tasks)) == 5 and written < set(tasks)


def test_a_benchmark_names_the_configuration_and_refuses_what_no_task_can_be():
    assert yaml.safe_load(eval_yaml("svhn", ["clean"], [ThreatModel()], 9))["tasks"] == [
        {"id": "clean-first-9", "config": "cropped_digits", "split": "test"}
    ]
    with pytest.raises(InputError, match="unknown attack 'pdg20' .did you mean 'pgd20'"):
        eval_yaml("cifar10", ["clean", "pdg20"], [ThreatModel()], 9)
    with pytest.raises(InputError, match="photos is no data set of the Hub"):
        eval_yaml("photos", ["clean"], [ThreatModel()], 9)


def test_a_benchmark_is_not_written_over(tmp_path, capsys):
    (tmp_path / "eval.yaml").write_text("theirs")
    assert cli.main(["leaderboard", "init", "cifar10", "--n", "30"]) == 2
    assert "eval.yaml is there already; move it away" in capsys.readouterr().err
    assert (tmp_path / "eval.yaml").read_text() == "theirs"
    assert cli.main(["leaderboard", "init", "cifar10", "--n", "0"]) == 2
