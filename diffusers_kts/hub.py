"""A folder to the Hub."""

from collections.abc import Sequence
from pathlib import Path


def check_repo(repo: str, option: str = "repo") -> None:
    """Raises ValueError, in which ``option`` is named, for a name that the Hub does not take."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"{option} is {repo!r} ({error}); give owner/name.") from error


def upload(
    folder: Path | str,
    repo: str,
    repo_type: str,
    public: bool,
    message: str = "kts publish",
    ignore_patterns: Sequence[str] = (),
    what: str | None = None,
) -> str:
    """Create the repository where it is missing, and upload the folder; returns its address. Repeated, it sends only what has
    changed.

    Args:
        folder: what to upload.
        repo: owner/name.
        repo_type: "model", "dataset" or "space".
        message: of the commit.
        public: whether a new repository is public.
        ignore_patterns: what stays behind.
        what: how an error calls the folder.

    Raises:
        OSError: the Hub cannot be reached or refuses.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    sdk = "gradio" if repo_type == "space" else None
    try:
        url = api.create_repo(repo, repo_type=repo_type, private=not public, exist_ok=True, space_sdk=sdk)
        api.upload_folder(
            folder_path=folder,
            repo_id=repo,
            repo_type=repo_type,
            commit_message=message,
            ignore_patterns=list(ignore_patterns) or None,
        )
    except Exception as error:  # whatever the network or the Hub make it raise
        reason = " ".join(str(error).split())
        raise OSError(
            f"{what or folder} is complete, but {repo} cannot be written ({reason}); run the command again."
        ) from error
    return str(url)


def reach(repo: str) -> None:
    """Ask the Hub who is logged in, before there is anything to upload.

    Raises:
        OSError: it cannot be reached, or this user may not write to ``repo``.
    """
    import huggingface_hub

    try:
        user = huggingface_hub.HfApi().whoami()
        owners = {user.get("name"), *(organization.get("name") for organization in user.get("orgs", []))}
        if repo.partition("/")[0] not in owners:
            raise PermissionError(f"it belongs to none of {', '.join(sorted(filter(None, owners)))}")
        if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise PermissionError("the token may only read")
    except Exception as error:  # whatever the network or the Hub make it raise
        reason = " ".join(str(error).split())
        raise OSError(f"{repo} cannot be written ({reason}); log in with hf auth login, or leave the upload out.") from error
