"""Flow coordinates of every diffusion model, in which energies compare and shaping means the same.

A state ``x = alpha x_0 + sigma eps`` is ``X = x / (alpha + sigma) = t x_0 + (1 - t) eps`` at the flow time
``t = alpha / (alpha + sigma)``, and moves at ``v = dX/dt = x0_hat - eps_hat``. For a flow model ``alpha + sigma = 1``. Steps
with constant ``x0_hat`` and ``eps_hat``, DDIM's and Euler's, are the Euler steps ``X + (t' - t) v``. Ours.
"""

from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler

DIFFUSION = (DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler)
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "flow_prediction")


def wide_dtype(a: torch.Tensor, b: torch.Tensor) -> torch.dtype:
    """In which steps compute: that of both tensors, fp32 or wider."""
    return torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)


def flow_sigma(noise_to_signal: torch.Tensor) -> torch.Tensor:
    """``1 - t`` of a noise level given as ``sigma / alpha``, the form in which variance-exploding schedules count."""
    return noise_to_signal / (1 + noise_to_signal)


def flow_velocity(
    prediction_type: str, model_output: torch.Tensor, sample: torch.Tensor, alpha: Any, sigma: Any
) -> torch.Tensor:
    """``dX/d(1 - t) = eps_hat - x0_hat``, shaped as ``sample``: what a flow model of diffusers would have predicted.

    Args:
        prediction_type (`str`): "epsilon", "sample", "v_prediction" (for which ``alpha^2 + sigma^2 = 1``), "flow_prediction".
        model_output (`torch.Tensor`, (B, C or 2 C, ...)): a predicted variance in further channels is left out.
        sample (`torch.Tensor`, (B, C, ...)): the state ``alpha x_0 + sigma eps``.
        alpha, sigma (`float` or `torch.Tensor`, scalars): its signal and noise scales.

    Raises:
        ValueError: the prediction type is not known.
    """
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type is {prediction_type!r}; known are {', '.join(PREDICTION_TYPES)}.")
    if sample.ndim > 1 and model_output.shape != sample.shape:
        model_output = model_output[:, : sample.shape[1]]
    if prediction_type == "flow_prediction":
        return model_output
    wide = wide_dtype(sample, model_output)
    sample, model_output = sample.to(wide), model_output.to(wide)
    if prediction_type == "epsilon":
        return ((alpha + sigma) * model_output - sample) / alpha
    data = model_output if prediction_type == "sample" else alpha * sample - sigma * model_output
    return (sample - (alpha + sigma) * data) / sigma


def exploding_velocity(model_output: torch.Tensor, sample: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """`flow_velocity` of a flow-matching scheduler whose sigmas exceed 1: its ``dx/dsigma`` predicts the noise."""
    return flow_velocity("epsilon", model_output, sample, 1.0, sigma)


def variance_preserving(noise_to_signal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``alpha`` and ``sigma`` with ``alpha^2 + sigma^2 = 1`` of a noise level given as ``sigma / alpha``."""
    alpha = 1 / (1 + noise_to_signal**2).sqrt()
    return alpha, noise_to_signal * alpha


def shaped_step(sample: torch.Tensor, prev_sample: torch.Tensor, scale: Any, scale_after: Any, gain: float) -> torch.Tensor:
    """``X + eta (X' - X)`` of a step from ``sample`` to ``prev_sample``, in the coordinates of the sampler.

    Args:
        scale, scale_after: ``alpha + sigma`` before and after the step. gain (`float`): eta.
    """
    x = sample / scale
    return (x + gain * (prev_sample / scale_after - x)) * scale_after


def is_known(scheduler: Any) -> bool:
    """Whether the noise levels and predictions of this scheduler of a diffusion (not flow) model are known here."""
    return isinstance(scheduler, DIFFUSION) and scheduler.config.prediction_type in PREDICTION_TYPES


def scales(scheduler: Any, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``alpha`` and ``sigma`` of the state that the network sees at evaluation ``index``; of DDIM, which keeps its timesteps
    on the device, by the copy that whoever records left in ``_host_timesteps``."""
    if isinstance(scheduler, DDIMScheduler):
        signal = scheduler.alphas_cumprod[scheduler._host_timesteps[index]]
        return signal.sqrt(), (1 - signal).sqrt()
    if isinstance(scheduler, EulerDiscreteScheduler):
        return variance_preserving(scheduler.sigmas[index])
    return scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[index])


def levels(scheduler: Any) -> torch.Tensor:
    """(N + 1,) ``1 - t`` at the evaluations of the current schedule, and where it ends."""
    if isinstance(scheduler, DDIMScheduler):
        signal = scheduler.alphas_cumprod.cpu()[scheduler.timesteps.cpu()]
        signal = torch.cat([signal, scheduler.final_alpha_cumprod.cpu()[None]])
        return (1 - signal).sqrt() / (signal.sqrt() + (1 - signal).sqrt())
    return scheduler.sigmas if scheduler.config.get("use_flow_sigmas", False) else flow_sigma(scheduler.sigmas)


def velocity(scheduler: Any, index: int, model_output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """`flow_velocity` of what reaches the `step` of a scheduler that `is_known`."""
    alpha, sigma = scales(scheduler, index)
    if isinstance(scheduler, EulerDiscreteScheduler):  # it keeps x_0 + (sigma / alpha) eps
        sample = sample * alpha
    return flow_velocity(scheduler.config.prediction_type, model_output, sample, alpha, sigma)
