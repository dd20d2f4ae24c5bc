"""KTSFlowMatchHeunScheduler: kinetic trajectory shaping with Heun's method for flow-matching pipelines."""

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteSchedulerOutput

from ..flow_coordinates import wide_dtype
from ..shaping import SHAPING
from .base import Setting, shaped_init
from .scheduling_kts_flow_match import KTSFlowMatchScheduler


class KTSFlowMatchHeunScheduler(KTSFlowMatchScheduler, FlowMatchHeunDiscreteScheduler):
    """Heun's steps along ``dx/dt = eta(t) v(x, t)``. Order 2, two network evaluations a step, one for the last.

    Predictor ``x' = x_i + eta_i dt v_i``; corrector ``x_{i+1} = x_i + dt (eta_i + eta_{i+1})/2 (v_i + v'_{i+1})/2``, the form
    of the paper's reference code. The last step, to sigma 0, is Euler's, as in diffusers; ``correct_last_step`` corrects it
    too, as that code does. Gains that jump ("constant" shapes) make the one step over the jump first-order.

    Takes `sigmas`, `mu` and `timesteps`, which `FlowMatchHeunDiscreteScheduler` does not, and thus drops into FLUX and SD3;
    with shaping off, steps are bit-equal to it on the same sigmas. As there, `timesteps` and `sigmas` name every level but the
    first twice, and `gains`, `schedule_table` and `kpe` have an entry for each evaluation. Energies are the trapezoidal sums.

    Examples:
        >>> scheduler = KTSFlowMatchHeunScheduler(gain=[1.0, 1.1])
        >>> scheduler.set_timesteps(2)
        >>> scheduler.gains.tolist()  # of three evaluations in two steps
        [1.0, 1.1, 1.1]

    Source: arXiv 2602.07928, except ``touchdown``, which is ours.

    Args:
        correct_last_step (`bool`, defaults to False): whether the last step is corrected, too, by one more evaluation, at
            ``t = 1``, which has a gain too. A touchdown is one whole step, never corrected.

    All other arguments are those of `KTSFlowMatchScheduler`.

    Raises:
        ValueError: as there; or per-token timesteps, for which there is `KTSFlowMatchScheduler`; or ``s_churn`` with shaping.
    """

    __module__ = "diffusers_kts"
    _compatibles = ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"]
    quadrature = "trapezoid"
    stride = 2
    order = 2
    setting_names = (*SHAPING, "correct_last_step")
    correct_last_step = Setting()
    __init__ = shaped_init(FlowMatchEulerDiscreteScheduler, correct_last_step=False)  # type: ignore[assignment]
    prev_derivative: Any
    dt: Any
    sample: Any

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
        timesteps: list[float] | None = None,
    ) -> None:
        """As `KTSFlowMatchScheduler.set_timesteps`, for as many steps of two evaluations."""
        super().set_timesteps(num_inference_steps, device, sigmas, mu, timesteps)
        self.prev_derivative = self.dt = self.sample = None
        # img2img pipelines start at `order * steps`, where pipelines that gave sigmas count evaluations as steps
        self.order = 2 if num_inference_steps is not None else 1

    def step(
        self,
        model_output: torch.FloatTensor,
        timestep: float | torch.FloatTensor,
        sample: torch.FloatTensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: torch.Generator | None = None,
        per_token_timesteps: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> FlowMatchHeunDiscreteSchedulerOutput | tuple:
        """One evaluation's part of a step: the predictor, or the corrector, which restarts from the sample before it."""
        if per_token_timesteps is not None:
            raise ValueError("per_token_timesteps are not supported by Heun's steps; use KTSFlowMatchScheduler.")
        if s_churn and not self.plan.is_off:
            raise ValueError(f"s_churn is {s_churn}: it adds noise, shaping is defined for the ODE only; set s_churn=0.")
        index = self.check_call(model_output, timestep, sample)
        gain, v = self.plan.gains[index], self.velocity(index, model_output, sample)
        if index % 2 and self.state_in_first_order:
            # a run that starts on the second evaluation of a level: there is no predictor to correct
            prev_sample: Any = sample
            self._step_index += 1
        elif self._parent_can_step(index, v, sample):
            (prev_sample,) = FlowMatchHeunDiscreteScheduler.step(
                self, model_output, timestep, sample, s_churn, s_tmin, s_tmax, s_noise, generator, False
            )
        else:
            prev_sample = self._shaped_step(index, v, sample).to(model_output.dtype)
            self._step_index += 1
        self.observe(index, v, gain, source=self.source(index, model_output, sample))
        if not return_dict:
            return (prev_sample,)
        return FlowMatchHeunDiscreteSchedulerOutput(prev_sample=prev_sample)

    def _parent_can_step(self, index: int, v: torch.Tensor, sample: torch.Tensor) -> bool:
        """The parent rounds float64 to fp32, and divides by the noise level, which may be 0 at the end of custom sigmas."""
        return self.plan.is_off and torch.float64 not in (sample.dtype, v.dtype) and self.plan.levels[index] > 0

    def lay_out_evaluations(self) -> None:
        """Also name every level but the first twice; the last, sigma 0, where its step is corrected."""
        super().lay_out_evaluations()
        self.sigmas = torch.cat([self.sigmas[:1], self.sigmas[1:-1].repeat_interleave(2), self.sigmas[-1:]])
        self.timesteps = torch.cat([self.timesteps[:1], self.timesteps[1:].repeat_interleave(2)])
        if self.config.correct_last_step and self.config.touchdown is None:
            at_the_end = (self.sigmas[-1:] * self.config.num_train_timesteps).to(self.timesteps)
            self.timesteps = torch.cat([self.timesteps, at_the_end])
            self.sigmas = torch.cat([self.sigmas, self.sigmas[-1:]])

    def _shaped_step(self, index: int, v: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        dtype, plan, scales = wide_dtype(sample, v), self.plan, self.schedule.scales
        v, x = v.to(dtype), sample.to(dtype)
        if self.state_in_first_order:
            if scales is not None:
                x = x / sum(scales[index])
            self.prev_derivative, self.sample, self.dt = v, x, plan.interval(index)
            after, x = index + 1, x + (plan.gains[index] * self.dt) * v
        else:
            mean = (plan.gains[index - 1] + plan.gains[index]) / 2
            after, x = index, self.sample + (mean * self.dt) * ((self.prev_derivative + v) / 2)
            self.prev_derivative = self.dt = self.sample = None
        return x if scales is None else x / (1 - plan.levels[after])
