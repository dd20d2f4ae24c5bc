"""DINOv2's class token as a feature space, in which Frechet distances follow human judgement better than in Inception's (Stein
et al. 2023)."""

import torch

from .checkpoints import Checkpoint
from .feature_space import FeatureSpace

CHECKPOINT = "facebook/dinov2-large"


def dinov2_space(name: str, device: torch.device, download: bool = False) -> FeatureSpace:
    """Features (b, d) of images (b, 1 or 3, H, W), float in [0, 1].

    Args:
        name (`str`): a folder, or an id of the Hub.
        device (`torch.device`): where it runs.
        download (`bool`, defaults to False): whether the checkpoint may be fetched.

    Raises:
        ValueError: as `Checkpoint.find` and `Checkpoint.model`.
    """
    from transformers import Dinov2Model

    checkpoint = Checkpoint.find(name, "dinov2", "--dinov2", download)
    model, processor = checkpoint.model(Dinov2Model, device), checkpoint.processor()

    def class_token(images: torch.Tensor) -> torch.Tensor:
        return model(pixel_values=processor(images).to(device)).pooler_output

    return FeatureSpace(f"DINOv2 ({name})", class_token, device, sha256=checkpoint.sha256, resize=processor.resize)
