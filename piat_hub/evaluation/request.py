"""The evaluation of one MODEL: a checked request, its images, where its results go."""

import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from piat_hub import data
from piat_hub.config import EvalConfig, InputError, ThreatModel, TrainConfig, from_dict, number
from piat_hub.evaluation import checks, corruptions, loop
from piat_hub.evaluation.loop import ALONE, Processes, Progress, trained_against
from piat_hub.evaluation.model import images_for, is_code, label_names, load_model, weights_digest
from piat_hub.evaluation.own_code import source_digest
from piat_hub.evaluation.suites import suite
from piat_hub.evaluation.verdict import class_count, verdict_mode
from piat_hub.hub import card
from piat_hub.machine import PATIENCE, device_of, images_at_a_time, see_cpu_processes, set_threads
from piat_hub.records.budgets import add_point, point_at, read_off
from piat_hub.records.claims import precision_of
from piat_hub.records.files import check_output
from piat_hub.records.lock import only_writer
from piat_hub.records.results import Results


@dataclass(frozen=True)
class Evaluation:
    """A checked request: one model, its images, its results so far, and the directory they are written to.

    Attributes:
        config: what was asked for.
        name: what the model is called.
        model: placed on its device.
        split: the images, on the CPU.
        results: filled in by `measure`, `sweep` and `check`.
        output: where results and verdicts are written, of several threat models in a folder of it for each.
        of_run: the output is the model's own run, whose card is written anew.
        surrogate: another model of the same task, for `check`.
        processes: who shares the work.
    """

    config: EvalConfig
    name: str
    model: nn.Module
    split: data.Split
    results: Results
    output: Path
    of_run: bool
    surrogate: nn.Module | None = None
    processes: Processes = ALONE

    @property
    def directory(self) -> Path:
        """Where results and verdicts are written."""
        return self.output / self.results.threat_model.folder if self.config.threat_models else self.output

    @contextmanager
    def writing(self) -> Iterator[None]:
        """No other process writes in the output inside the block, which goes on from what is measured there by now.

        `measure`, `sweep` and `check` belong inside it, all of them in one, so that nobody comes between them.

        Raises:
            InUse: while another process writes there.
            InputError: where other results lie, or damaged ones, which are moved aside.
        """
        with only_writer(self.output, launch=True), only_writer(self.directory, launch=True):
            self.results.resume(self.directory, stopped=self.config.resume)
            yield

    def measure(self, ends: float = math.inf) -> Iterator[Progress]:
        """Run the attacks; results and verdicts are saved after every batch, a run directory's card at the end.

        Args:
            ends: the `time.monotonic()`, in seconds, after which no batch is begun; `results.running` then tells where
                it stopped.

        Yields:
            How far the attack under way is, after each batch of every process.
        """
        events = loop.measure(
            self.model,
            self.split,
            self.config.attacks,
            self.results,
            step_size=self.config.step_size,
            restarts=self.config.restarts,
            batch_size=self.batch_size,
            search_precision=self.config.search_precision,
            save=self._save,
            processes=self.processes,
        )
        for event in events:
            yield event
            if not self.on_time(ends):
                return
        self.write_card()

    def swept(self, eps: float) -> bool:
        """Whether every attack is measured at this budget of `sweep_eps`, as it is asked for."""
        done, step = point_at(self.results, eps), self.config.step_size or eps / 4
        return all(
            a in done
            and precision_of(done[a]) == self.config.search_precision
            and math.isclose(number(done[a].get("step_size", step)), step, rel_tol=1e-3)
            for a in self._run_at_each()
        )

    def _run_at_each(self) -> list[str]:
        return [a for a in self.config.attacks if a != "clean" and a not in self.results.reach]

    def sweep(self, ends: float = math.inf) -> Iterator[dict[str, Any]]:
        """Measure the attacks at each of `sweep_eps`, saved one by one; what was measured before is not measured again.

        Args:
            ends: the `time.monotonic()`, in seconds, after which no budget is begun.

        Yields:
            A point for each budget, {"eps", "attacks"}, as results.json holds it under "sweep".
        """
        config, results = self.config, self.results
        options: dict[str, Any] = {"restarts": config.restarts, "search_precision": config.search_precision}
        options |= {"batch_size": self.batch_size, "processes": self.processes, "step_size": config.step_size}
        for eps in config.sweep_eps:
            at = Results.of(self.split, ThreatModel(results.threat_model.norm, eps), seed=results.seed)
            if not self.swept(eps):
                for _ in loop.measure(self.model, self.split, self._run_at_each(), at, **options):
                    pass
            read = {a: read_off(results, a, eps) for a in config.attacks if a in results.reach}
            point = add_point(results, eps, {"clean": results.attacks["clean"]} | at.attacks | read)
            self._save(results)
            yield point
            if not self.on_time(ends) and not all(map(self.swept, config.sweep_eps)):
                return
        self.write_card()

    def corruptions(self, ends: float = math.inf) -> Iterator[Progress]:
        """Measure the corrupted images, saved after each severity; what was measured before is not measured again.

        Args:
            ends: as in `measure`.

        Yields:
            How far it has come after each severity, its attack being the corruption and that, "fog 3".
        """
        images = data.Corrupted.open(str(self.config.corruptions), self.config.n)
        options = {"batch_size": self.batch_size, "save": self._save, "processes": self.processes}
        for event in corruptions.measure(self.model, images, self.results, **options):  # type: ignore[arg-type]
            yield event
            if not self.on_time(ends):
                return
        self.write_card()

    def check(self, images: int = 100) -> Iterator[dict[str, Any]]:
        """The honesty report on some of the images; yields each check, all saved at the end.

        Args:
            images: how many of the split's, from all over (see `Split.spread`).

        Yields:
            Each check as `checks.check` does, with "n", the images that it is of.
        """
        found = []
        threat = self.results.threat_model
        asked: dict[str, Any] = {"seed": self.results.seed, "surrogate": self.surrogate}
        asked["steps"] = max((f["steps"] for f in self.results.attacks.values() if "steps" in f), default=20)
        for result in checks.check(self.model, self.split.spread(images), threat, **asked):
            found.append(result | {"n": min(images, len(self.split))})
            yield found[-1]
        self.results.checks = found
        self._save(self.results)
        self.write_card()

    @property
    def batch_size(self) -> int:
        """How many images are attacked at a time: as asked, else 250 on a CPU, 1000 on a GPU."""
        return self.config.batch_size or images_at_a_time(device_of(self.model))

    def on_time(self, ends: float) -> bool:
        """No process is past `ends`; every process must call it.

        Args:
            ends: a `time.monotonic()`, in seconds.
        """
        return bool(self.processes.least(torch.tensor(int(time.monotonic() < ends), device=device_of(self.model))))

    def _save(self, results: Results) -> None:
        if self.processes.rank == 0:
            results.save(self.directory)

    def write_card(self) -> None:
        """Write the run's card anew, where the output is a run's."""
        if self.of_run and self.processes.rank == 0:
            card.write(self.output)


