"""The embedded pipelines, in diffusers format: Fashion-MNIST, trained by ``examples/train_fashion_mnist.py``."""

from pathlib import Path

NAMES = ("memorising", "generalising")


def embedded_model(name: str = "memorising") -> Path:
    """The folder of an embedded pipeline, for `ClassConditionalFlowPipeline.from_pretrained`.

    Args:
        name (`str`): "memorising" (few training images, also in ``training_images.npz``) or "generalising" (all 60,000).
    """
    if name not in NAMES:
        raise ValueError(f"there is no embedded model {name!r}; choose from {', '.join(NAMES)}.")
    return Path(__file__).parent / name
