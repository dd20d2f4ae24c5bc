"""The command ``kts``: parses, calls, prints. Bad input ends with one sentence and exit code 2, never a traceback."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

from .presets import PRESETS

if TYPE_CHECKING:
    from .demo import DemoResult


def _refuse(sentence: object) -> NoReturn:
    print(f"kts: {sentence}", file=sys.stderr)
    sys.exit(2)


def _lacks(error: ImportError) -> NoReturn:
    package = (error.name or "a package").partition(".")[0]
    _refuse(f'{package} is missing; install what the commands need: pip install "diffusers-kts[demo]"')


try:
    import rich
    import typer
    from rich.table import Table
except ImportError as error:
    _lacks(error)

BALANCED = PRESETS["balanced"]
SHAPES = "linear, constant or exponential"

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _version(wanted: bool) -> None:
    if wanted:
        from . import __version__

        print(f"kts {__version__}")
        raise typer.Exit


@app.callback()
def kts(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Kinetic path energy and kinetic trajectory shaping for flow-matching models (arXiv 2602.07928)."""


@app.command()
def demo(
    model: Annotated[str, typer.Option(help="'memorising', 'generalising', or a pipeline folder.")] = "memorising",
    output: Annotated[Path, typer.Option(help="Folder for pictures and tables.")] = Path("kts-demo"),
    seed: Annotated[int, typer.Option(help="The noise of sample i depends on (seed, i) alone.")] = 0,
    num_samples: Annotated[int, typer.Option(help="Images per sampler.")] = 64,
    steps: Annotated[int, typer.Option(help="Euler steps.")] = 100,
    guidance_scale: Annotated[float, typer.Option(help="Classifier-free guidance; 1 is off.")] = 1.0,
    alpha_0: Annotated[float, typer.Option(help="KTS: strength of the launch.")] = BALANCED["alpha_0"],
    beta_0: Annotated[float, typer.Option(help="KTS: strength of the landing.")] = BALANCED["beta_0"],
    tau_split: Annotated[float, typer.Option(help="KTS: flow time where the landing begins.")] = BALANCED["tau_split"],
    k: Annotated[float, typer.Option("--k", help="KTS: rate of the exponential shapes.")] = BALANCED["k"],
    early_schedule: Annotated[str, typer.Option(help=f"KTS: {SHAPES}.")] = BALANCED["early_schedule"],
    late_schedule: Annotated[str, typer.Option(help=f"KTS: {SHAPES}.")] = BALANCED["late_schedule"],
    touchdown: Annotated[float, typer.Option(help="Flow time of the touchdown sampler's last step.")] = 0.7,
    training_images: Annotated[Path | None, typer.Option(help=".npz with the model's training images.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files of an earlier run.")] = False,
) -> None:
    """Draw the same noises with plain Euler, KTS and touchdown; measure, compare and picture them."""
    from diffusers.utils.logging import disable_progress_bar

    from .demo import DemoSettings, run_demo

    disable_progress_bar()  # of loading, which takes a second
    settings = DemoSettings(
        model=model,
        output=output,
        seed=seed,
        num_samples=num_samples,
        num_steps=steps,
        guidance_scale=guidance_scale,
        shaping={
            "alpha_0": alpha_0,
            "beta_0": beta_0,
            "tau_split": tau_split,
            "k": k,
            "early_schedule": early_schedule,
            "late_schedule": late_schedule,
        },
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


def main() -> None:
    try:
        app()
    except ImportError as error:
        _lacks(error)
    except (ValueError, TypeError, OSError) as error:
        _refuse(error)


if __name__ == "__main__":
    main()
