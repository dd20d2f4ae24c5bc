"""Plain Euler, KTS and touchdown on the same noises: what the jobs that compare them have in common."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ..presets import PRESETS
from ..shaping import Shaping
from .settings import MODEL, OUTPUT, SAMPLING, PromptSettings, SamplingSettings, ShapingSettings, inherited, setting

TOUCHDOWN = 0.7


class Compared(NamedTuple):
    """A sampler of a comparison."""

    heading: str
    shaping: Shaping


@dataclass(frozen=True, kw_only=True)
class ComparisonSettings(ShapingSettings, SamplingSettings, PromptSettings):
    """Settings of a comparison of samplers."""

    num_inference_steps: int = inherited(SamplingSettings, "num_inference_steps", 100, help="Euler steps.")
    batch_size: int = inherited(SamplingSettings, "batch_size", 64)
    preset: str | None = inherited(
        ShapingSettings,
        "preset",
        "balanced",
        help=f"Gain of the KTS sampler: {', '.join(PRESETS)}, or a preset.json of kts tune. Default: balanced.",
    )
    touchdown: float | None = inherited(
        ShapingSettings,
        "touchdown",
        None,
        help=f"Flow time, 0 to 1, of the touchdown sampler's last step. Default: the preset's, else {TOUCHDOWN}.",
    )
    num_samples: int = setting(64, "Images per sampler; prompts or classes repeat in turn.", SAMPLING, least=1)
    training_images: Path | None = setting(
        None, "Folder of pictures, .npz or .npy. Default: training_images.npz next to the model.", MODEL, identity=False
    )
    device: str = setting("auto", "auto, cpu, cuda, ...", MODEL, identity=False)
    output: Path = setting(Path("kts-comparison"), "Folder for the results.", OUTPUT, identity=False)
    overwrite: bool = setting(False, "Replace the files of an earlier run.", OUTPUT, identity=False)

    def samplers(self) -> dict[str, Compared]:
        """Every sampler by its name in the tables. The landing of KTS divides early from late energy for all."""
        assert self.shaping is not None
        kts = replace(self.shaping, touchdown=None)
        off = Shaping(alpha_0=0.0, beta_0=0.0, tau_split=kts.tau_split)
        touchdown = self.shaping.touchdown or TOUCHDOWN
        return {
            "euler": Compared("plain Euler", off),
            "kts": Compared(f"KTS {kts.alpha_0:g} / {kts.beta_0:g}", kts),
            "touchdown": Compared(f"touchdown {touchdown:g}", replace(off, touchdown=touchdown)),
        }
