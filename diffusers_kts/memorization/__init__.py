"""Nearest training images, the memorized fraction, and the controls of shaping."""

from ..lazy_exports import lazy_exports

_EXPORTS = {
    "MemorizationDetector": ".detector",
    "bootstrap_interval": ".fraction",
    "calibrated_threshold": ".fraction",
    "distinct_images": ".neighbors",
    "fit_detector": ".detector_fit",
    "measure_memorization": ".fraction",
    "measure_transformed": ".transformed",
    "memorized": ".fraction",
    "memorized_fraction": ".fraction",
    "nearest_neighbors": ".neighbors",
    "paired_difference": ".fraction",
}
__all__ = [*_EXPORTS]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
