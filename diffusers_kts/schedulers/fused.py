"""The Euler step and ``||v||^2`` in one compiled kernel, which reads the velocity once."""

import functools
from collections.abc import Callable

import torch

from ..flow_coordinates import wide_dtype
from ..kpe.trace import Rows, squared_norm
from .euler_step import euler_step


def _step_and_power(sample: torch.Tensor, v: torch.Tensor, displacement: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`euler_step` in the dtype of ``v``, and `squared_norm`, of (B, rows, length); written for the compiler."""
    wide = wide_dtype(sample, v)
    power = v.to(torch.promote_types(v.dtype, torch.float32)).square().sum(2).sum(1)
    return (sample.to(wide) + displacement * v.to(wide)).to(v.dtype), power


@functools.cache
def _compiled() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    return torch.compile(_step_and_power, fullgraph=True)


_works = True


def fused_step(sample: torch.Tensor, v: torch.Tensor, displacement: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The next sample and ``||v||^2``, by the compiler where there is one that works, and else, silently, without."""
    global _works
    shape, rest = Rows.of(v.shape)  # so short that the threads which add one up also make its part of the step
    if _works and not rest and v.numel() and v.is_contiguous() and sample.is_contiguous():
        try:
            # a tensor, since another number would be another kernel
            factor = torch.tensor(displacement, dtype=torch.float64)
            stepped, power = _compiled()(sample.view(shape), v.view(shape), factor)
            return stepped.view(v.shape), power
        except Exception:  # what lacks is told by many errors; any error that is not the compiler's comes again below
            _works = False
    return euler_step(sample, v, displacement).to(v.dtype), squared_norm(v)
