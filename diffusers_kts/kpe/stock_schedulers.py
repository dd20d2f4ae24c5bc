"""What is known of the schedulers of diffusers: which can be measured, and at which noise levels they call the network."""

from dataclasses import dataclass
from typing import Any

import torch

from ..flow_coordinates import PREDICTION_TYPES, exceeds_one, flow_sigma, flow_velocity
from .levels import Levels

# by name, so that none is imported before it is used
FLOW = (
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "FlowMapEulerDiscreteScheduler",  # AnyFlow: the mean velocity down to the next noise level, so the energy of the chords
    "LTXEulerAncestralRFScheduler",
)
DIFFUSION = ("DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
SECOND_ORDER = ("FlowMatchHeunDiscreteScheduler", "UniPCMultistepScheduler", "DPMSolverMultistepScheduler")
UNMEASURABLE = {
    "PiflowScheduler": "its network predicts a grid of states at each call, and a policy without a network moves between them",
}


def _is_a(cls: type, *names: str) -> bool:
    return any(kind.__name__ in names for kind in cls.__mro__)


def is_flow_matching(scheduler: Any) -> bool:
    """Whether the model behind this scheduler predicts the velocity of a flow."""
    config = getattr(scheduler, "config", {})
    return _is_a(type(scheduler), *FLOW) or config.get("prediction_type") == "flow_prediction"


def is_known_diffusion(scheduler: Any) -> bool:
    """Whether the noise levels and predictions of this scheduler of a diffusion (not flow) model are known here."""
    return _is_a(type(scheduler), *DIFFUSION) and scheduler.config.prediction_type in PREDICTION_TYPES


def quadrature_of(cls: type) -> str:
    """The rule that adds up the powers measured in steps of this class, see `quadrature_weights`."""
    return "trapezoid" if _is_a(cls, *SECOND_ORDER) else "left"


@dataclass(frozen=True)
class Schedule:
    """The noise levels of a scheduler's run, on the host.

    Attributes:
        source: the levels as the scheduler keeps them.
        timesteps: of the evaluations, as the scheduler keeps them.
        levels: N + 1 levels in flow coordinates, ``1 - t`` (or ``t`` where the scheduler counts upwards).
        scales: signal and noise scale (alpha, sigma) of the state at each evaluation; None for a flow, whose states are flow
            coordinates.
    """

    source: Levels
    timesteps: torch.Tensor
    levels: list[float]
    scales: list[tuple[float, float]] | None = None

    @classmethod
    def of(cls, scheduler: Any) -> "Schedule":
        """Waits for the device, as `set_timesteps`, which put the schedule there, has just done."""
        if _is_a(type(scheduler), "DDIMScheduler"):
            return _of_ddim(scheduler)
        timesteps = scheduler.timesteps
        source = Levels.of(scheduler.sigmas.detach() if scheduler.sigmas.requires_grad else scheduler.sigmas)
        if not _is_a(type(scheduler), *DIFFUSION):
            if not exceeds_one(source.numbers):
                return cls(source, timesteps, source.numbers)
            return cls(source, timesteps, [flow_sigma(s) for s in source.numbers], [(1.0, s) for s in source.numbers])
        if scheduler.config.get("use_flow_sigmas", False):
            return cls(source, timesteps, source.numbers, [(1 - s, s) for s in source.numbers])
        alphas = [(1 + s * s) ** -0.5 for s in source.numbers]
        return cls(
            source,
            timesteps,
            [flow_sigma(s) for s in source.numbers],
            [(a, s * a) for a, s in zip(alphas, source.numbers, strict=True)],
        )

    def is_of(self, scheduler: Any) -> bool:
        """Whether the scheduler still has these levels; DDIM's are read once a run."""
        return self._counts_no_steps or self.source.are_of(scheduler.sigmas)

    @property
    def _counts_no_steps(self) -> bool:
        """DDIM, whose source are the timesteps."""
        return self.source.tensor is self.timesteps

    def index_of(self, timestep: Any) -> int:
        """The evaluation at this timestep, for schedulers that count no steps.

        Raises:
            ValueError: the timestep is not in the schedule.
        """
        known = self.source.numbers if self._counts_no_steps else self.timesteps.tolist()
        if float(timestep) not in known:
            raise ValueError(f"timestep {float(timestep):g} is not in the schedule; pass elements of `timesteps`.")
        return known.index(float(timestep))


def _of_ddim(scheduler: Any) -> Schedule:
    timesteps = Levels.of(scheduler.timesteps)
    signal = scheduler.alphas_cumprod.cpu().double()[torch.tensor(timesteps.numbers, dtype=torch.long)]
    scales = [(s**0.5, (1 - s) ** 0.5) for s in signal.tolist()]
    end = float(scheduler.final_alpha_cumprod)
    levels = [sigma / (alpha + sigma) for alpha, sigma in [*scales, (end**0.5, (1 - end) ** 0.5)]]
    return Schedule(timesteps, scheduler.timesteps, levels, scales)


def velocity(scheduler: Any, schedule: Schedule, index: int, model_output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """The velocity of the flow, (B, C, ...), from what reaches the `step` of a scheduler at evaluation ``index``."""
    if schedule.scales is None:
        return model_output
    alpha, sigma = schedule.scales[index]
    if not _is_a(type(scheduler), *DIFFUSION):  # a flow that counts sigma / alpha: its dx/dsigma predicts the noise
        return flow_velocity("epsilon", model_output, sample, alpha, sigma)
    if _is_a(type(scheduler), "EulerDiscreteScheduler"):  # it keeps x_0 + (sigma / alpha) eps
        sample = sample * alpha
    return flow_velocity(scheduler.config.prediction_type, model_output, sample, alpha, sigma)
