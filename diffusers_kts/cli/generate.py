"""``kts generate``: the batch job. Its options are the fields of `GenerateSettings`."""

import dataclasses
import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from ..generate.settings import HINTS, GenerateSettings


def generate(**options: Any) -> None:
    """Generate images (or videos) of many prompts, each with its kinetic path energy; what is missing is what is drawn.

    The same command goes on after a crash, and under `accelerate launch -m diffusers_kts.generate` on any number of GPUs and
    machines it gives the same files. Exit codes: 0 complete; 2 refused before anything was written, or the upload failed;
    3 not complete (blocks that failed are named). accelerate's launcher turns any code but 0 into 1.
    """
    from accelerate import PartialState
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from ..generate.job import run_generate

    diffusers_logging.disable_progress_bar()  # of loading
    transformers_logging.disable_progress_bar()
    config = options.pop("config")
    settings = GenerateSettings.load(config, **{name: value for name, value in options.items() if value is not None})
    result = run_generate(settings)
    PartialState().destroy_process_group()  # whose threads, left running, now and then abort the process at its end
    if not result.main:
        return  # with code 0, whatever happened: a launcher would end the other ranks
    for line in [*result.plan, *result.lines]:
        print(line)
    if not result.complete:
        raise typer.Exit(3)


def _parameters() -> list[inspect.Parameter]:
    config = Annotated[Path | None, typer.Option(help="YAML file with any of these settings; options given here go first.")]
    parameters = [inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=config)]
    for field in dataclasses.fields(GenerateSettings):
        parse = field.metadata["parse"]
        kind = HINTS[field.name] if parse is None else str
        shown = field.default if isinstance(field.default, (str, int, float)) and field.default not in ("", False) else None
        text = field.metadata["help"] + ("" if shown is None else f" Default: {shown}.")
        flag = f"--{field.name.replace('_', '-')}"
        option = typer.Option(f"{flag}/--no-{flag[2:]}" if kind is bool else flag, help=text, show_default=False)
        annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
        parameters.append(inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    return parameters


generate.__signature__ = inspect.Signature(_parameters())  # type: ignore[attr-defined]
generate.__annotations__ = {parameter.name: parameter.annotation for parameter in _parameters()}
