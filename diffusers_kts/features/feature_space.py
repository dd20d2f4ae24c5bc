"""A feature space: where Frechet distances, precision and recall are measured. Its name belongs to the number."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import brief

BATCH_SIZE = 64


@dataclass(frozen=True)
class FeatureSpace:
    """A network that turns images (B, C, H, W) in [0, 1] into features (B, d), and its name.

    Attributes:
        name (`str`): goes with every number.
        network (`Callable`): given a batch on ``device``.
        device (`torch.device`): where the network runs.
        note (`str`): why this space, where the user did not choose it.
        sha256 (`str`, *optional*): of the network's weights, where they are a file.
        resize (`str`): what the network itself does to the size of an image.
    """

    name: str
    network: Callable[[torch.Tensor], torch.Tensor]
    device: torch.device = torch.device("cpu")
    note: str = ""
    sha256: str | None = None
    resize: str = "none"

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(B, d) float32 features on the CPU.

        Raises:
            ValueError: the network fails on these images or returns something else.
        """
        parts = []
        for batch in images.split(BATCH_SIZE):
            try:
                features = self.network(batch.to(self.device))
            except Exception as error:  # the user's own network
                raise ValueError(
                    f"feature network {self.name!r} fails on images {tuple(batch.shape)} ({brief(error)})."
                ) from error
            if not isinstance(features, torch.Tensor) or len(features) != len(batch):
                got = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
                raise ValueError(f"feature network {self.name!r} gave {got} for {len(batch)} images; it must give (B, d).")
            parts.append(features.flatten(1).float().cpu())
        return torch.cat(parts)
