"""Kinetic path energy (KPE) and kinetic trajectory shaping (KTS) for Hugging Face diffusers.

Names load when first used, so that ``import diffusers_kts`` costs next to nothing.
"""

from typing import TYPE_CHECKING

from .lazy_exports import lazy_exports

__version__ = "0.1.0"

_EXPORTS = {
    "ClassConditionalFlowPipeline": ".pipelines.pipeline_flow_class_conditional",
    "Diagnosis": ".doctor",
    "Gain": ".gain",
    "KPECallback": ".pipelines.kpe_callback",
    "KPEMonitorPipeline": ".pipelines.pipeline_kpe_monitor",
    "KPETrace": ".kpe.trace",
    "KTSAdaptiveFlowMatchScheduler": ".schedulers.scheduling_kts_adaptive_flow_match",
    "KTSDDIMScheduler": ".schedulers.scheduling_kts_ddim",
    "KTSDetectorFlowMatchScheduler": ".schedulers.scheduling_kts_detector_flow_match",
    "KTSDPMSolverMultistepScheduler": ".schedulers.scheduling_kts_dpmsolver_multistep",
    "KTSEulerDiscreteScheduler": ".schedulers.scheduling_kts_euler_discrete",
    "KTSFittedFlowMatchScheduler": ".schedulers.scheduling_kts_fitted_flow_match",
    "KTSFlowMatchHeunScheduler": ".schedulers.scheduling_kts_flow_match_heun",
    "KTSFlowMatchScheduler": ".schedulers.scheduling_kts_flow_match",
    "KTSUniPCMultistepScheduler": ".schedulers.scheduling_kts_unipc_multistep",
    "ModelMixin": "diffusers",  # diffusers looks for these two in the library of a component before it loads the component
    "PRESETS": ".presets",
    "Shaping": ".shaping",
    "SchedulerMixin": "diffusers",
    "SiTTransformer2DModel": ".models.transformer_sit",
    "diagnose": ".doctor",
    "fit_sampler": ".fit.job",
    "embedded_model": ".models",
    "load_preset": ".presets",
    "save_with_stock_scheduler": ".pipelines.save_stock",
}
__all__ = [*_EXPORTS, "__version__"]

if TYPE_CHECKING:
    from diffusers import ModelMixin, SchedulerMixin

    from .doctor import Diagnosis, diagnose
    from .fit.job import fit_sampler
    from .gain import Gain
    from .kpe.trace import KPETrace
    from .models import embedded_model
    from .models.transformer_sit import SiTTransformer2DModel
    from .pipelines.kpe_callback import KPECallback
    from .pipelines.pipeline_flow_class_conditional import ClassConditionalFlowPipeline
    from .pipelines.pipeline_kpe_monitor import KPEMonitorPipeline
    from .pipelines.save_stock import save_with_stock_scheduler
    from .presets import PRESETS, load_preset
    from .schedulers.scheduling_kts_adaptive_flow_match import KTSAdaptiveFlowMatchScheduler
    from .schedulers.scheduling_kts_ddim import KTSDDIMScheduler
    from .schedulers.scheduling_kts_detector_flow_match import KTSDetectorFlowMatchScheduler
    from .schedulers.scheduling_kts_dpmsolver_multistep import KTSDPMSolverMultistepScheduler
    from .schedulers.scheduling_kts_euler_discrete import KTSEulerDiscreteScheduler
    from .schedulers.scheduling_kts_fitted_flow_match import KTSFittedFlowMatchScheduler
    from .schedulers.scheduling_kts_flow_match import KTSFlowMatchScheduler
    from .schedulers.scheduling_kts_flow_match_heun import KTSFlowMatchHeunScheduler
    from .schedulers.scheduling_kts_unipc_multistep import KTSUniPCMultistepScheduler
    from .shaping import Shaping

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
