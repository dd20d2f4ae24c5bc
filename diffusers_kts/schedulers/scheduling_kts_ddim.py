"""KTSDDIMScheduler: kinetic trajectory shaping for diffusion models (SD 1.5, DiT) with DDIM's steps."""

from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput

from ..flow_coordinates import levels
from .base import shaped_init
from .diffusion import KTSDiffusionMixin
from .host_copy import index_of
from .standing import StandingSchedule


class KTSDDIMScheduler(KTSDiffusionMixin, DDIMScheduler):
    """DDIM's steps along ``dX/dt = eta(t) v(X, t)`` in flow coordinates. Order 1, see `KTSDiffusionMixin`.

    With shaping off, steps are bit-equal to `DDIMScheduler`. Energies are in flow coordinates too. ``sigmas`` holds the
    levels ``1 - t`` of the schedule.

        pipe.scheduler = KTSDDIMScheduler.from_config(pipe.scheduler.config, alpha_0=0.05, beta_0=0.0)

    Source: arXiv 2602.07928 for the equation; its use beyond flow matching is ours.

    Args: those of `DDIMScheduler`, then the shaping settings of `KTSFlowMatchScheduler`.

    Raises:
        ValueError: a shaping setting is out of range, or DDIM's own ``eta``, its noise, is combined with shaping.
    """

    __module__ = "diffusers_kts"
    __init__ = shaped_init(DDIMScheduler)  # type: ignore[assignment]

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """As the parent's; also cuts the schedule at the touchdown, computes the gains, and begins a new energy record."""
        if self._begin_again(asked := (num_inference_steps, device)):
            return
        super().set_timesteps(num_inference_steps, device)
        self.sigmas = levels(self)
        self._begin_run()
        self.num_inference_steps = num_inference_steps  # the parent's stride, also where the touchdown cut the schedule
        self._host_timesteps = self.timesteps.tolist()
        self._standing = StandingSchedule.of(self, asked)

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
        self._check_step(model_output, sample, None)  # which counts no steps
        self._refuse_noise("eta", eta)
        try:
            index = index_of(timestep, self.timesteps)
        except IndexError:
            raise ValueError(f"timestep {int(timestep)} is not in the schedule; pass elements of `timesteps`.") from None
        timestep = self._host_timesteps[index]  # a number, which the parent looks up without waiting for the device
        v, x = self._widened(model_output, sample)
        prev_sample, data = super().step(
            v, timestep, x, eta, use_clipped_model_output, generator, variance_noise, return_dict=False
        )
        target: Any = timestep - self.config.num_train_timesteps // self.num_inference_steps
        after = self._scale(self.alphas_cumprod[target] if target >= 0 else self.final_alpha_cumprod)
        if self.config.touchdown is not None and self._touches_down(self._flow_times().tolist(), index):
            prev_sample = data
        prev_sample = self._shape(index, v, x, prev_sample, self._scale(self.alphas_cumprod[timestep]), after)
        if not self._is_off:
            prev_sample = prev_sample.to(model_output.dtype)
        if not return_dict:
            return (prev_sample, data)
        return DDIMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=data)

    def _scale(self, signal: torch.Tensor) -> torch.Tensor:
        return signal.sqrt() + (1 - signal).sqrt()
