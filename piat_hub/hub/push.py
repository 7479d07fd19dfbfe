"""A run directory published as one commit."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session
from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError

from piat_hub.config import InputError, PushOptions, first_line
from piat_hub.hub import card, eval_results, untrusted
from piat_hub.hub.load import check_id
from piat_hub.records.files import CORRUPTIONS, RECORDS, RESULTS, UNIONS, VERDICTS, WEIGHTS, own, read_lines, sealed
from piat_hub.records.lock import only_writer
from piat_hub.records.model_config import ModelConfig
from piat_hub.records.results import read_results
from piat_hub.records.rundir import ModelDirectory, read_model

SILENCE = 300.0  # seconds without a byte from the Hub, after which a push gives up


PASSING = (429, 500, 502, 503, 504)  # statuses that may be gone a moment later


@dataclass(frozen=True)
class Pushed:
    """Where a push went.

    Attributes:
        url: of its commit or pull request.
        revision: the commit.
        changed: whether anything was new.
    """

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

    Nothing is ever half-published, and the same call again sends only what has not arrived; with nothing new, it sends
    nothing (but opens the pull request it was told to).

    Args:
        run: its config.json, weights, card, records and what was measured on these weights go (see `publication`);
            what an earlier push left and the run no longer has is deleted in the same commit.
        repo_id: "ORG/NAME".
        private: a new repository is; one that is public already is refused.
        revision: a branch, made if there is none; main by default.
        create_pr: open a pull request instead of writing to main.
        token: by default the one that `hf auth login` or HF_TOKEN gave.

    Returns:
        Where it went, and whether anything was new.

    Raises:
        InputError: if the run is not whole, revision and create_pr are both given, the repository holds something else,
            or the Hub refuses; InUse, while another process writes in the run.
    """
    options = PushOptions(private, revision, create_pr)
    check_id(repo_id)
    found = read_model(run)
    with only_writer(found.directory):  # weights, results and card that belong together
        return _pushed(HfApi(token=token), publication(found, repo_id), repo_id, options)


def _pushed(api: HfApi, files: Mapping[str, Any], repo_id: str, options: PushOptions) -> Pushed:
    """One commit, tried again where the Hub's trouble may pass."""
    # where a reply is lost, a second request would be a second pull request
    pauses = [] if options.create_pr else [1.0, 4.0, 16.0]
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
    head, there = _at_head(api, repo_id, "main")
    if options.private and not head.private:
        raise InputError(f"{repo_id} is public already; make it private in its settings first, or name another")
    if (branch := options.revision or "main") != "main":
        api.create_branch(repo_id, branch=branch, exist_ok=True)
        head, there = _at_head(api, repo_id, branch)
    operations: list[Any] = [CommitOperationAdd(path, content) for path, content in files.items()]
    ours = {path for path in there if _pushed_as(path) or path.startswith(eval_results.OURS)}
    operations += [CommitOperationDelete(path) for path in sorted(ours - set(files))]
    message = f"{'Update' if there & set(RECORDS) else 'Add'} {repo_id.rpartition('/')[2]}"
    where: dict[str, Any] = {"revision": branch, "create_pr": options.create_pr, "parent_commit": head.sha}
    done = api.create_commit(repo_id, operations, commit_message=message, **where)
    return Pushed(str(done.pr_url or done.commit_url), str(done.oid), done.oid != head.sha)


def _at_head(api: HfApi, repo_id: str, branch: str) -> tuple[Any, set[str]]:
    """(what the Hub says of a branch's last commit, the files in it); InputError where others put them there."""
    head = api.model_info(repo_id, revision=branch)
    there = {sibling.rfilename for sibling in head.siblings or ()}
    if there - {".gitattributes", ".gitignore", "README.md", "LICENSE"}:
        theirs = api.hf_hub_download(repo_id, "config.json", revision=head.sha) if "config.json" in there else None
        known = ModelConfig.read(Path(theirs)) if theirs else None
        if not known or (known.piat is None and not known.origin):
            raise InputError(f"{repo_id} holds something that piat_hub did not push; choose another name")
    return head, there


def _pushed_as(path: str) -> bool:
    """Whether a push may have written this file: a run's own, or what was measured in a folder of it."""
    folder, _, name = path.rpartition("/")
    measured = (*RESULTS.values(), *VERDICTS.values(), *CORRUPTIONS.values())
    return name in (measured if folder else RECORDS) and "/" not in folder


def publication(run: ModelDirectory, repo_id: str) -> dict[str, bytes | str]:
    """What a push sends: path in the repository -> content, or the file it lies in.

    config.json without paths of this machine, the card for `repo_id`, weights, curves, metrics, and results with
    their verdicts where they are of these weights; the same in the form that the Hub reads, see `eval_results`.

    Args:
        run: as it was read.
        repo_id: "ORG/NAME".

    Returns:
        By path, bytes or the path of a file here.

    Raises:
        InputError: if the run is not whole.
    """
    home = run.directory
    if "last" not in run.digests:
        raise InputError(f"{home} is no model: it has no {WEIGHTS['last']}; train one, or give another run")
    for checkpoint in run.digests:  # that they can be loaded
        untrusted.build(run.model, own(home, WEIGHTS[checkpoint]), str(home / "config.json"))
    files: dict[str, bytes | str] = {
        "config.json": (json.dumps(sealed(run.model.content), indent=2) + "\n").encode(),
        "README.md": card.render(run, repo_id).encode(),
    }
    for found in run.measured:
        read_results(home / found.folder, found.checkpoint)  # that they and their verdicts tell the same
    read_lines(own(home, "metrics.jsonl"))
    kept = {name for found in run.measured for name in (found.results, found.verdicts)}
    kept |= {UNIONS[checkpoint] for checkpoint in run.unions}
    kept |= {CORRUPTIONS[found.checkpoint] for found in run.measured if found.record.corruptions and not found.folder}
    own_records = [found.record for found in run.measured if not found.folder]
    stale = {"sweep.png"} if not any(record.sweep for record in own_records) else set[str]()
    stale |= {"corruptions.png"} if not any(record.corruptions for record in own_records) else set()
    others = (
        set(RECORDS) - stale - {*RESULTS.values(), *VERDICTS.values(), *UNIONS.values(), *CORRUPTIONS.values(), *files}
    )
    paths = {name: own(home, name) for name in sorted({*others, *kept})}
    files |= eval_results.entries(run, repo_id)
    return files | {name: str(path) for name, path in paths.items() if path.is_file()}


def check_push(repo_id: str) -> None:
    """Whether a push would be let in: what a training asks first.

    Args:
        repo_id: "ORG/NAME".

    Raises:
        InputError: unless the Hub can be reached and the owner of the token, which `hf auth login` or HF_TOKEN gave, may
            write to ORG.
    """
    check_id(repo_id)
    try:
        who = HfApi().whoami()
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
    return f"{first_line(error)}; check the network and {again}"


def _seconds(response: Any) -> float:
    """How long a Retry-After header asks to wait, at most a minute; 0 without one."""
    text = response.headers.get("Retry-After", "") if response is not None else ""
    return min(60.0, float(text)) if text.isdigit() else 0.0
