"""KTSEulerDiscreteScheduler: kinetic trajectory shaping for diffusion models (SDXL, SD 1.5) with Euler's steps."""

import torch
from diffusers import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput

from .base import shaped_init
from .diffusion import KTSDiffusionMixin


class KTSEulerDiscreteScheduler(KTSDiffusionMixin, EulerDiscreteScheduler):
    """Euler steps along ``dX/dt = eta(t) v(X, t)`` in flow coordinates. Order 1, see `KTSDiffusionMixin`.

    With shaping off, steps are bit-equal to `EulerDiscreteScheduler`. Energies are in flow coordinates too.

        pipe.scheduler = KTSEulerDiscreteScheduler.from_config(pipe.scheduler.config, alpha_0=0.05, beta_0=0.0)

    Source: arXiv 2602.07928 for the equation; its use beyond flow matching is ours.

    Arguments are those of `EulerDiscreteScheduler`, then the shaping settings of `KTSFlowMatchScheduler`.

    Raises:
        ValueError: a shaping setting is out of range, or ``s_churn`` is combined with shaping.
    """

    __module__ = "diffusers_kts"
    __init__ = shaped_init(EulerDiscreteScheduler)  # type: ignore[assignment]

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
    ) -> None:
        """As the parent's; also cuts the schedule at the touchdown, plans the gains, and begins a new energy record."""
        super().set_timesteps(num_inference_steps, device, timesteps, sigmas)
        self.begin_run()

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> EulerDiscreteSchedulerOutput | tuple:
        """One shaped step; arguments and result as in `EulerDiscreteScheduler.step`."""
        if self.recorder.runs == [] and self.is_off:  # before set_timesteps: the levels of training, as the parent
            churn = s_churn, s_tmin, s_tmax, s_noise
            return super().step(model_output, timestep, sample, *churn, generator, return_dict)
        self.check_step(model_output, sample, self._step_index)
        self.refuse_noise("s_churn", s_churn)
        v, x = self.widened(model_output, sample)
        prev_sample, data = super().step(v, timestep, x, s_churn, s_tmin, s_tmax, s_noise, generator, False)
        index = self._step_index - 1
        prev_sample = self.shape(index, v, x, prev_sample, 1 + self.sigmas[index], 1 + self.sigmas[index + 1])
        prev_sample = prev_sample.to(model_output.dtype)
        if not return_dict:
            return (prev_sample, data)
        return EulerDiscreteSchedulerOutput(prev_sample=prev_sample, pred_original_sample=data)
