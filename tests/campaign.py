"""The fault campaign, `make faults`: runs killed, files damaged, a Hub that fails, configs and headers at random.

Each attempt is counted as survived or lost: a run that does not end with the bytes of one left alone, damage that is
neither named nor harmless, a push that leaves half of anything, an error that is none of ours. `--scale 0.1` is a tenth.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from functools import partial
from pathlib import Path

import conftest  # with the tests' environment: no network, one thread
import timm
import torch
from tabulate import tabulate

from piat_hub import machine
from piat_hub.config import EvalConfig, InputError, RunOptions, recipes
from piat_hub.evaluation.loop import trained_against
from piat_hub.evaluation.request import prepare_evaluation
from piat_hub.hub.load import from_pretrained
from piat_hub.hub.save import save_pretrained
from piat_hub.records import files, results, tensors
from piat_hub.records.model_config import ModelConfig
from piat_hub.records.rundir import RunDirectory
from piat_hub.training import run

RUN = ("model.safetensors", "model_best.safetensors", "metrics.jsonl", "state/state.safetensors")
OPTIONS = ({}, {"method": "free_at", "ema": 0.9}, {"method": "trades", "accumulation": 2, "swa": 0.3, "awp": 0.01})


def small(**changes):
    """The `digits` recipe cut down to a second."""
    base = {"train_size": 192, "holdout": 64, "epochs": 4, "clean_epochs": 1, "batch_size": 64}
    return dataclasses.replace(recipes.get("digits"), **(base | changes))


def train(config, folder):
    """Begin the run in a folder, or go on with it."""
    resume = (folder / "config.json").exists()
    options = RunOptions(output=str(folder), resume=resume, save_every_steps=2, threads=1)
    for _ in run.train(config, options):
        pass


def evaluate(folder):
    """Measure a run, or go on measuring it, in small batches."""
    config = EvalConfig(attacks=("clean", "pgd20", "mim10"), n=100, batch_size=20, resume=True, threads=1)
    for _ in prepare_evaluation(str(folder), config).measure():
        pass


def same(a, b, names):
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in names)


def killed(work, rng, whole):
    """Do `work` in a process of its own that is killed: at a moment of its `whole` CPU seconds, or at a call that writes.

    Gives where it was, or "" if it was done before.
    """
    at_call = rng.choice(["", "", "os.replace", "os.fsync", "Path.unlink", "ParameterInterpolation.step"])
    arm = (
        partial(die_at, at_call, rng.randrange(1, 9)) if at_call else partial(conftest.die_after, rng.uniform(0, whole))
    )
    return (at_call or "any moment") if conftest.killed(work, arm) else ""


def die_at(name, number):
    """SIGKILL to itself before, or after, the so-and-so-manieth of these calls."""
    from piat_hub.training.interpolation import ParameterInterpolation

    owner = {"os": os, "Path": Path, "ParameterInterpolation": ParameterInterpolation}[name.partition(".")[0]]
    attribute, calls = name.partition(".")[2], []
    real = getattr(owner, attribute)

    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == number and number % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        done = real(*args, **kwargs)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    setattr(owner, attribute, counted)


def kills(count, folder, rng):
    """Trainings and evaluations, killed again and again until they are done; equal bytes are asked for at their ends."""
    tally, fresh = Counter(), folder / "fresh"
    train(small(), fresh)
    works = [("training", partial(train, small(**options)), RUN) for options in OPTIONS]
    works.append(("evaluation", evaluate, ("verdicts.npz",)))

    def begin(kind, place):
        return shutil.copytree(fresh, place) if kind == "evaluation" else place

    for kind, work, names in works:
        whole, points = begin(kind, folder / "whole"), 0
        clock = time.process_time()
        work(whole)
        seconds = time.process_time() - clock
        while points < count / len(works):
            place, where = begin(kind, folder / "place"), []
            while at := killed(partial(work, place), rng, seconds):
                where.append(at)
            outcome = "survived" if same(place, whole, names) else "lost"
            tally.update((f"killed in {kind}: {at}", outcome) for at in where)
            points += len(where)
            shutil.rmtree(place)
        shutil.rmtree(whole)
    return tally


def damaged(content, kind, rng, foreign):
    """The bytes of a file after an accident of this kind."""
    if kind == "truncated":
        return content[: rng.randrange(len(content))]
    if kind == "one bit flipped":
        flipped = bytearray(content)
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if kind == "a stretch zeroed":
        start = rng.randrange(len(content))
        return content[:start] + bytes(min(len(content) - start, 512)) + content[start + 512 :]
    return {"empty": b"", "another file's content": foreign, "noise": rng.randbytes(len(content))}[kind]


DAMAGE = ("truncated", "one bit flipped", "a stretch zeroed", "empty", "another file's content", "noise")


def said(of, name):
    """What reading something gives: its content in comparable form, or InputError's type, a refusal that names the file."""
    try:
        return of()
    except InputError as error:
        assert str(error).isprintable() and name in str(error), error
        return InputError


