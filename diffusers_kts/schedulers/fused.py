"""The Euler step and ``||v||^2`` in one compiled kernel, which reads the velocity once.

Experimental: not measured on a GPU.
"""

import functools
import warnings
from collections.abc import Callable

import torch

from ..euler_step import euler_step
from ..flow_coordinates import wide_dtype
from ..kpe.sums import rows_of, squared_norm

NO_COMPILER = ("InvalidCxxCompiler", "TritonMissing", "GPUTooOldForTriton", "CUDACompileError")


def _step_and_power(sample: torch.Tensor, v: torch.Tensor, displacement: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`euler_step` in the dtype of ``v``, and `squared_norm`, of (B, rows, length); written for the compiler."""
    wide = wide_dtype(sample, v)
    power = v.to(torch.promote_types(v.dtype, torch.float32)).square().sum(2).sum(1)
    return (sample.to(wide) + displacement * v.to(wide)).to(v.dtype), power


@functools.cache
def _compiled() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    return torch.compile(_step_and_power, fullgraph=True)


class Compiler:
    """Whether this machine has a compiler that works; False after the first failure of it, with a warning."""

    works = True


def fused_step(sample: torch.Tensor, v: torch.Tensor, displacement: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The next sample and ``||v||^2`` (B,), compiled where that is possible.

    Without a working compiler a warning is given once, and steps are made without one from then on. Any other error is raised.
    """
    shape, rest = rows_of(v.shape)  # so short that the threads which add one up also make its part of the step
    if Compiler.works and not rest and v.numel() and v.is_contiguous() and sample.is_contiguous():
        factor = torch.tensor(displacement, dtype=torch.float64)  # a tensor, since another number would be another kernel
        try:
            stepped, power = _compiled()(sample.view(shape), v.view(shape), factor)
            return stepped.view(v.shape), power
        except Exception as error:
            if not _comes_of_no_compiler(error):
                raise
            Compiler.works = False
            warnings.warn(
                f"fused steps need a compiler, and none works here ({str(error).strip().splitlines()[0]}); steps are made "
                "without one. Set scheduler.fused = False, or install a C++ compiler (CPU) or Triton (CUDA).",
                RuntimeWarning,
                stacklevel=4,
            )
    return euler_step(sample, v, displacement).to(v.dtype), squared_norm(v)


def _comes_of_no_compiler(error: BaseException | None) -> bool:
    """Whether this error, or one that it wraps, says that there is no compiler."""
    if error is None:
        return False
    wrapped = getattr(error, "inner_exception", None) or error.__cause__
    return type(error).__name__ in NO_COMPILER or _comes_of_no_compiler(wrapped)
