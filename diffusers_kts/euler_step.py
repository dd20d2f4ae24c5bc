"""The shaped Euler step, ``x + s v``, in as few passes over memory as it takes."""

import functools
from typing import Any

import torch

from .flow_coordinates import wide_dtype


def euler_step(sample: torch.Tensor, v: torch.Tensor, displacement: Any) -> torch.Tensor:
    """``sample + displacement * v`` computed in at least fp32 and rounded once, in the wider of the two dtypes.

    Args:
        sample (`torch.Tensor`, (B, ...)): state.
        v (`torch.Tensor`, (B, ...)): velocity.
        displacement (`float`, or `torch.Tensor` that broadcasts against ``v``): ``eta dt``.
    """
    if isinstance(displacement, torch.Tensor):
        wide = wide_dtype(sample, v)
        return torch.addcmul(sample.to(wide), v.to(wide), displacement.to(wide))
    # Not torch.add: on the CPU it rounds alpha to bf16, and a gain of one per cent is lost; and it multiplies and adds in one
    # rounding in some places of a tensor and in two in others, so that a sample would depend on its neighbors.
    return torch.addcmul(sample, v, _one(v.dtype, v.device), value=displacement)


@functools.cache
def _one(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # so that it serves in every mode
        return torch.ones((), dtype=dtype, device=device)
