"""Nearest training images, the memorized fraction, and the controls of shaping."""

from ..lazy_exports import lazy_exports

_EXPORTS = {
    "MemorizationDetector": ".detector",
    "authentic": ".copying",
    "bootstrap_interval": ".fraction",
    "calibrated_l2": ".copying",
    "calibrated_threshold": ".fraction",
    "copying_statistic": ".copying",
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
