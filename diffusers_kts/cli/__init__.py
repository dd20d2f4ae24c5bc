"""The commands of ``kts``, one a file: each parses its options, calls the job, prints the outcome."""

from ..lazy_exports import lazy_exports

_EXPORTS = {
    "main": ".app",
}
__all__ = [*_EXPORTS]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
