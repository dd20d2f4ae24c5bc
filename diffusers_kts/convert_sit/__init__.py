"""``kts convert-sit``: published SiT weights as a pipeline folder."""

from ..lazy_exports import lazy_exports

_EXPORTS = {
    "ConvertSiTSettings": ".settings",
    "run_convert_sit": ".job",
}
__all__ = [*_EXPORTS]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
