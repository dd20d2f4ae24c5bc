"""``kts tune``: the search space, the objectives, the shared study, halving, and what may be recommended."""

from ..lazy_exports import lazy_exports

_EXPORTS = {
    "TuneSettings": ".settings",
    "tune": ".job",
}
__all__ = [*_EXPORTS]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
