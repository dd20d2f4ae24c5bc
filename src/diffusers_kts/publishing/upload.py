"""A folder to the Hub."""

from pathlib import Path


def check_repo(repo: str) -> None:
    """Raises ValueError for a name that the Hub does not take."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"repo is {repo!r} ({error}); give owner/name.") from error


def upload(folder: Path, repo: str, repo_type: str, public: bool) -> str:
    """Create the repository where it is missing, and upload the folder; returns its address.

    Raises:
        OSError: the Hub cannot be reached or refuses.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = huggingface_hub.HfApi()
    sdk = "gradio" if repo_type == "space" else None
    try:
        url = api.create_repo(repo, repo_type=repo_type, private=not public, exist_ok=True, space_sdk=sdk)
        api.upload_folder(folder_path=folder, repo_id=repo, repo_type=repo_type, commit_message="kts publish")
    except (HfHubHTTPError, OfflineModeIsEnabled, ConnectionError) as error:
        reason = " ".join(str(error).split())
        raise OSError(f"{folder} is complete, but {repo} cannot be written ({reason}).") from error
    return str(url)
