"""``kts doctor``: what KTS and KPE will do in a pipeline."""

from dataclasses import dataclass

from ..models import NAMES
from ..sampling.settings import MODEL, SAMPLING, SamplingSettings, ShapingSettings, inherited, setting
from .options import options_of


@dataclass(frozen=True, kw_only=True)
class DoctorSettings(ShapingSettings):
    """What `kts doctor` looks at."""

    model: str = setting("", "Pipeline folder, Hub id, or an embedded model: " + ", ".join(NAMES) + ".", MODEL)
    num_inference_steps: int | None = inherited(SamplingSettings, "num_inference_steps", None)
    trial: bool | None = setting(None, "Run a few steps. Default: if the models are small.", SAMPLING)
    preset: str | None = inherited(ShapingSettings, "preset", "balanced")


@options_of(DoctorSettings)
def doctor(settings: DoctorSettings) -> None:
    """Inspect a pipeline: schedulers, the KTS class that fits, its gains, warnings. Exit code 2 if none fits."""
    from ..doctor import diagnose
    from ..sampling.find import load_schedulers

    if not settings.model:
        raise ValueError("there is no model; give one with --model.")
    pipe = load_schedulers(settings.model)
    diagnosis = diagnose(
        pipe, settings.num_inference_steps, settings.trial, **(settings.shaping.to_dict() if settings.shaping else {})
    )
    print(diagnosis)
    if not diagnosis.can_shape:
        raise ValueError(f"no KTS scheduler fits model {settings.model!r}; the warnings above say why.")
