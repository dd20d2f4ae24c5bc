"""Errors of other programs, in a few words for a sentence of this one."""


def brief(error: BaseException) -> str:
    """The first line of what went wrong."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
