"""The batch job, ``kts generate`` and ``accelerate launch -m diffusers_kts.generate``, one idea a file.

settings -> prompts -> model -> plan -> (selection) -> media -> formats -> ledger, all through storage;
`job` puts them together.
"""

from ..lazy_exports import lazy_exports

_EXPORTS = {
    "GenerateSettings": ".settings",
    "run_generate": ".job",
}
__all__ = [*_EXPORTS]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
