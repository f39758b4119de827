"""The Hub's errors as one sentence each: what was refused, and what to do."""

import contextlib
from collections.abc import Iterator

from huggingface_hub import constants, get_token
from huggingface_hub.utils import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

# What the clients' HTTP libraries are called (requests up to huggingface_hub 0.36) and what stores
# large files; their errors have no base class in common.
TRANSPORTS = {"requests", "urllib3", "httpx", "httpx2", "httpcore", "hf_xet"}


class HubError(ValueError):
    """The Hub could not be reached, or refused."""


def hide_token(text: str) -> str:
    """Take the user's token out of a text, should a server ever repeat it.

    Args:
        text: what is about to be shown.

    Returns:
        The text without the token.
    """
    token = get_token()
    return text.replace(token, "***") if token else text


def describe(error: Exception, repo_id: str) -> str | None:
    """Say what an error means; None if it is none of the Hub's."""
    if isinstance(error, OfflineModeIsEnabled):
        return "offline mode is on (HF_HUB_OFFLINE); expected it off. Unset it and run again."
    if isinstance(error, GatedRepoError):
        return f"{repo_id} is gated and this token has no access; ask for it on the Hub's page"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"found no repository {repo_id} that this token may see; check the name, and that the "
            "token is of the right account"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no such revision; name a branch"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, HfHubHTTPError) and status == 401:
        return f"{constants.ENDPOINT} does not know this token (401); run `hf auth login` again"
    if isinstance(error, HfHubHTTPError) and status == 403:
        return (
            f"this token may not write to {repo_id} (403); expected a write token of an account "
            "that owns it. Make one at huggingface.co/settings/tokens."
        )
    if isinstance(error, HfHubHTTPError) and status == 412:
        return f"{repo_id} got another commit meanwhile (412); run the push again"
    return None


@contextlib.contextmanager
def explain_hub_errors(repo_id: str) -> Iterator[None]:
    """Turn what the client raises into one HubError.

    Args:
        repo_id: the repository at stake.

    Yields:
        Nothing.

    Raises:
        HubError: in place of the client's error.
    """
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        chain: list[BaseException] = [error]
        while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
            chain.append(cause)
        for link in chain:
            sentence = describe(link, repo_id) if isinstance(link, Exception) else None
            if sentence:
                raise HubError(sentence) from error
        if any(is_of_transport(link) for link in chain):
            raise HubError(
                f"{constants.ENDPOINT} broke off or cannot be reached ({hide_token(str(error))}); "
                "run the push again, which goes on where it stopped"
            ) from error
        raise


def is_of_transport(error: BaseException) -> bool:
    """Tell whether an error comes from the way to the Hub."""
    modules = {base.__module__.split(".")[0] for base in type(error).__mro__}
    is_xet = isinstance(error, RuntimeError) and "xet" in str(error).lower()
    kinds = (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError)
    return bool(modules & TRANSPORTS) or isinstance(error, kinds) or is_xet
