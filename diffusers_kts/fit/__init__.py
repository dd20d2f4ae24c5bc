"""``kts fit``: a grid and multistep weights fitted to a model, for the same pictures in fewer network calls."""

from ..lazy_exports import lazy_exports

_EXPORTS = {
    "FitSettings": ".settings",
    "fit_sampler": ".job",
    "run_fit": ".job",
}
__all__ = [*_EXPORTS]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