def resumed(folder):
    train(small(), folder)
    return [(folder / name).read_bytes() for name in RUN]


def damage(count, folder, rng):
    """Every file of a run after every kind of accident: what it holds is read as before, or refused by name."""
    whole = folder / "damage"
    train(small(), whole)
    evaluate(whole)
    weights = lambda p, which: tensors.digest(from_pretrained(p, checkpoint=which).state_dict())  # noqa: E731
    readers = {
        "config.json": lambda p: (RunDirectory.read(p).model, weights(p, "last")),
        "model.safetensors": lambda p: weights(p, "last"),
        "model_best.safetensors": lambda p: weights(p, "best"),
        "metrics.jsonl": files.read_metrics,
        "results.json": lambda p: (RunDirectory.read(p).measured, results.read_results(p)[0]),
        "verdicts.npz": lambda p: {name: v.tolist() for name, v in results.read_results(p)[1].items()},
        "state/state.safetensors": resumed,
    }
    expected = {name: reader(whole) for name, reader in readers.items()}
    tally, place = Counter(), folder / "damaged"
    for number in range(count):
        name, kind = list(readers)[number % len(readers)], rng.choice(DAMAGE)
        shutil.copytree(whole, place)
        kinds = [other for other in readers if other != name and Path(other).stem[:5] != Path(name).stem[:5]]
        foreign = (whole / rng.choice(kinds)).read_bytes()  # best weights in the last ones' place are no damage
        (place / name).write_bytes(damaged((whole / name).read_bytes(), kind, rng, foreign))
        try:
            found = said(lambda: readers[name](place), Path(name).name)  # noqa: B023
            refused = found is InputError and name != "state/state.safetensors"  # there is the one before it
            outcome = "survived" if refused or found == expected[name] else "lost"
        except Exception:
            traceback.print_exc()
            outcome = "lost"
        tally[f"damaged: {name}", outcome] += 1
        shutil.rmtree(place)
    return tally


def hub_failures(folder):
    """Each request of a push and of a pull fails in each way; then nothing is half there, and the next try succeeds."""
    from hub_server import Fault, serve
    from test_push import PULL, Shell

    source, tally = folder / "pushed", Counter()
    train(small(), source)
    ways = [{"status": s} for s in (401, 403, 404, 409, 429, 500, 503, 0)] + [
        {"cut": 0},
        {"cut": 20},
        {"stall": 3, "status": 500},  # late, and then no answer
    ]
    stages = [
        ("POST", "/create$"),
        ("POST", "/preupload/"),
        ("POST", "/objects/batch"),
        ("PUT", ""),
        ("POST", "/commit/"),
    ]
    with serve({}) as server:
        shell = Shell(server.environment(folder / "home"))
        for number, ((method, path), way) in enumerate(itertools.product(stages, ways)):
            server.repositories.clear()
            server.faults[:] = [Fault(method, path, times=(1, 99)[number % 2], **way)]
            first = shell(f"push {source} org/net")
            there = "models/org/net" in server.repositories
            files = set(server.files("models/org/net")) if there else set()
            whole = {"config.json", "README.md", "model.safetensors"} <= files
            clean = whole if first.code == 0 else first.code == 2 and len(first.err.splitlines()) == 1
            clean &= whole or files <= {".gitattributes"}
            server.faults.clear()
            clean &= shell(f"push {source} org/net").code == 0
            tally["a push fails", "survived" if clean else "lost"] += 1
        shell.process.stdin.close()
        shell.process.wait()
        for way in ways[2::2]:
            for cached in (False, True):
                home = folder / f"home-{len(list(folder.iterdir()))}"
                pull = partial(conftest.python, "-c", PULL, **server.environment(home))
                whole = pull().stdout if cached else ""
                server.faults[:] = [Fault("GET|HEAD", "resolve", times=99, **way)]
                broken = pull()
                server.faults.clear()
                after = pull().stdout
                fits = after and (broken.stdout in ("", after)) and (not cached or whole == after)
                named = broken.returncode == 0 or "InputError" in broken.stderr.splitlines()[-1]
                tally["a pull fails", "survived" if fits and named else "lost"] += 1
    return tally


