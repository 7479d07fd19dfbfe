"""Models as directories: timm's config.json, safetensors weights, nothing else. Saved and loaded strictly."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session, hf_hub_download
from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id
from timm.models._hub import save_config_for_hf
from torch import nn

import piat_hub.backbones  # noqa: F401  registers our architectures with timm
from piat_hub import card, tensors, untrusted
from piat_hub.config import (
    RESULTS,
    VERDICTS,
    WEIGHTS,
    InputError,
    PushOptions,
    TrainConfig,
    nearest,
    to_dict,
)
from piat_hub.files import file_digest, own, read_config, read_json, read_lines, sealed, whole_file
from piat_hub.published import PUBLISHED
from piat_hub.results import read_results
from piat_hub.small_image import Normalize

ORIGIN = ("license", "origin_url", "paper_name", "paper_ids")  # what pretrained_cfg says of where weights come from
SILENCE = 300.0  # seconds without a byte from the Hub, after which a push gives up
PASSING = (429, 500, 502, 503, 504)  # statuses that may be gone a moment later
RECORDS = (  # what a push may send; an earlier push's that the run has no more are deleted
    *("config.json", "README.md", *WEIGHTS.values(), *RESULTS.values(), *VERDICTS.values()),
    *("curves.png", "sweep.png", "metrics.jsonl", "timing.jsonl"),
)


def save_pretrained(
    model: nn.Module,
    directory: str | Path,
    *,
    config: TrainConfig | None = None,
    label_names: tuple[str, ...] = (),
    input_size: tuple[int, int, int] | None = None,
) -> Path:
    """Write config.json (timm's Hub format plus a root "piat" block) and model.safetensors into `directory`.

    Args: model built by timm or `create_model`; config the run it comes from; label_names one per class; input_size
    (C, H, W) of its images. Returns the directory. Each file is replaced whole or not at all.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    save_config(model, directory, config=config, label_names=label_names, input_size=input_size)
    save_weights(model, directory / WEIGHTS["last"])
    return directory


def save_config(
    model: nn.Module,
    directory: Path,
    *,
    config: TrainConfig | None = None,
    label_names: tuple[str, ...] = (),
    input_size: tuple[int, int, int] | None = None,
) -> None:
    """Write config.json: what rebuilds the architecture, by timm alone or by `from_pretrained`."""
    extra: dict[str, Any] = {"piat": to_dict(config)} if config else {}
    if label_names:
        extra["label_names"] = list(label_names)
    channels = input_size[0] if input_size else getattr(model, "in_chans", 3)
    preprocessing: dict[str, Any] = {"mean": (0.0,) * channels, "std": (1.0,) * channels, "crop_pct": 1.0}
    overrides: dict[str, Any] = {"tag": "piat"}
    if input_size:
        preprocessing["input_size"] = overrides["input_size"] = input_size
    with whole_file(directory / "config.json") as scratch:
        options = {**extra, "pretrained_cfg": overrides}
        save_config_for_hf(model, str(scratch), model_config=options, data_config=preprocessing)
        saved = read_json(scratch)
        if config:  # timm's facts of its own weights for this architecture: of these only if training began with those
            known = saved["pretrained_cfg"]
            origin = {"license": "unknown"} | {k: known[k] for k in ORIGIN if k in known} if config.init_from else {}
            saved["pretrained_cfg"] = {k: v for k, v in known.items() if k not in ORIGIN} | origin
        scratch.write_text(json.dumps(sealed(saved), indent=2) + "\n", encoding="utf-8")


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the model's parameters and buffers as safetensors; the file appears whole or not at all."""
    tensors.save(model.state_dict(), path)


def from_pretrained(
    model_id: str | Path,
    *,
    checkpoint: str = "last",
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """A trained classifier, in eval mode: images (B, C, H, W) in [0, 1] to logits (B, K).

    Args:
        model_id: a run directory or any directory with config.json and model.safetensors, or a Hub id
            ("ORG/NAME", also "ORG/NAME@revision"); a model of `list_pretrained()` is had at its pinned revision.
        checkpoint: "last", or "best" for the epoch chosen on held-out images.
        revision, cache_dir, token, local_files_only: as in huggingface_hub.
        device: where the model goes.
    Returns: the model, with `label_names` (tuple of str), `piat` (the training configuration as a dict, or {}) and
    `weights_sha256` (of the weights file).
    Raises: ValueError if there is no such model, or its weights do not fit its config.json exactly. No pickle is read.
    """
    if checkpoint not in WEIGHTS:
        raise InputError(f"checkpoint {checkpoint!r} is unknown{nearest(checkpoint, WEIGHTS)}; choose last or best")
    names = ("config.json", WEIGHTS[checkpoint])
    if Path(model_id).is_dir():
        if revision:
            raise InputError(f"{model_id} is a directory, which has no revision {revision!r}; leave it out")
        config_file, weights_file = (own(model_id, name) for name in names)
        for file in (config_file, weights_file):
            if not file.is_file():
                raise InputError(f"{model_id} is no model: it has no {file.name}; train one, or give another MODEL")
        known: dict[str, Any] = {}
    else:
        name, _, pinned = str(model_id).partition("@")
        known = PUBLISHED.get(name, {})
        where: dict[str, Any] = {"cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
        where["revision"] = revision or pinned or known.get("revision")
        config_file = _download(name, names[0], where)
        if re.fullmatch("[0-9a-f]{40}", commit := config_file.parent.name):  # both files of one commit
            where["revision"] = commit
        weights_file = _download(name, names[1], where)
    config = read_config(config_file)
    model = untrusted.build(config, weights_file, str(config_file))
    model.weights_sha256 = file_digest(weights_file)
    if known and where["revision"] == known["revision"] and model.weights_sha256 != known["weights_sha256"][checkpoint]:
        raise InputError(f"{weights_file} is not what we published as {name}: another sha256; delete it and load again")
    preprocessing = config.get("pretrained_cfg") or {}
    if "piat" not in config and any(preprocessing.get("mean") or ()):
        raise InputError(
            f"{model_id} wants normalised images, as timm's own models do; evaluate takes it as hf-hub:ORG/NAME"
        )
    said = {key: preprocessing.get(key) for key in ORIGIN}  # not what timm says of its own weights
    model.pretrained_cfg |= {key: value if isinstance(value, str) else None for key, value in said.items()}
    model.label_names = tuple(config.get("label_names") or ())
    model.piat = config.get("piat") or {}
    return model.to(device).eval()


@dataclass(frozen=True)
class Pushed:
    """Where a push went: the `url` of its commit or pull request, the commit, and whether anything was new."""

    url: str
    revision: str
    changed: bool


def push_to_hub(
    run: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
) -> Pushed:
    """Publish a run directory as one commit to a model repository, made if there is none.

    Args:
        run: its config.json, weights, card, records and what was measured on these weights go (see `publication`);
            what an earlier push left and the run no longer has is deleted in the same commit.
        repo_id: "ORG/NAME"; private: a new repository is; revision: a branch, made if there is none; create_pr: open a
            pull request instead of writing to main; token: by default the one that `hf auth login` or HF_TOKEN gave.
    Raises: InputError if the run is not whole or the Hub refuses. Nothing is then half-published, and the same call
    again sends only what has not arrived; with nothing new, it sends nothing (but opens the pull request it was told to).
    """
    options = PushOptions(private, revision, create_pr)
    check_id(repo_id)
    files = publication(Path(run), repo_id)
    api = HfApi(token=token)
    # where a reply is lost, a second request would be a second pull request
    pauses = [] if create_pr else [1.0, 4.0, 16.0]
    while True:
        get_session().timeout = SILENCE  # by default the client would wait for ever
        try:
            return _push(api, files, repo_id, options)
        except InputError:
            raise
        except (HTTPError, OSError, ValueError, RuntimeError, KeyError) as found:
            error = found.__cause__ if type(found) is RuntimeError and found.__cause__ else found  # a failed upload
            response = getattr(error, "response", None)
            passing = response is None and isinstance(error, HTTPError)
            if not pauses or not (passing or getattr(response, "status_code", 0) in PASSING):
                raise InputError(f"{repo_id} was not pushed: {_advice(error, repo_id)}") from error
            time.sleep(_seconds(response) or pauses[0])
            pauses.pop(0)


def _push(api: HfApi, files: Mapping[str, Any], repo_id: str, options: PushOptions) -> Pushed:
    api.create_repo(repo_id, private=options.private, exist_ok=True)
    if (branch := options.revision or "main") != "main":
        api.create_branch(repo_id, branch=branch, exist_ok=True)
    head = api.model_info(repo_id, revision=branch)
    there = {sibling.rfilename for sibling in head.siblings or ()}
    if options.private and not head.private:
        raise InputError(f"{repo_id} is public already; make it private in its settings first, or name another")
    if there - {".gitattributes", ".gitignore", "README.md", "LICENSE"}:
        theirs = api.hf_hub_download(repo_id, "config.json", revision=head.sha) if "config.json" in there else None
        if theirs is None or "piat" not in read_config(Path(theirs)):
            raise InputError(f"{repo_id} holds something that piat_hub did not push; choose another name")
    operations: list[Any] = [CommitOperationAdd(path, content) for path, content in files.items()]
    ours = {path for path in there if path.rpartition("/")[2] in RECORDS}
    operations += [CommitOperationDelete(path) for path in sorted(ours - set(files))]
    message = f"{'Update' if there & set(RECORDS) else 'Add'} {repo_id.rpartition('/')[2]}"
    where: dict[str, Any] = {"revision": branch, "create_pr": options.create_pr, "parent_commit": head.sha}
    done = api.create_commit(repo_id, operations, commit_message=message, **where)
    return Pushed(str(done.pr_url or done.commit_url), str(done.oid), done.oid != head.sha)


def publication(run: Path, repo_id: str) -> dict[str, bytes | str]:
    """What a push sends: path in the repository -> content, or the file it lies in. InputError if the run is not whole.

    config.json without paths of this machine, the card for `repo_id`, weights, curves, metrics, and results with
    their verdicts where they are of these weights.
    """
    config, _ = card.read(run)
    for checkpoint, file in WEIGHTS.items():
        if checkpoint == "last" or (run / file).exists():
            from_pretrained(run, checkpoint=checkpoint)
    files: dict[str, bytes | str] = {
        "config.json": (json.dumps(sealed(config), indent=2) + "\n").encode(),
        "README.md": card.render(run, repo_id).encode(),
    }
    measured = [card.files_of(key) for key in card.measured(run)]
    for _, verdicts in measured:
        read_results((run / verdicts).parent, {v: k for k, v in VERDICTS.items()}[Path(verdicts).name])
    read_lines(own(run, "metrics.jsonl"))
    kept = {name for pair in measured for name in pair}
    others = set(RECORDS) - {*RESULTS.values(), *VERDICTS.values(), *files}
    paths = {name: own(run, name) for name in sorted({*others, *kept})}
    return files | {name: str(path) for name, path in paths.items() if path.is_file()}


def check_push(repo_id: str, token: str | None = None) -> None:
    """InputError unless the Hub can be reached and the token's owner may write to ORG: what a training asks first."""
    check_id(repo_id)
    try:
        who = HfApi(token=token).whoami()
    except (HTTPError, OSError, ValueError) as error:
        raise InputError(f"{repo_id} cannot be pushed to: {_advice(error, repo_id)}") from error
    names = [who["name"], *(org["name"] for org in who.get("orgs", ()))]
    if repo_id.partition("/")[0] not in names:
        raise InputError(f"{repo_id} cannot be pushed to: this token writes to {', '.join(names)}; choose one of these")


def _advice(error: BaseException, repo_id: str) -> str:
    """What went wrong between us and the Hub, and what to do, in one line."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    known = {
        401: "the Hub knows no such token; run `hf auth login` or set HF_TOKEN",
        403: f"the token may not write to {repo_id}; ask its owners, or use another token or name",
        404: f"there is no {repo_id}, or the token may not see it; check the name",
        409: f"the Hub reports a conflict over {repo_id}; choose another name, or wait and push again",
        412: f"{repo_id} was changed by somebody else meanwhile; push again",
        429: "the Hub asks for a pause; push again later",
    }
    if isinstance(error, LocalTokenNotFoundError):
        return known[401]
    if status in known:
        return known[status]
    if isinstance(error, KeyError):
        return f"the Hub's answer lacks {error}, which the client needs; push again later"
    again = "push again: what has arrived is not sent twice"
    if status in PASSING:
        return f"the Hub answers with {status}; {again}"
    if status or isinstance(error, ValueError):
        said = getattr(error, "server_message", None) or " ".join(str(error).split())
        return f"the Hub refuses{f' ({status})' if status else ''}: {said}"
    return f"{_first_line(error)}; check the network and {again}"


def _seconds(response: Any) -> float:
    """How long a Retry-After header asks to wait, at most a minute; 0 without one."""
    text = response.headers.get("Retry-After", "") if response is not None else ""
    return min(60.0, float(text)) if text.isdigit() else 0.0


def start_from(model: Any, source: str) -> None:
    """Give `model` the weights of a trained MODEL (see `from_pretrained`), but for a head of another class count.

    model: built by `create_model`, of the same backbone and channels. InputError if anything but the head differs.
    """
    trained: Any = from_pretrained(source)
    weights, own = trained.state_dict(), model.state_dict()
    heads = model.pretrained_cfg["classifier"]
    heads = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    fits = {name: t for name, t in weights.items() if name in own and t.shape == own[name].shape}
    wrong = sorted(name for name in own.keys() | weights.keys() if name not in fits and not name.startswith(heads))
    if wrong:
        built = trained.pretrained_cfg.get("architecture")
        raise InputError(
            f"the weights of {source} ({built}) do not fit this backbone at {wrong[0]!r}; "
            "choose its --backbone and images of its channels and size"
        )
    model.load_state_dict(fits, strict=False)
    ours = {"license": "mit"} if trained.piat else {}  # unless it says otherwise
    model.pretrained_cfg |= {key: trained.pretrained_cfg.get(key) or ours.get(key) for key in ORIGIN}


def keep_origin(model: Any, directory: Path) -> None:
    """What a run's config.json says of the weights it began with, for the run to go on without those."""
    try:
        known = read_config(directory / "config.json").get("pretrained_cfg") or {}
    except InputError:  # damaged: it is written anew
        known = {}
    model.pretrained_cfg |= {key: known.get(key) for key in ORIGIN}


def from_timm(spec: str) -> nn.Module:
    """Any of timm's pretrained classifiers, "hf-hub:ORG/NAME", in eval mode and taking images in [0, 1].

    Its normalisation, recorded in its config.json, is put before it. InputError if it cannot be had.
    """
    try:
        model = timm.create_model(spec, pretrained=True)
    except Exception as error:  # timm passes on whatever the network, the Hub or the weights raise
        raise InputError(f"no model {spec!r} for timm: {_first_line(error)}; check the name or the network") from error
    mean, std = (torch.tensor(model.pretrained_cfg[key]) for key in ("mean", "std"))
    return nn.Sequential(Normalize(mean, std), model).eval()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def list_pretrained(directory: str | Path = "model_cards") -> list[dict[str, Any]]:
    """The models that `from_pretrained` gives, best known first: those published on the Hub, then those in `directory`.

    Each is a dict: "model" (what to load it by), "architecture", "dataset", "method", "threat_model", and, as far as
    measured, "clean_acc", "pgd20_acc", "aa_acc" (fractions) with "n" (images, by attack); or "problem" in place of these,
    for a folder that holds no whole model.
    """
    rows = [row | {"model": name} for name, row in PUBLISHED.items()]
    for path in sorted(path.parent for path in Path(directory).glob("*/config.json")):
        try:
            rows.append(card.summary(path))
        except (InputError, OSError) as error:
            rows.append({"model": str(path), "problem": str(error)})
    return rows


def _download(repo_id: str, filename: str, where: Mapping[str, Any]) -> Path:
    check_id(repo_id, "there is no such directory, and ")
    try:
        return Path(hf_hub_download(repo_id, filename, **where))
    except Exception as error:  # the client passes on whatever the network, the Hub or the disk raise
        if isinstance(error, HTTPError) and not hasattr(error, "response"):  # the connection broke: is there a copy?
            with contextlib.suppress(Exception):
                return Path(hf_hub_download(repo_id, filename, **{**where, "local_files_only": True}))
        status = getattr(getattr(error, "response", None), "status_code", None)
        advice = "check the name or the network, or give a local directory"
        if isinstance(error, RevisionNotFoundError):
            advice = f"there is no revision {where['revision']!r}"
        elif status in (401, 403):
            advice = "check the name; if it is private, run `hf auth login` or set HF_TOKEN"
        raise InputError(
            f"no {filename} for {repo_id!r}: no such directory, and the Hub says: {_first_line(error)}; {advice}"
        ) from error


def check_id(repo_id: str, what: str = "") -> None:
    """InputError unless it is ORG/NAME as the Hub allows it; `what` begins the message."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        pass
    else:
        if "/" in repo_id:
            return
    raise InputError(
        f"{what}{repo_id!r} is no Hub id; it must be ORG/NAME, of letters, digits, '-', '_' and single '.'"
    )
