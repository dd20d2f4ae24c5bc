"""The settings of ``kts evaluate``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..sampling.comparison import ComparisonSettings
from ..sampling.settings import IMAGES, MEASURES, NETWORKS, OUTPUT, Settings, inherited, setting


@dataclass(frozen=True)
class EvaluateSettings(Settings):
    """The settings of `evaluate`; each field's meaning is its ``help``, which is also the command line's.

    Raises:
        ValueError: a setting is out of range.
    """

    images: Path = setting(Path(), "A finished output of kts generate, a folder of pictures, .npz or .npy.", IMAGES, flag="")
    reference: Path | None = setting(
        None, "Real images: folder, .npz or .npy, or statistics (.npz with mu and sigma).", IMAGES
    )
    training_images: Path | None = setting(None, "For F_mem: folder of pictures, .npz or .npy.", IMAGES)
    image_size: int | None = setting(
        None,
        "Side, in pixels, to which all images are cropped and scaled. Default: as they are.",
        IMAGES,
        least=1,
    )
    metrics: Sequence[str] | str = setting(
        "auto",
        "Of fid, kid, is, precision-recall, fd-dinov2, fd, clip-score, score, f-mem, kpe, with commas; auto: all that the "
        "given files allow without a download.",
        MEASURES,
        kind=str,
    )
    kid_subset_size: int = setting(1000, "Images in each of KID's 100 subsets.", MEASURES, least=2)
    inception: Path | None = setting(None, "torch-fidelity's weight file. Default: the one in torch's hub cache.", NETWORKS)
    dinov2: str | None = setting(None, "Folder or Hub id. Default: facebook/dinov2-large.", NETWORKS)
    clip: str | None = setting(None, "Folder or Hub id. Default: openai/clip-vit-large-patch14.", NETWORKS)
    features: str | None = setting(
        None, "Space of fd: pixels, efficientnet-lite0, module:function, TorchScript or .pt2 file. Default: pixels.", NETWORKS
    )
    scorer: str | None = setting(
        None,
        "Your judge: file.py:function of images (B, C, H, W) in [0, 1] and their prompts; a number each.",
        NETWORKS,
    )
    device: str = inherited(ComparisonSettings, "device", "auto", group=NETWORKS)
    batch_size: int = setting(64, "Images at a time.", NETWORKS, least=1)
    output: Path | None = setting(None, "Folder for evaluation.json and samples.parquet. Default: kts-evaluation.", OUTPUT)
    statistics: Path | None = setting(None, "Also save the reference's statistics in this .npz file.", OUTPUT)
    overwrite: bool = inherited(ComparisonSettings, "overwrite", False)
