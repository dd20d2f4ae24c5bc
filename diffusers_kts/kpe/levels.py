"""What steps must know of a schedule, on the host, so that they need not wait for the device to learn it."""

from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class Levels:
    """The numbers of a 1-D tensor, and a way to tell whether it still holds them.

    Some pipelines replace `sigmas` after `set_timesteps`, others (Cosmos) write into them, and callbacks write through
    ``.data`` or numpy, which no version counts. On the CPU the numbers are compared; on another device, where reading them
    would wait, the same object at the same version holds the same numbers.

    Attributes:
        tensor: (N,) the tensor read.
        numbers: its numbers as Python floats.
        version: its version counter when it was read; -1 for tensors without one.
    """

    tensor: torch.Tensor
    numbers: list[float]
    version: int

    @classmethod
    def of(cls, tensor: torch.Tensor, numbers: list[float] | None = None) -> "Levels":
        """Read the tensor, for which the device is waited for, unless its ``numbers`` are known."""
        return cls(tensor, _numbers(tensor) if numbers is None else numbers, _version(tensor))

    def are_of(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` holds these numbers; asked at every step."""
        if not tensor.is_cpu:
            return tensor is self.tensor and _version(tensor) == self.version
        try:
            return tensor.dtype == self.copy.dtype and torch.equal(tensor, self.copy)
        except RuntimeError:  # of torch 2.6 within torch.func.jvp
            return _numbers(tensor) == self.numbers

    @cached_property
    def copy(self) -> torch.Tensor:
        """The numbers, on the CPU, where comparing tensors is quicker than comparing lists."""
        return torch.tensor(self.numbers, dtype=self.tensor.dtype)


def _numbers(tensor: torch.Tensor) -> list[float]:
    try:
        return tensor.tolist()
    except RuntimeError:  # of torch 2.6 within torch.func.jvp
        return [float(number) for number in tensor]


def _version(tensor: torch.Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version
