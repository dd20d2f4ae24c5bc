"""``kts fit``: a sampler fitted to a model."""

from ..fit.settings import FitSettings
from .options import options_of


@options_of(FitSettings)
def fit(settings: FitSettings) -> None:
    """Fit a sampler to a model, for the same pictures in fewer network calls, and say whether it beats the usual ones."""
    from ..fit.job import run_fit

    result = run_fit(settings)
    for line in [*result.plan, *result.verdict]:
        print(line)
    if result.files:
        print("Written: " + ", ".join(str(path) for path in result.files))
