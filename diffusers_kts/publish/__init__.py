"""``kts publish``: cards from measured numbers, folders that load without this package, and what may not be uploaded."""

from ..lazy_exports import lazy_exports

_EXPORTS = {
    "PublishSettings": ".settings",
    "run_publish": ".job",
}
__all__ = [*_EXPORTS]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
