"""The shaping options that several commands share, with the scheduler's names and the meaning given there."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any

import typer

SHAPES = "linear, constant or exponential"

Alpha0 = Annotated[float, typer.Option(help="KTS: strength of the launch.")]
Beta0 = Annotated[float, typer.Option(help="KTS: strength of the landing.")]
TauSplit = Annotated[float, typer.Option(help="KTS: flow time where the landing begins.")]
K = Annotated[float, typer.Option("--k", help="KTS: rate of the exponential shapes.")]
EarlySchedule = Annotated[str, typer.Option(help=f"KTS: {SHAPES}.")]
LateSchedule = Annotated[str, typer.Option(help=f"KTS: {SHAPES}.")]


def shaping_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """The shaping settings among a command's options."""
    from ..gain import Gain

    return {setting.name: options[setting.name] for setting in fields(Gain)}
