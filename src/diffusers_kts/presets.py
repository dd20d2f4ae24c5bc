"""Shaping settings by purpose, each with the source of its numbers.

    pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config, **PRESETS["quality"])

A preset names every shaping setting, so that one replaces another completely. None is promised to help on your model:
measure it there.
"""

from typing import Any


class Preset(dict[str, Any]):
    """Keyword arguments of `KTSFlowMatchScheduler`, with what they are for and where they come from."""

    def __init__(self, purpose: str, source: str, **changes: Any) -> None:
        base = {"alpha_0": 0.0, "beta_0": 0.0, "tau_split": 0.6, "k": 3.0, "touchdown": None}
        super().__init__(base | {"early_schedule": "linear", "late_schedule": "exponential"} | changes)
        self.purpose = purpose
        self.source = source


PAPER = "arXiv 2602.07928"

PRESETS: dict[str, Preset] = {
    "off": Preset("plain Euler, with the energy recorded", "identity: bit-equal to FlowMatchEulerDiscreteScheduler"),
    "balanced": Preset(
        "less memorisation at no loss of quality",
        f"{PAPER}, CelebA 32x32, Euler 100: reported FID 16.68 -> 14.35, F_mem 37.34 -> 31.22 %",
        alpha_0=0.01,
        beta_0=0.01,
    ),
    "quality": Preset(
        "fidelity of large class-conditional models",
        f"{PAPER}, ImageNet-256: reported FID 11.70 -> 11.59, CLIP score 24.11 -> 24.34",
        alpha_0=0.05,
    ),
    "landing": Preset(
        "the paper's strongest reduction of memorisation, which leaves residual noise",
        f"{PAPER}, CelebA 32x32, Euler 100: reported F_mem 37.34 -> 19.36 %, FID 16.68 -> 86.56",
        beta_0=0.02,
    ),
    "anti_memorization": Preset(
        "less memorisation without residual noise, with fewer network calls",
        "ours, benchmarks/frontier.py, Fashion-MNIST, 100 steps, models that memorised 40 and 77 %: F_mem 39.6 -> 20.2 and "
        "76.9 -> 53.6 %, Frechet distance 19.51 -> 22.55 and 16.90 -> 17.93, both lower than with beta_0 = 0.02",
        touchdown=0.7,
    ),
}
