"""``kts tune``: the shaping settings that suit a model and a goal."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import rich
import typer
from rich.table import Table

if TYPE_CHECKING:
    from ..tune.job import TuneResult


def tune(
    model: Annotated[str, typer.Option(help="'memorizing', 'generalizing', a pipeline folder, or a Hub id.")] = "memorizing",
    output: Annotated[Path, typer.Option(help="Folder of the study, which goes on there.")] = Path("kts-tune"),
    objective: Annotated[
        list[str],
        typer.Option(
            help="Up to three, the most important first: frechet, f_mem, settling, calls, energy, or a function "
            "score(images, trace) as module:function or file.py:function."
        ),
    ] = ["frechet", "f_mem"],  # noqa: B006 (typer)
    direction: Annotated[list[str], typer.Option(help="OBJECTIVE=minimize or OBJECTIVE=maximize.")] = [],  # noqa: B006
    fix: Annotated[list[str], typer.Option(help="SETTING=VALUE stays as it is, such as beta_0=0 or touchdown=none.")] = [],  # noqa: B006
    range_: Annotated[
        list[str],
        typer.Option("--range", help="SETTING=LOW:HIGH, such as alpha_0=0:0.05, or late_schedule=linear,exponential."),
    ] = [],  # noqa: B006
    trials: Annotated[int, typer.Option(help="Settings to try, by all processes together.")] = 40,
    num_samples: Annotated[int, typer.Option(help="Of each setting that goes all the way; a multiple of 16.")] = 256,
    fresh_samples: Annotated[int, typer.Option(help="Of the candidate and of plain sampling, in the end.")] = 512,
    tolerance: Annotated[float, typer.Option(help="Share of plain's first objective that may be lost.")] = 0.0,
    seed: Annotated[int, typer.Option(help="The noise of sample i depends on (seed, i) alone.")] = 0,
    steps: Annotated[int | None, typer.Option(help="By default the pipeline's own.")] = None,
    batch_size: Annotated[int, typer.Option(help="Samples drawn at a time, at most a sixteenth of --num-samples.")] = 32,
    prompts: Annotated[str | None, typer.Option(help="Prompts: .txt (one a line), .jsonl, .csv or .parquet.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="By default the pipeline's own.")] = None,
    height: Annotated[int | None, typer.Option(help="By default the pipeline's own.")] = None,
    width: Annotated[int | None, typer.Option(help="By default the pipeline's own.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    features: Annotated[
        str, typer.Option(help="For frechet: inception, pixels, auto, module:function, TorchScript or .pt2 file.")
    ] = "auto",
    reference_images: Annotated[Path | None, typer.Option(help="For frechet: held-out images; else training images.")] = None,
    training_images: Annotated[
        Path | None, typer.Option(help="For f_mem; by default training_images.npz beside the model.")
    ] = None,
) -> None:
    """Tune the shaping of a model, and say whether the best setting beats plain sampling on fresh samples."""
    import optuna
    from diffusers.utils.logging import disable_progress_bar

    from ..tune.job import TuneSettings
    from ..tune.job import tune as run

    disable_progress_bar()  # of loading
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    options = {name: value for name, value in locals().items() if name in TuneSettings.__dataclass_fields__}
    settings = TuneSettings(
        **options,
        objectives=objective,
        directions=dict(_named(text) for text in direction),
        fixed={name: _value(value) for name, value in map(_named, fix)},
        ranges={name: _range(value) for name, value in map(_named, range_)},
    )
    _print(run(settings))


def _named(text: str) -> tuple[str, str]:
    name, sign, value = text.rpartition("=")
    if not sign:
        raise ValueError(f"{text!r} names no value; give NAME=VALUE.")
    return name, value


def _value(text: str) -> Any:
    """A number, None for "none", else the text."""
    try:
        return None if text.lower() == "none" else json.loads(text) if text[:1] != "." else float(text)
    except ValueError:
        return text


def _range(text: str) -> list[Any]:
    return [_value(part) for part in text.split(":" if ":" in text else ",")]


def _print(result: "TuneResult") -> None:
    report = result.report
    table = Table("setting")
    for objective in report["objectives"]:
        table.add_column(f"{objective['label']} ({objective['direction']})", overflow="fold")
    chosen = report["candidate"] and report["candidate"]["words"]
    for words, row in [("plain", report["plain"]), *((row["words"], row) for row in report["front"])]:
        mark = " (candidate)" if words == chosen else ""
        table.add_row(words + mark, *(f"{value:.4g}" for value in row["values"]))
    rich.print(table)
    print(
        f"{report['settings_tried']} settings tried, {report['settings_drawn_whole']} of them with all "
        f"{report['num_samples']} samples. The table shows plain sampling and the front, on the samples used for tuning."
    )
    for sentence in report["verdict"]:
        print(sentence)
    for note in report["notes"]:
        print(f"Note: {note}")
    print("Written: " + ", ".join(str(path) for path in result.files))
