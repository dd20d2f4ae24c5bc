"""KTSDPMSolverMultistepScheduler: kinetic trajectory shaping with DPM-Solver++ (Sana; SDXL, SD 1.5, DiT)."""

import torch
from diffusers import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from .base import shaped_init
from .multistep import KTSMultistepMixin


class KTSDPMSolverMultistepScheduler(KTSMultistepMixin, DPMSolverMultistepScheduler):
    """DPM-Solver++ along ``dX/dt = eta(t) v(X, t)``. Order 2 (``solver_order``, 2 at most), see `KTSMultistepMixin`.

    With shaping off, steps are bit-equal to `DPMSolverMultistepScheduler`. Energies are trapezoidal sums over the evaluations.

        pipe.scheduler = KTSDPMSolverMultistepScheduler.from_config(pipe.scheduler.config, alpha_0=0.05, beta_0=0.0)

    Source: arXiv 2602.07928 and 2211.01095 (DPM-Solver++); their combination is ours.

    Arguments are those of `DPMSolverMultistepScheduler`, with any prediction type, then the shaping settings of
    `KTSFlowMatchScheduler`.

    Raises:
        ValueError: a shaping setting is out of range, or combined with another ``algorithm_type`` than "dpmsolver++".
    """

    __module__ = "diffusers_kts"
    __init__ = shaped_init(DPMSolverMultistepScheduler)  # type: ignore[assignment]

    def check_configuration(self) -> None:
        """Refuse variants whose steps shaping is not defined for."""
        super().check_configuration()
        if not self.is_off and self.config.algorithm_type != "dpmsolver++":
            raise ValueError(
                f"algorithm_type is {self.config.algorithm_type!r}: shaping acts on the data estimates of the ODE solver; "
                'set algorithm_type="dpmsolver++".'
            )

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        mu: float | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """As the parent's; also cuts the schedule at the touchdown, plans the gains, and begins a new energy record."""
        super().set_timesteps(num_inference_steps, device, mu, timesteps)
        self.begin_run()

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple:
        """One shaped step; arguments and result as in `DPMSolverMultistepScheduler.step`."""
        noise = {"generator": generator, "variance_noise": variance_noise}
        prev_sample = self.shaped_step(super().step, model_output, timestep, sample, **noise).to(model_output.dtype)
        return SchedulerOutput(prev_sample=prev_sample) if return_dict else (prev_sample,)
