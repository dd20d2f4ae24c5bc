"""Words for errors: those of other programs, and remedies."""

from importlib.metadata import version


def brief(error: BaseException) -> str:
    """The first line of what went wrong."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def install(extra: str) -> str:
    """The command that installs an extra, and keeps the torch that is there."""
    return f'pip install "torch=={version("torch")}" "diffusers-kts[{extra}]"'