def fuzz(count, folder):
    """Configs and safetensors headers at random: only the documented errors, and no file beside what was there."""
    from hypothesis import HealthCheck, given, settings, strategies as some

    source = folder / "fuzzed"
    save_pretrained(timm.create_model("cifar_resnet8", in_chans=1), source, config=small(), input_size=(1, 8, 8))
    whole, weights = json.loads((source / "config.json").read_text()), (source / "model.safetensors").read_bytes()
    whole.pop("checksum")
    length = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + length])
    names = ["num_classes", "base", "img_size", "checkpoint_path", "layers", "channels", "block", "in_chans", "a\nb"]
    known = ["cifar_resnet8", "small_image", "resnet18", "../x", "hf-hub:a/b", "/etc/passwd", "F32", "I64", "\x1b["]
    numbers = some.integers(-(10**12), 10**12) | some.floats() | some.sampled_from([0, 1, 8, 10, 10**9, 2**63, 2**64])
    leaves = some.none() | some.booleans() | numbers | some.text(max_size=8) | some.sampled_from(known)
    keys = some.text(max_size=6) | some.sampled_from(names)
    nested = lambda v: some.lists(v, max_size=4) | some.dictionaries(keys, v, max_size=4)  # noqa: E731
    values = some.recursive(leaves, nested, max_leaves=8)
    tally, before = Counter(), sorted(p.name for p in source.iterdir())

    def paths(tree, at=()):
        yield at
        if isinstance(tree, dict | list):
            for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
                yield from paths(value, (*at, key))

    def replaced(tree, path, value):
        if not path:
            return value
        changed = dict(tree) if isinstance(tree, dict) else list(tree)
        changed[path[0]] = replaced(changed[path[0]], path[1:], value)
        return changed

    def attempt(kind, act):
        try:
            act()
            outcome = "survived"
        except InputError as error:
            outcome = "survived" if str(error).isprintable() and len(str(error)) < 2100 else "lost"
        except Exception:
            traceback.print_exc()
            outcome = "lost"
        tally[f"fuzzed: {kind}", outcome] += 1

    def of_config(text):
        (source / "config.json").write_bytes(text)
        ModelConfig.read(source / "config.json")
        with contextlib.suppress(InputError):
            RunDirectory.read(source)
        trained_against(from_pretrained(source))

    def of_header(content):
        (source / "model.safetensors").write_bytes(content)
        tensors.shapes(source / "model.safetensors")
        tensors.load(source / "model.safetensors")
        from_pretrained(source)

    def times(share):
        quiet = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
        return settings(max_examples=max(1, int(count * share)), **quiet)

    @times(0.45)
    @given(some.sampled_from(list(paths(whole))), values)
    def config_values(path, value):
        attempt("config.json, a value", lambda: of_config(json.dumps(replaced(whole, path, value)).encode()))

    @times(0.1)
    @given(some.dictionaries(some.sampled_from(list(whole)) | some.text(max_size=8), values, max_size=5))
    def config_objects(tree):
        attempt("config.json, an object", lambda: of_config(json.dumps(tree).encode()))

    @times(0.1)
    @given(
        some.dictionaries(some.sampled_from([*names, "drop_rate", "act_layer", "norm_layer", "global_pool"]), values)
    )
    def arguments(tree):
        attempt("config.json, model_args", lambda: of_config(json.dumps(whole | {"model_args": tree}).encode()))

    text = json.dumps(whole).encode()

    @times(0.1)
    @given(some.integers(0, len(text)), some.integers(0, 40), some.binary(max_size=20))
    def config_bytes(start, gone, new):
        attempt("config.json, bytes", lambda: of_config(text[:start] + new + text[start + gone :]))

    def with_header(tree):
        encoded = json.dumps(tree).encode()
        return len(encoded).to_bytes(8, "little") + encoded + weights[8 + length :]

    @times(0.15)
    @given(some.sampled_from(list(paths(header))), values)
    def header_values(path, value):
        attempt("safetensors header, a value", lambda: of_header(with_header(replaced(header, path, value))))

    @times(0.1)
    @given(some.integers(0, 8 + length), some.integers(0, 40), some.binary(max_size=20))
    def header_bytes(start, gone, new):
        attempt("safetensors header, bytes", lambda: of_header(weights[:start] + new + weights[start + gone :]))

    for strategy in (config_values, config_objects, arguments, config_bytes):
        strategy()
    (source / "config.json").write_bytes(text)
    for strategy in (header_values, header_bytes):
        strategy()
    assert sorted(p.name for p in source.iterdir()) == before
    return tally


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--only", nargs="+", default=["kills", "damage", "hub", "fuzz"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    output = given.output and given.output.resolve()
    torch.set_num_threads(1)
    lost = 0
    with tempfile.TemporaryDirectory(prefix="piat-faults-") as place:
        os.chdir(place)
        rng, folder = random.Random(given.seed), Path(place)
        parts = {
            "kills": partial(kills, 220 * given.scale, folder, rng),
            "damage": partial(damage, int(504 * given.scale), folder, rng),
            "hub": partial(hub_failures, folder),
            "fuzz": partial(fuzz, 110_000 * given.scale, folder),
        }
        for name in given.only:
            clock = time.monotonic()
            tally = parts[name]()
            whats = sorted({what for what, _ in tally})
            rows = [[w, tally[w, "survived"] + tally[w, "lost"], tally[w, "lost"]] for w in whats]
            lost += sum(row[2] for row in rows)
            print(tabulate(rows, [name, "tried", "lost"], tablefmt="github"), flush=True)
            if output:  # parts can be run apart: each replaces its own entry
                facts = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
                facts[name] = {"rows": rows, "seconds": round(time.monotonic() - clock), "seed": given.seed}
                facts[name] |= machine.environment(torch.device("cpu"))
                output.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        os.chdir("/")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
