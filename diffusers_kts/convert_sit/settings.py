"""The settings of ``kts convert-sit``."""

from dataclasses import dataclass
from pathlib import Path

from ..sampling.settings import MODEL, OUTPUT, Settings, setting

NOISE_TO_DATA, DATA_TO_NOISE = "noise-to-data", "data-to-noise"
VAE = "stabilityai/sd-vae-ft-ema"  # as SiT's own sampling script


@dataclass(frozen=True)
class ConvertSiTSettings(Settings):
    """The settings of `run_convert_sit`; each field's meaning is its ``help``, which is also the command line's.

    Raises:
        ValueError: a setting is wrong.
    """

    weights: Path = setting(Path(), "SiT-XL-2-256.pt, a training checkpoint of SiT or REPA, or .safetensors.", flag="")
    vae: str | None = setting(None, f"Folder or Hub id of an AutoencoderKL. Default: {VAE}.", MODEL)
    no_vae: bool = setting(False, "Leave the VAE out: the pipeline then gives latents.", MODEL)
    labels: Path | None = setting(
        None, "Text file, one class name per line. Default: ImageNet's, if torchvision is installed.", MODEL
    )
    time: str | None = setting(
        None,
        "Which way the network's own time runs, noise-to-data (SiT) or data-to-noise (REPA). Default: as the weights show.",
        MODEL,
        choices=(NOISE_TO_DATA, DATA_TO_NOISE),
    )
    output: Path = setting(Path("kts-sit"), "Folder to make: new or empty.", OUTPUT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.no_vae and self.vae is not None:
            raise ValueError("vae and no_vae are both given; give one of them.")
