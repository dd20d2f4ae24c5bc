"""``kts demo``: the main job."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import rich
import typer
from rich.table import Table

from ..presets import PRESETS
from .shaping import Alpha0, Beta0, EarlySchedule, K, LateSchedule, TauSplit, shaping_settings

if TYPE_CHECKING:
    from ..demo import DemoResult

BALANCED = PRESETS["balanced"]


def demo(
    model: Annotated[str, typer.Option(help="'memorizing', 'generalizing', or a pipeline folder.")] = "memorizing",
    output: Annotated[Path, typer.Option(help="Folder for pictures and tables.")] = Path("kts-demo"),
    seed: Annotated[int, typer.Option(help="The noise of sample i depends on (seed, i) alone.")] = 0,
    num_samples: Annotated[int, typer.Option(help="Images per sampler.")] = 64,
    steps: Annotated[int, typer.Option(help="Euler steps.")] = 100,
    guidance_scale: Annotated[float, typer.Option(help="Classifier-free guidance; 1 is off.")] = 1.0,
    alpha_0: Alpha0 = BALANCED["alpha_0"],
    beta_0: Beta0 = BALANCED["beta_0"],
    tau_split: TauSplit = BALANCED["tau_split"],
    k: K = BALANCED["k"],
    early_schedule: EarlySchedule = BALANCED["early_schedule"],
    late_schedule: LateSchedule = BALANCED["late_schedule"],
    touchdown: Annotated[float, typer.Option(help="Flow time of the touchdown sampler's last step.")] = 0.7,
    training_images: Annotated[Path | None, typer.Option(help=".npz with the model's training images.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files of an earlier run.")] = False,
) -> None:
    """Draw the same noises with plain Euler, KTS and touchdown; measure, compare and picture them."""
    from diffusers.utils.logging import disable_progress_bar

    from ..demo import DemoSettings, run_demo

    disable_progress_bar()  # of loading, which takes a second
    settings = DemoSettings(
        model=model,
        output=output,
        seed=seed,
        num_samples=num_samples,
        num_steps=steps,
        guidance_scale=guidance_scale,
        shaping=shaping_settings(locals()),
        touchdown=touchdown,
        training_images=training_images,
        overwrite=overwrite,
    )
    _report(run_demo(settings))


def _report(result: "DemoResult") -> None:
    table = Table("sampler", "calls", "energy", "early", "late", "F_mem", "95 %", "s")
    for sampler in result.samplers.values():
        energy, f_mem = sampler.trace.path_energy.per_dim, ("unknown", "")
        if sampler.f_mem is not None:
            interval = f"{100 * sampler.f_mem.low:.0f}-{100 * sampler.f_mem.high:.0f}"
            f_mem = (f"{sampler.f_mem.fraction:.1%}", interval)
        means = [f"{part.nanmean():.4f}" for part in (energy.total, energy.early, energy.late)]
        table.add_row(sampler.heading, str(sampler.trace.num_steps), *means, *f_mem, f"{sampler.seconds:.1f}")
    rich.print(table)
    print("Energy: path energy per dimension, mean over samples. F_mem: share with d1/d2 < 1/3 (L2 in pixels).")
    for note in result.notes:
        print(f"Note: {note}.")
    print("Written: " + ", ".join(str(path) for path in result.files))
