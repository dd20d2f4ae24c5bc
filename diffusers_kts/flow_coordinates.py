"""Flow time, noise level and velocity of flow and diffusion models, in the coordinates where energies compare.

A state ``x = alpha x_0 + sigma eps`` is ``X = x / (alpha + sigma) = t x_0 + (1 - t) eps`` at the flow time
``t = alpha / (alpha + sigma)``, and moves at ``v = dX/dt = x0_hat - eps_hat``. For a flow model ``alpha + sigma = 1``. Steps
with constant ``x0_hat`` and ``eps_hat``, those of DDIM and Euler, are the Euler steps ``X + (t' - t) v``. Not from the paper.
"""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "flow_prediction")
ON_GRID = 1e-6


def array_library(numbers: Any) -> Any:
    """The module whose functions take these numbers: torch for a tensor, otherwise numpy. Does not import torch."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(numbers, torch.Tensor) else np


def exceeds_one(sigmas: Any) -> bool:
    """Whether a schedule (N,) counts noise as ``sigma / alpha`` (variance exploding) instead of ``1 - t``."""
    return bool(len(sigmas)) and float(max(sigmas)) > 1 + 1e-4  # shifting in float32 may give 1.0000001


def flow_times(sigmas: Any, invert_sigmas: bool = False, marks: Iterable[float] = ()) -> Any:
    """Flow time of every noise level, in float64.

    It is ``1 - sigma``; ``sigma`` itself where a model counts upwards (``invert_sigmas``, Mochi); ``1 / (1 + sigma)`` where
    the schedule exceeds 1 (variance exploding, Cosmos).

    Args:
        sigmas: (N,) noise levels, a tensor, an array or a list.
        invert_sigmas: whether the levels are flow times.
        marks: flow times that a level within 1e-6 is set to. Sigmas are float32, so a grid point meant for ``tau_split``
            misses it by about 1e-7.

    Returns:
        (N,) a tensor for a tensor, otherwise an array.
    """
    xp = array_library(sigmas)
    t = xp.asarray(sigmas, dtype=xp.float64)
    if not invert_sigmas:
        t = 1 / (1 + t) if exceeds_one(sigmas) else 1 - t
    return snap(t, marks)


def snap(t: Any, marks: Iterable[float]) -> Any:
    """Flow times ``t``, those within 1e-6 of a mark set to it."""
    xp = array_library(t)
    for mark in marks:
        t = xp.where(abs(t - mark) < ON_GRID, mark, t)
    return t


def noise_level(t: float, sigmas: Any, invert_sigmas: bool = False) -> float:
    """The inverse of `flow_times`: the sigma of flow time ``t`` in the convention of the schedule ``sigmas``."""
    if invert_sigmas:
        return t
    return 1 / t - 1 if exceeds_one(sigmas) else 1 - t


def flow_sigma(noise_to_signal: Any) -> Any:
    """``1 - t`` of a noise level given as ``sigma / alpha``, the form in which variance-exploding schedules count."""
    return noise_to_signal / (1 + noise_to_signal)


def wide_dtype(a: "torch.Tensor", b: "torch.Tensor") -> "torch.dtype":
    """The dtype in which steps compute: that of both tensors, fp32 or wider."""
    import torch

    return torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)


def flow_velocity(
    prediction_type: str, model_output: "torch.Tensor", sample: "torch.Tensor", alpha: Any, sigma: Any
) -> "torch.Tensor":
    """``dX/d(1 - t) = eps_hat - x0_hat``, shaped like ``sample``: what a flow model of diffusers would have predicted.

    Args:
        prediction_type: "epsilon", "sample", "v_prediction" (for which ``alpha^2 + sigma^2 = 1``), "flow_prediction".
        model_output: (B, C or 2 C, ...); a predicted variance in further channels is left out.
        sample: (B, C, ...), the state ``alpha x_0 + sigma eps``.
        alpha: signal scale of the state.
        sigma: noise scale of the state.

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


def shaped_step(
    sample: "torch.Tensor", prev_sample: "torch.Tensor", scale: Any, scale_after: Any, gain: float
) -> "torch.Tensor":
    """``X + eta (X' - X)`` of a step from ``sample`` to ``prev_sample``, in the coordinates of the sampler.

    Args:
        sample: (B, ...) state before the step.
        prev_sample: (B, ...) state after the unshaped step.
        scale: ``alpha + sigma`` before the step.
        scale_after: ``alpha + sigma`` after it.
        gain: eta.
    """
    x = sample / scale
    return (x + gain * (prev_sample / scale_after - x)) * scale_after
