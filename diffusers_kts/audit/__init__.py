"""``kts audit``: what a model gives back of its training images, under plain sampling, KTS, touchdown and controls."""

from ..lazy_exports import lazy_exports

_EXPORTS = {
    "AuditSettings": ".settings",
    "run_audit": ".job",
}
__all__ = [*_EXPORTS]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
