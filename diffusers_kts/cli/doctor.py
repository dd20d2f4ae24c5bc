"""``kts doctor``: what KTS and KPE will do in a pipeline."""

from typing import Annotated

import typer

from ..presets import PRESETS
from .shaping import Alpha0, Beta0, EarlySchedule, K, LateSchedule, TauSplit

BALANCED = PRESETS["balanced"]


def doctor(
    model: Annotated[str, typer.Option(help="A pipeline folder, a Hub id, 'memorizing' or 'generalizing'.")],
    steps: Annotated[int | None, typer.Option(help="Steps, instead of the pipeline's default.")] = None,
    dry_run: Annotated[
        bool | None, typer.Option("--dry-run/--no-dry-run", help="Run a few steps; by default if the models are small.")
    ] = None,
    touchdown: Annotated[float | None, typer.Option(help="Flow time of a touchdown.")] = None,
    alpha_0: Alpha0 = BALANCED["alpha_0"],
    beta_0: Beta0 = BALANCED["beta_0"],
    tau_split: TauSplit = BALANCED["tau_split"],
    k: K = BALANCED["k"],
    early_schedule: EarlySchedule = BALANCED["early_schedule"],
    late_schedule: LateSchedule = BALANCED["late_schedule"],
) -> None:
    """Inspect a pipeline: schedulers, the KTS class that fits, its gains, warnings. Exit code 2 if none fits."""
    from diffusers.utils.logging import disable_progress_bar

    from ..doctor import diagnose, load_for_diagnosis

    disable_progress_bar()
    diagnosis = diagnose(
        load_for_diagnosis(model),
        steps,
        dry_run,
        touchdown=touchdown,
        alpha_0=alpha_0,
        beta_0=beta_0,
        tau_split=tau_split,
        k=k,
        early_schedule=early_schedule,
        late_schedule=late_schedule,
    )
    print(diagnosis)
    if not diagnosis.can_shape:
        raise typer.Exit(2)
