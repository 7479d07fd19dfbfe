"""A benchmark data set's `eval.yaml`: the tasks that the Hub ranks results of models in.

The form is https://huggingface.co/docs/hub/eval-results; the tasks' ids are those that a push writes into
`.eval_results` (`hub.eval_results`).
"""

from collections.abc import Sequence

from huggingface_hub.utils import yaml_dump

from piat_hub.config import DATASETS, InputError, ThreatModel
from piat_hub.evaluation.suites import suite
from piat_hub.hub.eval_results import hub_id, task_id
from piat_hub.records.labels import attack_name

FRAMEWORK = "piat-hub"  # the Hub takes only frameworks of its own list, and ours has to be added there


def eval_yaml(
    dataset: str, attacks: Sequence[str], threat_models: Sequence[ThreatModel], n: int, split: str = "test"
) -> str:
    """The content of eval.yaml: a task for the clean accuracy, and one for each attack under each threat model.

    Args:
        dataset: an alias or a Hub id.
        attacks: names as in `evaluation.suites.suite`.
        threat_models: norm and eps each.
        n: the first so many images of the split, which a result must be of.
        split: of the data set.

    Raises:
        InputError: for a data set that is not on the Hub, or an unknown attack.
    """
    if not (data := hub_id(dataset)):
        raise InputError(f"{dataset} is no data set of the Hub, where a benchmark lies; give its id, ORG/NAME")
    tasks: dict[str, None] = {}  # clean is one task under all of them
    for threat in threat_models:
        for attack in attacks:
            suite(attack, threat, num_classes=10)  # or InputError
            tasks[task_id(attack_name(attack), threat, n, split)] = None
    where = {"config": DATASETS[dataset][1]} if dataset in DATASETS and DATASETS[dataset][1] else {}
    models = ", ".join(map(str, threat_models))
    content = {
        "name": f"Robustness on {data}",
        "description": f"Accuracy of image classifiers on the first {n} images of {split}, clean and attacked: {models}.",
        "evaluation_framework": FRAMEWORK,
        "tasks": [{"id": task, **where, "split": split} for task in tasks],
    }
    return str(yaml_dump(content, sort_keys=False))
