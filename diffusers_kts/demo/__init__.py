"""The main job, ``kts demo``: the same noises drawn three ways by one model, measured, compared and put into pictures."""

from ..lazy_exports import lazy_exports

_EXPORTS = {
    "DemoSettings": ".settings",
    "run_demo": ".job",
}
__all__ = [*_EXPORTS]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
