"""What steps must know of a schedule, on the host, so that they need not wait for the device to learn it."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Levels:
    """The numbers of a 1-D tensor, and a way to tell whether it still holds them.

    Some pipelines replace `sigmas` after `set_timesteps`, others (Cosmos) write into them. The same object at the same version
    holds the same numbers, unless somebody wrote through ``.data``. Otherwise the numbers are compared on the CPU; on another
    device, where reading them would wait, they count as others.

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
        same = tensor is self.tensor and _version(tensor) == self.version
        if tensor.is_cpu and (not same or self.version < 0):
            return _numbers(tensor) == self.numbers
        return same


def _numbers(tensor: torch.Tensor) -> list[float]:
    try:
        return tensor.tolist()
    except RuntimeError:  # of torch 2.6 within torch.func.jvp
        return [float(number) for number in tensor]


def _version(tensor: torch.Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version
