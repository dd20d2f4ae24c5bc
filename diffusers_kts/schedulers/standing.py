"""Whether the schedule that is asked for is the one that stands already."""

from dataclasses import dataclass
from typing import Any

from .host_copy import HostCopy


@dataclass(slots=True)
class StandingSchedule:
    """What `set_timesteps` of a KTS scheduler was last ``asked`` for, and what it made of that.

    A pipeline asks for the same schedule in call after call. One that nobody has replaced or written into since need not be
    made again.
    """

    asked: tuple
    config: Any
    num_inference_steps: int
    sigmas: HostCopy
    timesteps: HostCopy

    @classmethod
    def of(cls, scheduler: Any, asked: tuple) -> "StandingSchedule":
        timesteps = HostCopy.of(scheduler.timesteps, [])
        return cls(asked, scheduler.config, scheduler.num_inference_steps, scheduler._levels, timesteps)

    def is_for(self, scheduler: Any, asked: tuple) -> bool:
        """Whether ``asked`` is asked again of a scheduler that is as it was left."""
        return (
            asked == self.asked
            and scheduler.config is self.config
            and scheduler.num_inference_steps == self.num_inference_steps
            and self.sigmas.is_of(scheduler.sigmas)
            and self.timesteps.is_of(scheduler.timesteps)
        )


def as_tuple(numbers: Any) -> tuple | None:
    """A list, array or tensor of numbers, for comparison: later writing into it does not change the result."""
    if numbers is None:
        return None
    return tuple(numbers.tolist() if hasattr(numbers, "tolist") else numbers)
