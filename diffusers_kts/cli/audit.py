"""``kts audit``: memorization of a model, with the controls of KTS."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import rich
import typer
from rich.table import Table

from ..presets import PRESETS
from .shaping import Alpha0, Beta0, EarlySchedule, K, LateSchedule, TauSplit, shaping_settings

if TYPE_CHECKING:
    from ..audit.job import AuditResult

BALANCED = PRESETS["balanced"]


def audit(
    model: Annotated[str, typer.Option(help="'memorizing', 'generalizing', or a pipeline folder.")] = "memorizing",
    training_images: Annotated[
        Path | None, typer.Option(help="Folder of pictures, .npz or .npy; by default training_images.npz beside the model.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the report; a stopped audit goes on there.")] = Path("kts-audit"),
    seed: Annotated[int, typer.Option(help="The noise of sample i depends on (seed, i) alone.")] = 0,
    num_samples: Annotated[int, typer.Option(help="Images per sampler.")] = 1000,
    steps: Annotated[int, typer.Option(help="Euler steps.")] = 100,
    batch_size: Annotated[int, typer.Option(help="Samples drawn at a time.")] = 64,
    guidance_scale: Annotated[float | None, typer.Option(help="By default the pipeline's own.")] = None,
    height: Annotated[int | None, typer.Option(help="Of the images drawn, by default the pipeline's own.")] = None,
    width: Annotated[int | None, typer.Option(help="Of the images drawn, by default the pipeline's own.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Text file, one prompt a line, for a model that needs them.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side to which all images are scaled for comparison.")] = None,
    alpha_0: Alpha0 = BALANCED["alpha_0"],
    beta_0: Beta0 = BALANCED["beta_0"],
    tau_split: TauSplit = BALANCED["tau_split"],
    k: K = BALANCED["k"],
    early_schedule: EarlySchedule = BALANCED["early_schedule"],
    late_schedule: LateSchedule = BALANCED["late_schedule"],
    touchdown: Annotated[float, typer.Option(help="Flow time of the touchdown sampler's last step.")] = 0.7,
    features: Annotated[
        str,
        typer.Option(
            help="For Frechet distance, precision, recall: inception, pixels, auto, module:function, TorchScript or .pt2 file."
        ),
    ] = "auto",
    neighbors: Annotated[str, typer.Option(help="Nearest training images in 'pixels' or in 'features'.")] = "pixels",
    threshold: Annotated[float, typer.Option(help="A sample with d1/d2 below it is memorized.")] = 1 / 3,
    reference_images: Annotated[Path | None, typer.Option(help="Held-out images for quality; else training images.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Throw an earlier audit away.")] = False,
) -> None:
    """Measure memorization: plain, KTS, touchdown and the controls of KTS from the same noises, in one report."""
    from diffusers.utils.logging import disable_progress_bar

    from ..audit.job import AuditSettings, run_audit

    disable_progress_bar()  # of loading
    settings = AuditSettings(
        model=model,
        training_images=training_images,
        output=output,
        seed=seed,
        num_samples=num_samples,
        num_steps=steps,
        batch_size=batch_size,
        guidance_scale=guidance_scale,
        height=height,
        width=width,
        prompts=prompts,
        image_size=image_size,
        shaping=shaping_settings(locals()),
        touchdown=touchdown,
        features=features,
        neighbors=neighbors,
        threshold=threshold,
        reference_images=reference_images,
        device=device,
        dtype=dtype,
        overwrite=overwrite,
    )
    _print(run_audit(settings))


def _print(result: "AuditResult") -> None:
    table = Table("sampler", "calls", "F_mem", "95 %", "vs plain", "p", "Frechet")
    for found in result.findings.values():
        f, change = found.f_mem, found.against_plain
        changed = (f"{100 * change.difference:+.1f}", f"{change.p_value:.2g}") if change else ("", "")
        interval, distance = f"{100 * f.low:.1f}-{100 * f.high:.1f}", f"{found.frechet_distance:.4g}"
        table.add_row(found.heading, str(found.network_calls or ""), f"{f.fraction:.1%}", interval, *changed, distance)
    rich.print(table)
    for sentence in result.verdict:
        print(sentence)
    for note in result.notes:
        print(f"Note: {note}")
    print("Written: " + ", ".join(str(path) for path in result.files))
