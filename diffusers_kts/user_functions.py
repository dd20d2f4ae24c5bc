"""Functions that a user names on the command line: feature networks, objectives, judges."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from .errors import brief


def load_function(choice: str, what: str) -> Any:
    """The function ``module:function`` or ``file.py:function``; of a network, in evaluation mode.

    Args:
        choice: its place.
        what: it is to be, as the error names it.

    Raises:
        ValueError: it cannot be loaded, or cannot be called.
    """
    source, _, name = choice.rpartition(":")
    try:
        if source.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(source).stem, source)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(source)
        function: Any = getattr(module, name)
    except Exception as error:  # whatever the user's file does when it is run
        raise ValueError(
            f"{what} {choice!r} cannot be loaded ({brief(error)}); give module:function or file.py:function."
        ) from error
    if not callable(function):
        raise ValueError(f"{what} {choice!r} is a {type(function).__name__}, which cannot be called; give a function.")
    return function.eval() if hasattr(function, "eval") else function
