"""The device a job runs on."""

import torch

from ..errors import brief


def usable_device(name: str) -> torch.device:
    """The device of that name; "auto" is an accelerator where there is one.

    Raises:
        ValueError: it cannot be used.
    """
    found = torch.accelerator.current_accelerator() if name == "auto" and torch.accelerator.is_available() else None
    try:
        return torch.zeros(1, device=found or ("cpu" if name == "auto" else name)).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used ({brief(error)}); give auto, cpu, or one that is there.") from error
