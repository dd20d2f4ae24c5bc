"""KTSDDIMScheduler: kinetic trajectory shaping for diffusion models (SD 1.5, DiT) with DDIM's steps."""

from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput

from ..kpe.stock_schedulers import Schedule
from .base import shaped_init
from .diffusion import KTSDiffusionMixin


class KTSDDIMScheduler(KTSDiffusionMixin, DDIMScheduler):
    """DDIM's steps along ``dX/dt = eta(t) v(X, t)`` in flow coordinates. Order 1, see `KTSDiffusionMixin`.

    With shaping off, steps are bit-equal to `DDIMScheduler`. Energies are in flow coordinates too. ``sigmas`` holds the
    levels ``1 - t`` of the schedule.

    Examples:
        >>> scheduler = KTSDDIMScheduler(alpha_0=0.05, beta_0=0.0)
        >>> scheduler.set_timesteps(2)
        >>> [round(t, 3) for t in scheduler.plan.times]
        [0.225, 0.99, 1.0]

    Source: arXiv 2602.07928 for the equation; its use beyond flow matching is ours.

    Arguments are those of `DDIMScheduler`, then the shaping settings of `KTSFlowMatchScheduler`.

    Raises:
        ValueError: a shaping setting is out of range, or DDIM's own ``eta``, its noise, is combined with shaping.
    """

    __module__ = "diffusers_kts"
    __init__ = shaped_init(DDIMScheduler)  # type: ignore[assignment]

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """As the parent's; also cuts the schedule at the touchdown, plans the gains, and begins a new energy record."""
        super().set_timesteps(num_inference_steps, device)
        self.sigmas = torch.tensor(Schedule.of(self).levels)
        self.begin_run()
        self.num_inference_steps = num_inference_steps  # the parent's stride, also where the touchdown cut the schedule

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple:
        """One shaped step; arguments and result as in `DDIMScheduler.step`. ``eta`` is DDIM's own, the weight of noise."""
        t = int(timestep)  # the parent waits for the device, too, to look it up
        index = self._index_of(t)
        if index is None:  # as the parent takes it; no step of the run that is measured
            return super().step(model_output, t, sample, eta, use_clipped_model_output, generator, variance_noise, return_dict)
        self.check_step(model_output, sample, index)
        self.refuse_noise("eta", eta)
        v, x = self.widened(model_output, sample)
        prev_sample, data = super().step(v, t, x, eta, use_clipped_model_output, generator, variance_noise, return_dict=False)
        if self.plan.touches_down(index):
            prev_sample = data
        after: Any = t - self.config.num_train_timesteps // self.num_inference_steps
        after = self._scale(self.alphas_cumprod[after] if after >= 0 else self.final_alpha_cumprod)
        prev_sample = self.shape(index, v, x, prev_sample, self._scale(self.alphas_cumprod[t]), after)
        if not self.plan.is_off:
            prev_sample = prev_sample.to(model_output.dtype)
        if not return_dict:
            return (prev_sample, data)
        return DDIMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=data)

    def _index_of(self, timestep: int) -> int | None:
        """The evaluation at this timestep; None for one outside the schedule, which only unshaped steps may have.

        Raises:
            ValueError: shaping is on and the timestep is not in the schedule.
        """
        if self.is_off and (not self.recorder.runs or timestep not in self.schedule.source.numbers):
            return None
        return self.schedule.index_of(timestep) if self.recorder.runs else 0  # which `check_step` refuses

    def _scale(self, signal: torch.Tensor) -> torch.Tensor:
        return signal.sqrt() + (1 - signal).sqrt()
