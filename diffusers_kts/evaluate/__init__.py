"""``kts evaluate``: quality, memorization and energy of finished samples."""

from ..lazy_exports import lazy_exports

_EXPORTS = {
    "evaluate": ".job",
}
__all__ = [*_EXPORTS]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
