"""``kts generate``: the batch job."""

import typer

from ..generate.settings import GenerateSettings
from .options import options_of


@options_of(GenerateSettings, config=True)
def generate(settings: GenerateSettings) -> None:
    """Generate images (or videos) of many prompts, each with its kinetic path energy; only what is missing is drawn.

    The same command resumes after a crash, and under `accelerate launch -m diffusers_kts.generate` on any number of GPUs and
    machines it gives the same files. Exit codes: 0 complete; 2 refused before anything was written, or the upload failed;
    3 not complete (blocks that failed are named). accelerate's launcher turns any code but 0 into 1.
    """
    from accelerate import PartialState

    from ..generate.job import run_generate

    result = run_generate(settings)
    PartialState().destroy_process_group()  # whose threads, left running, now and then abort the process at its end
    if not result.main:
        return  # with code 0, whatever happened: a launcher would end the other ranks
    for line in [*result.plan, *result.lines]:
        print(line)
    if not result.complete:
        raise typer.Exit(3)
