"""Push a checkpoint's folder to the Hub as one commit.

The commit is huggingface_hub's `create_commit`, not its `upload_large_folder`, which makes many.
An interrupted push goes on where it stopped all the same: large files are stored before the commit
is made, and the next run asks the Hub which of them it has and sends the others alone. (A file that
was under way starts anew; with Xet, its chunks that arrived are not sent again.)

The tests push to a server of their own on loopback; a push to huggingface.co takes your token.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.utils import RepositoryNotFoundError

from hyperllava_hf.hub.hub_errors import HubError, explain_hub_errors
from hyperllava_hf.hub.model_card import CARD, MARK
from hyperllava_hf.hub.push_plan import PushPlan, plan_push

WEIGHTS = re.compile(r"(pytorch_)?model(-\d{5}-of-\d{5})?\.(safetensors|bin)(\.index\.json)?")
# What transformers' push_to_hub writes where there is no card; nothing is lost with it.
BLANK_CARD = "This model card has been automatically generated."


@dataclass(frozen=True)
class PushReport:
    """What a push uploaded, or with `dry_run` would."""

    plan: PushPlan
    url: str | None = None
    commit: str | None = None
    pull_request: str | None = None
    deleted: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_access(api: HfApi, repo_id: str) -> None:
    """Check that there is a token and that it may write, before anything is sent.

    Args:
        api: the client.
        repo_id: the repository at stake.

    Raises:
        HubError: if there is no token, or it may only read.
    """
    if constants.HF_HUB_OFFLINE:
        raise HubError("offline mode is on (HF_HUB_OFFLINE); expected it off. Unset it to push.")
    if get_token() is None:
        raise HubError(
            "found no token; expected one with write access. Run `hf auth login`, or set HF_TOKEN."
        )
    token = api.whoami().get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise HubError(
            f"this token may only read; expected one that may write to {repo_id}. Make one at "
            "huggingface.co/settings/tokens and run `hf auth login`."
        )


def prepare_repository(
    api: HfApi, repo_id: str, private: bool, revision: str | None, create_pr: bool
) -> None:
    """Create the repository and the branch, where they are missing.

    Args:
        api: the client.
        repo_id: the repository.
        private: whether a new one is private.
        revision: the branch; None for the main one.
        create_pr: whether the commit becomes a pull request, which needs no branch of its own.

    Raises:
        HubError: if the repository is public and was asked to be private.
    """
    try:
        found = api.model_info(repo_id)
    except RepositoryNotFoundError:
        api.create_repo(repo_id, private=private or None, exist_ok=True)
    else:
        if private and not found.private:
            raise HubError(
                f"{repo_id} exists and is public, --private would change nothing; make it private "
                "in its settings first, or push without --private"
            )
    if revision is not None and not create_pr:
        branches = {branch.name for branch in api.list_repo_refs(repo_id).branches}
        if revision not in branches:
            api.create_branch(repo_id, branch=revision)


def holds_own_card(api: HfApi, repo_id: str, commit: str) -> bool:
    """Tell whether a repository's card was written by a person."""
    path = api.hf_hub_download(repo_id, CARD, revision=commit)
    text = Path(path).read_text(encoding="utf-8")
    return MARK not in text and BLANK_CARD not in text


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    commit_message: str = "Upload HyperLLaVA",
    base_models: list[str] | None = None,
    datasets: list[str] | None = None,
    licence: str | None = None,
) -> PushReport:
    """Push a checkpoint's folder to the Hub as one commit.

    What makes a repository complete is added where the folder lacks it: the code, the full map of
    auto classes, both forms of the processor's settings, a chat template, a card, a licence. The
    folder itself is not changed. Other files of the repository stay, but for weights that the new
    ones replace. The token is the one of `hf auth login` or HF_TOKEN.

    Args:
        folder: the checkpoint, as `save_pretrained` of model and processor wrote it.
        repo_id: the repository, as user/name; created if missing.
        private: whether a new repository is private.
        revision: the branch, created if missing; None for the main one.
        create_pr: open a pull request instead of committing to the branch.
        dry_run: plan alone: upload nothing, need no token and no network.
        commit_message: the commit's title.
        base_models: ids of the models that the weights were made from, for the card; None reads
            the folder.
        datasets: ids of the datasets that it was trained on, for the card.
        licence: the Hub's identifier of the weights' licence; None takes the base's.

    Returns:
        What was uploaded.

    Raises:
        ValueError: if the folder will not do, or (HubError) the Hub refuses.
    """
    plan = plan_push(folder, repo_id, base_models, datasets, licence)
    if dry_run:
        return PushReport(plan)
    api = HfApi(library_name="hyperllava_hf")
    with explain_hub_errors(repo_id):
        check_access(api, repo_id)
        prepare_repository(api, repo_id, private, revision, create_pr)
        head = api.model_info(repo_id, revision=revision)
        pushed = {file.path: file for file in plan.files}
        notes = []
        present = {sibling.rfilename for sibling in head.siblings or []}
        replaces_card = plan.generates_card and CARD in present
        if replaces_card and holds_own_card(api, repo_id, str(head.sha)):
            del pushed[CARD]
            notes.append(f"{CARD} of the repository was written by hand, so it is kept.")
        deleted = sorted(name for name in present - set(pushed) if WEIGHTS.fullmatch(name))
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(path, file.content) for path, file in pushed.items()),
                *(CommitOperationDelete(path) for path in deleted),
            ],
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=head.sha,
        )
    url = f"{constants.ENDPOINT}/{repo_id}"
    return PushReport(plan, url, commit.oid, commit.pr_url, deleted, notes)
