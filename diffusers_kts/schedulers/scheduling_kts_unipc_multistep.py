"""KTSUniPCMultistepScheduler: kinetic trajectory shaping with UniPC (Wan, SkyReels, Cosmos 2.5)."""

from typing import Any

import torch
from diffusers import UniPCMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from .base import shaped_init
from .multistep import KTSMultistepMixin


class KTSUniPCMultistepScheduler(KTSMultistepMixin, UniPCMultistepScheduler):
    """UniPC's predictor and corrector along ``dX/dt = eta(t) v(X, t)``. Order 2, see `KTSMultistepMixin`.

    With shaping off, steps are bit-equal to `UniPCMultistepScheduler`. Energies are trapezoidal sums over the evaluations.

        pipe.scheduler = KTSUniPCMultistepScheduler.from_config(pipe.scheduler.config, alpha_0=0.05, beta_0=0.0)

    Source: arXiv 2602.07928 and 2302.04867 (UniPC); their combination is ours.

    Arguments are those of `UniPCMultistepScheduler`, with any prediction type, then the shaping settings of
    `KTSFlowMatchScheduler`.

    Raises:
        ValueError: a shaping setting is out of range, or combined with ``predict_x0=False`` or ``solver_p``.
    """

    __module__ = "diffusers_kts"
    __init__ = shaped_init(UniPCMultistepScheduler)  # type: ignore[assignment]

    def check_configuration(self) -> None:
        """Refuse variants whose steps shaping is not defined for."""
        super().check_configuration()
        if not self.is_off and (not self.config.predict_x0 or self.config.solver_p is not None):
            raise ValueError("shaping acts on data estimates; set predict_x0=True and solver_p=None.")

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | None = None,
        mu: Any = None,
    ) -> None:
        """As the parent's; also cuts the schedule at the touchdown, plans the gains, and begins a new energy record."""
        super().set_timesteps(num_inference_steps, device, sigmas, mu)
        self.begin_run()

    def step(
        self, model_output: torch.Tensor, timestep: int | torch.Tensor, sample: torch.Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple:
        """One shaped step; arguments and result as in `UniPCMultistepScheduler.step`."""
        prev_sample = self.shaped_step(super().step, model_output, timestep, sample).to(sample.dtype)
        return SchedulerOutput(prev_sample=prev_sample) if return_dict else (prev_sample,)