def prepare_evaluation(spec: str, config: EvalConfig) -> Evaluation:
    """`prepare`, of a request that names no several threat models."""
    (one,) = prepare(spec, config)
    return one


def prepare(spec: str, config: EvalConfig) -> list[Evaluation]:
    """Load MODEL and its data and check the whole request; nothing is measured or written yet.

    Args:
        spec: a run or model directory, a Hub id (with @revision), "hf-hub:ORG/NAME" for timm's own, or
            "module:callable" for anyone's nn.Module.
        config: what to measure, and where the figures go.

    Returns:
        An evaluation for each threat model, all of the same model and images.

    Raises:
        InputError: for a model, data, an attack or a budget that cannot be had, an output that holds another model or
            other results, or damaged ones, which are moved aside; InUse, while another process writes in the output.
    """
    see_cpu_processes()
    accelerator = Accelerator(kwargs_handlers=[PATIENCE])
    set_threads(config.threads)
    with accelerator.main_process_first():
        model, name, directory = load_model(spec, config.checkpoint, config.mean, config.std, config.through)
        surrogate = load_model(config.surrogate)[0] if config.surrogate else None
        split = evaluation_data(spec, config, model)
    if surrogate and len({label_names(model), label_names(surrogate)} - {()}) > 1:
        raise InputError(
            f"{config.surrogate} has other classes than {spec}, or in another order; name another --surrogate"
        )
    with verdict_mode(model) as exact:
        classes = class_count(exact, split)
    if surrogate:
        try:
            with verdict_mode(surrogate) as exact:
                class_count(exact, split)
        except InputError as error:
            raise InputError(f"--surrogate {config.surrogate} does not go with the images: {error}") from error
    threats = config.several() or [config.threat_model(trained_against(model))]
    swept = [ThreatModel(threats[0].norm, eps) for eps in config.sweep_eps]
    for threat, attack in itertools.product([*threats, *swept], config.attacks):
        asked = (threat, classes, config.step_size, config.seed, config.restarts)
        suite(attack, *asked, precision=config.search_precision)
    if config.checks and "L1" in [threat.norm for threat in threats]:
        raise InputError("--checks compares runs of PGD, which has no L1; ask for it under Linf or L2, or leave it out")
    output = Path(config.output) if config.output else directory or Path("results") / name
    check_output(output)
    own = Path(spec).is_dir() and output.resolve() == Path(spec).resolve()
    if (output / "config.json").exists() and not own:
        raise InputError(f"{output} holds another model; name another --output")
    if config.corruptions and (shape := data.Corrupted.open(config.corruptions, config.n).shape) != split.shape:
        raise InputError(
            f"the images in {config.corruptions} are {shape}, those that the model gets here {split.shape} (channels, height, "
            "width): they are measured as they lie; leave out --img-size, or --corruptions"
        )
    weights = weights_digest(model)
    if len(set(gather_object([weights]))) > 1:
        raise InputError(f"{spec} is not the same in every process of this launch; evaluate it once it stays as it is")
    if config.mean:  # another question of the same weights
        weights += f" behind mean {config.mean} std {config.std}"
    if config.through:
        weights += f" through {config.through} {source_digest(config.through)}"
    if is_code(spec):
        weights += f" in code {source_digest(spec)}"
    facts = {"split": config.split, "seed": config.seed, "checkpoint": config.checkpoint, "weights": weights}
    empty = Results.of(split, threats[0], **facts)
    placed = model.to(accelerator.device).to(memory_format=torch.channels_last)
    rank, world = accelerator.process_index, accelerator.num_processes

    def least(tensor: Tensor) -> Tensor:
        return accelerator.gather(tensor[None]).amin(0) if world > 1 else tensor.clone()

    processes = Processes(rank, world, least)
    of_run = own and bool(getattr(model, "piat", None) or getattr(model, "origin", None))
    evaluations = []
    for threat in threats:
        results = dataclasses.replace(copy.deepcopy(empty), threat_model=threat)
        one = Evaluation(config, name, placed, split, results, output, of_run, surrogate, processes)
        with one.writing():  # takes up what was measured before, or refuses
            evaluations.append(one)
    return evaluations


def evaluation_data(spec: str, config: EvalConfig, model: nn.Module) -> data.Split:
    """The images to evaluate on: those asked for, else the test split of what the model was trained for.

    Their labels are numbered as the model's classes are, where both have names.

    Args:
        spec: MODEL, as messages call it, and whose folder is looked into.
        config: names data set, split, columns, size and n.
        model: as `load_model` gives it for `spec`.

    Raises:
        InputError: where neither says what data it is for, it has other classes, or `data.load` refuses.
    """
    piat = getattr(model, "piat", None)
    trained = from_dict(TrainConfig, piat) if piat else None
    dataset = config.dataset or getattr(getattr(model, "origin", None), "dataset", None)
    if not dataset and not trained:
        raise InputError(f"{spec} does not say what data it is for; name it with --dataset")
    columns = (config.image_column, config.label_column)
    if not dataset and trained:
        dataset = data.named_by(spec, trained.dataset)
        columns = (columns[0] or trained.image_column, columns[1] or trained.label_column)
    asked: dict[str, Any] = {"img_size": config.img_size, "files": config.files}
    return images_for(model, str(dataset), config.split, *columns, **asked).first(config.n)
