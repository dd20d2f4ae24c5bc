"""Kinetic path energy (KPE) and kinetic trajectory shaping (KTS) for Hugging Face diffusers.

Names load when first used, so that ``import diffusers_kts`` costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

_EXPORTS = {
    "ClassConditionalFlowPipeline": ".pipeline_flow_class_conditional",
    "Diagnosis": ".doctor",
    "Gain": ".gain",
    "KPECallback": ".pipeline_kpe_monitor",
    "KPEMonitorPipeline": ".pipeline_kpe_monitor",
    "KPETrace": ".kpe",
    "KTSAdaptiveFlowMatchScheduler": ".scheduling_kts_adaptive_flow_match",
    "KTSDDIMScheduler": ".scheduling_kts_ddim",
    "KTSDPMSolverMultistepScheduler": ".scheduling_kts_dpmsolver_multistep",
    "KTSEulerDiscreteScheduler": ".scheduling_kts_euler_discrete",
    "KTSFlowMatchHeunScheduler": ".scheduling_kts_flow_match_heun",
    "KTSFlowMatchScheduler": ".scheduling_kts_flow_match",
    "KTSUniPCMultistepScheduler": ".scheduling_kts_unipc_multistep",
    "ModelMixin": "diffusers",  # diffusers looks for these two in the library of a component before it loads the component
    "PRESETS": ".presets",
    "SchedulerMixin": "diffusers",
    "SiTTransformer2DModel": ".transformer_sit",
    "diagnose": ".doctor",
    "embedded_model": ".models",
    "load_preset": ".presets",
    "save_with_stock_scheduler": ".stock",
}
__all__ = [*_EXPORTS, "__version__"]

if TYPE_CHECKING:
    from diffusers import ModelMixin, SchedulerMixin

    from .doctor import Diagnosis, diagnose
    from .gain import Gain
    from .kpe import KPETrace
    from .models import embedded_model
    from .pipeline_flow_class_conditional import ClassConditionalFlowPipeline
    from .pipeline_kpe_monitor import KPECallback, KPEMonitorPipeline
    from .presets import PRESETS, load_preset
    from .scheduling_kts_adaptive_flow_match import KTSAdaptiveFlowMatchScheduler
    from .scheduling_kts_ddim import KTSDDIMScheduler
    from .scheduling_kts_dpmsolver_multistep import KTSDPMSolverMultistepScheduler
    from .scheduling_kts_euler_discrete import KTSEulerDiscreteScheduler
    from .scheduling_kts_flow_match import KTSFlowMatchScheduler
    from .scheduling_kts_flow_match_heun import KTSFlowMatchHeunScheduler
    from .scheduling_kts_unipc_multistep import KTSUniPCMultistepScheduler
    from .stock import save_with_stock_scheduler
    from .transformer_sit import SiTTransformer2DModel


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
