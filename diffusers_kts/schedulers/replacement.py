"""Which KTS scheduler takes the place of a scheduler of diffusers."""

from typing import Any

from ..kpe.stock_schedulers import UNMEASURABLE, is_flow_matching
from .base import KTSSchedulerMixin
from .scheduling_kts_ddim import KTSDDIMScheduler
from .scheduling_kts_dpmsolver_multistep import KTSDPMSolverMultistepScheduler
from .scheduling_kts_euler_discrete import KTSEulerDiscreteScheduler
from .scheduling_kts_flow_match import KTSFlowMatchScheduler
from .scheduling_kts_flow_match_heun import KTSFlowMatchHeunScheduler
from .scheduling_kts_unipc_multistep import KTSUniPCMultistepScheduler

OURS: dict[str, type] = {
    "FlowMatchEulerDiscreteScheduler": KTSFlowMatchScheduler,
    "FlowMatchHeunDiscreteScheduler": KTSFlowMatchHeunScheduler,
    "UniPCMultistepScheduler": KTSUniPCMultistepScheduler,
    "DPMSolverMultistepScheduler": KTSDPMSolverMultistepScheduler,
    "EulerDiscreteScheduler": KTSEulerDiscreteScheduler,
    "DDIMScheduler": KTSDDIMScheduler,
}
# samplers of diffusion models whose configuration DPM-Solver++ takes over, as everywhere in diffusers
REPLACEABLE = (
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
)


def fitting_scheduler(scheduler: Any) -> tuple[Any, str]:
    """The KTS class for a scheduler, and a remark; or None and the reason."""
    if isinstance(scheduler, KTSSchedulerMixin):
        return type(scheduler), ""
    for kind in type(scheduler).__mro__:
        if kind.__name__ in OURS:
            return OURS[kind.__name__], ""
    found = type(scheduler).__name__
    if found in UNMEASURABLE:
        return None, f"{found} cannot be shaped or measured: {UNMEASURABLE[found]}"
    if scheduler.config.get("stochastic_sampling") or scheduler.config.get("algorithm_type", "").startswith("sde"):
        return None, f"{found} re-noises every step, shaping is defined for the ODE only"
    if is_flow_matching(scheduler) and found in REPLACEABLE:
        return KTSFlowMatchScheduler, f"there is no shaped {found}; this one takes Euler steps on its schedule"
    if found in REPLACEABLE:
        return KTSDPMSolverMultistepScheduler, f"there is no shaped {found}; this one takes its place, as in diffusers"
    measured = "its energy is measured all the same" if is_flow_matching(scheduler) else "its energy is not measured either"
    return None, (
        f"{found} is no plain solver of the model's ODE (it re-noises, or its model was distilled to jump), so there is "
        f"nothing to shape; {measured}"
    )
