"""What a push would upload, found without a network and without a token."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id

from hyperllava_hf.checkpoints import HUB_ID
from hyperllava_hf.hub.base_licences import LLAMA_2, Terms
from hyperllava_hf.hub.folder_check import check_folder
from hyperllava_hf.hub.model_card import CARD, build_model_card, gather_facts
from hyperllava_hf.hub.repository_files import LICENCE, complete_repository
from hyperllava_hf.inspection.checkpoint_summary import summarize_checkpoint


@dataclass(frozen=True)
class PlannedFile:
    """A file of the commit: where it goes, and where its content comes from."""

    path: str
    num_bytes: int
    content: Path | bytes

    @property
    def is_generated(self) -> bool:
        """Whether the push made the content, instead of finding it in the folder."""
        return isinstance(self.content, bytes)


@dataclass(frozen=True)
class PushPlan:
    """The commit that a push would make."""

    repo_id: str
    files: list[PlannedFile]
    left_out: dict[str, str]
    notes: list[str]

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.num_bytes for file in self.files)

    @property
    def generates_card(self) -> bool:
        """Whether the card is the push's, not the folder's."""
        return any(file.path == CARD and file.is_generated for file in self.files)


def check_repo_id(repo_id: str) -> None:
    """Check that a name can be a repository's on the Hub.

    Args:
        repo_id: the name.

    Raises:
        ValueError: if it cannot.
    """
    fault = "" if HUB_ID.fullmatch(repo_id) else f"found the name {repo_id!r}"
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        fault = str(error).rstrip(".")
    if fault:
        raise ValueError(f"{fault}; expected a repository such as user/my-hyperllava-7b")


def build_licence_files(terms: Terms | None, files: dict[str, Path]) -> dict[str, bytes]:
    """Build the licence files that the folder lacks.

    Args:
        terms: what holds for the weights, if that is known.
        files: the folder's files.

    Returns:
        Content by path.
    """
    code_alone = terms is None or terms.identifier != "apache-2.0"
    name = "LICENSE-CODE" if code_alone else "LICENSE"
    built = {} if name in files else {name: LICENCE.read_bytes()}
    if terms is not None and terms.notice and "Notice" not in files:
        built["Notice"] = terms.notice.encode()
    return built


def plan_push(
    folder: str | Path,
    repo_id: str,
    base_models: list[str] | None = None,
    datasets: list[str] | None = None,
    licence: str | None = None,
) -> PushPlan:
    """Plan a push: check the folder, complete it, and list what would be uploaded.

    Args:
        folder: the checkpoint, as `save_pretrained` wrote it.
        repo_id: the repository, as user/name.
        base_models: ids of the models that the weights were made from; None reads the folder.
        datasets: ids of the datasets that it was trained on.
        licence: the Hub's identifier of the weights' licence; None takes the base's.

    Returns:
        The plan.

    Raises:
        ValueError: if the name, the folder or the licence will not do.
    """
    check_repo_id(repo_id)
    folder = Path(folder).expanduser()
    found = check_folder(folder)
    added, notes = complete_repository(found.kept)
    facts = gather_facts(folder, base_models, datasets, licence)
    added |= build_licence_files(facts.terms, found.kept)
    if CARD in found.kept:
        summarize_checkpoint(str(folder))  # a kept card is no reason to push broken weights
        notes.append(f"{CARD} of the folder is kept as it is.")
    else:
        added[CARD] = build_model_card(folder, repo_id, facts).encode()
        if facts.terms is None:
            notes.append("The licence of the weights is not recorded: name it with --license.")
        if not facts.base_models:
            notes.append("The base model is not recorded: name it with --base-model.")
    if facts.terms == LLAMA_2 and "LICENSE" not in found.kept:
        notes.append(
            f"The {LLAMA_2.name} asks for a copy of itself beside the weights: put its text from "
            f"{LLAMA_2.link} into the folder as LICENSE."
        )
    content: dict[str, Path | bytes] = {**found.kept, **added}
    files = [
        PlannedFile(path, len(item) if isinstance(item, bytes) else item.stat().st_size, item)
        for path, item in sorted(content.items())
    ]
    return PushPlan(repo_id, files, found.left_out, notes)
