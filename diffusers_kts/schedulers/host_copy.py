"""What steps must know of a schedule, on the host, so that they need not wait for the device to learn it."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(slots=True)  # made once or more per schedule; a frozen one takes twice as long to make
class HostCopy:
    """The numbers of the 1-D ``tensor`` as Python floats, and a way to tell whether they still are its numbers.

    Some pipelines replace `sigmas` after `set_timesteps`, others (Cosmos) write into them. Neither can be seen by reading a
    device tensor without waiting for it, but the first changes the object and the second its version counter.
    """

    tensor: torch.Tensor
    version: int | None
    numbers: list[float]

    @classmethod
    def of(cls, tensor: torch.Tensor, numbers: list[float] | None = None) -> "HostCopy":
        """Waits for the device unless ``numbers`` are given."""
        return cls(tensor, _version(tensor), tensor.tolist() if numbers is None else numbers)

    def __reduce__(self) -> tuple:
        """For deep copies and pickles, whose tensors count versions anew, whatever was written into this one."""
        return _of_a_copy, (self.tensor, self.numbers, self.is_of(self.tensor))

    def is_of(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` is the one copied and nobody wrote into it since; never for tensors without a counter."""
        return tensor is self.tensor and self.version is not None and tensor._version == self.version


def counted(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor``, or under `torch.inference_mode`, whose tensors count no versions, a copy that does."""
    if not tensor.is_inference():
        return tensor
    with torch.inference_mode(False):
        return tensor.clone()


def index_of(timestep: Any, timesteps: torch.Tensor) -> int:
    """Which element of ``timesteps`` this is. One that was taken from the tensor itself says so by its place in memory; any
    other is looked up by value, for which a device is waited for.

    Raises:
        IndexError: there is no such element.
    """
    if isinstance(timestep, torch.Tensor) and timestep.dtype == timesteps.dtype and timestep.numel() == 1:
        apart = timestep.data_ptr() - timesteps.data_ptr()
        stride = timesteps.stride(0) * timesteps.element_size()
        if stride and apart % stride == 0 and 0 <= apart // stride < timesteps.shape[0]:
            return apart // stride
    return int((timesteps == timestep).nonzero()[0])


def _of_a_copy(tensor: torch.Tensor, numbers: list[float], current: bool) -> HostCopy:
    return HostCopy(tensor, _version(tensor) if current else None, numbers)


def _version(tensor: torch.Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
