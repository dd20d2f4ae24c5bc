"""The embedded pipelines, in diffusers format: Fashion-MNIST, by ``examples/train_fashion_mnist.py``, and emoji,
by ``examples/train_text_to_image.py``."""

from pathlib import Path

CLASS_CONDITIONAL = ("memorizing", "generalizing")
TEXT_TO_IMAGE = ("emoji", "emoji-memorizing")
NAMES = (*CLASS_CONDITIONAL, *TEXT_TO_IMAGE)
SHOWN_FIRST = "emoji-memorizing"  # by the demo and the Space
GUIDANCE = {"emoji": 4.0, "emoji-memorizing": 1.0}  # scale to use unless another is given; their pipeline's own is 7
PROMPTS = "prompts.txt"  # suggestions that a text-to-image model brings along
REMEDY = f"give a pipeline folder, a Hub id, or {', '.join(NAMES[:-1])} or {NAMES[-1]}"


def embedded_model(name: str = "memorizing") -> Path:
    """The folder of an embedded pipeline.

    Examples:
        >>> embedded_model("emoji").name
        'emoji'

    Args:
        name (`str`): for `ClassConditionalFlowPipeline.from_pretrained`, "memorizing" (1,024 training images, also in
            ``training_images.npz``) or "generalizing" (all 60,000); for `DiffusionPipeline.from_pretrained`, "emoji" (text to
            image) or "emoji-memorizing" (1,024 training images).

    Raises:
        ValueError: there is no such model.
    """
    if name not in NAMES:
        raise ValueError(f"there is no embedded model {name!r}; choose from {', '.join(NAMES)}.")
    return Path(__file__).parent / name


def check_model_name(name: str) -> None:
    """Raises ValueError for what is neither an embedded pipeline, nor a folder, nor looks like an id of the Hub."""
    if name not in NAMES and not Path(name).is_dir() and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise ValueError(f"model {name!r} is no folder; {REMEDY}.")
