"""``kts theory``: what the paper proves of the exact flow on a finite training set, measured on a training set of yours."""

from ..lazy_exports import lazy_exports

_EXPORTS = {
    "TheorySettings": ".settings",
    "measure_at": ".measures",
    "measure_paths": ".measures",
    "run_theory": ".job",
}
__all__ = [*_EXPORTS]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
