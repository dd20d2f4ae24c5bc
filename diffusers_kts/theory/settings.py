"""The settings of ``kts theory``."""

from dataclasses import dataclass
from pathlib import Path

from ..sampling.comparison import ComparisonSettings
from ..sampling.settings import MODEL, OUTPUT, SAMPLING, Settings, inherited, setting


@dataclass(frozen=True)
class TheorySettings(Settings):
    """The settings of `run_theory`; each field's meaning is its ``help``, which is also the command line's.

    Raises:
        ValueError: a setting is out of range.
    """

    training_images: Path | None = inherited(ComparisonSettings, "training_images", None)
    image_size: int | None = setting(
        None, "Side, in pixels, to which all images are scaled. Default: as they are.", MODEL, least=1
    )
    model: str | None = setting(
        None,
        "Class-conditional pipeline without a VAE, to hold against the closed form: folder, Hub id or embedded model.",
        MODEL,
    )
    num_samples: int = setting(500, "Pairs of a training image and a noise, and paths.", SAMPLING, least=8)
    num_inference_steps: int = setting(100, "Euler steps of a path.", SAMPLING, least=4)
    seed: int = setting(0, "Of the pairs and the noises.", SAMPLING, least=0)
    output: Path = setting(Path("kts-theory"), "Folder for theory.json and theory.png.", OUTPUT)
    overwrite: bool = inherited(ComparisonSettings, "overwrite", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is None and self.training_images is None:
            raise ValueError("training_images is missing; give --training-images, or --model with training images next to it.")
