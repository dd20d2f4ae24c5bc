"""The embedded pipelines, in diffusers format: Fashion-MNIST, trained by ``examples/train_fashion_mnist.py``."""

from pathlib import Path

NAMES = ("memorizing", "generalizing")
REMEDY = f"give a pipeline folder, a Hub id, or {' or '.join(NAMES)}"


def embedded_model(name: str = "memorizing") -> Path:
    """The folder of an embedded pipeline, for `ClassConditionalFlowPipeline.from_pretrained`.

    Args:
        name (`str`): "memorizing" (few training images, also in ``training_images.npz``) or "generalizing" (all 60,000).
    """
    if name not in NAMES:
        raise ValueError(f"there is no embedded model {name!r}; choose from {', '.join(NAMES)}.")
    return Path(__file__).parent / name


def check_model_name(name: str) -> None:
    """Raises ValueError for what is neither an embedded pipeline, nor a folder, nor looks like an id of the Hub."""
    if name not in NAMES and not Path(name).is_dir() and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise ValueError(f"model {name!r} is no folder; {REMEDY}.")
