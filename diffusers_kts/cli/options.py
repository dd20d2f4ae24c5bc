"""Options of a command, made from the settings class of its job."""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..sampling.settings import (
    DETECTOR,
    DISTRIBUTED,
    IMAGES,
    KTS,
    MEASURES,
    MODEL,
    NETWORKS,
    OUTPUT,
    PROMPTS,
    SAMPLING,
    SELECTION,
    Settings,
    types_of,
)

# the order of the groups in a command's help
ORDER = (MODEL, PROMPTS, SAMPLING, KTS, IMAGES, MEASURES, NETWORKS, SELECTION, DETECTOR, OUTPUT, DISTRIBUTED)
REST = "more"  # of a list of paths, behind the first
Command = Callable[[Any], None]


def options_of(settings: type[Settings], config: bool = False) -> Callable[[Command], Callable[..., None]]:
    """Turn a function of the settings into a command whose options are their fields.

    Args:
        settings (`type`): a settings class.
        config (`bool`): whether ``--config`` reads settings from a YAML file.
    """
    parameters = [_parameter(settings, field, config) for field in dataclasses.fields(settings)]
    parameters.sort(key=lambda parameter: ORDER.index(settings.__dataclass_fields__[parameter.name].metadata["group"]))
    lists = [field.name for field in dataclasses.fields(settings) if typing.get_origin(field.metadata["kind"]) is list]
    if lists:  # `--checkpoints runs/*`, of which a shell makes several words
        rest = Annotated[list[Path] | None, typer.Argument(hidden=True)]
        parameters.append(inspect.Parameter(REST, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=rest))
    if config:
        option = typer.Option(help="YAML file with any of these settings; options given here come first.", show_default=False)
        annotation = Annotated[Path | None, option]
        parameters.insert(0, inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))

    def make(command: Command) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**options: Any) -> None:
            given = {name: value for name, value in options.items() if value is not None and value != []}
            quiet()
            if more := given.pop(REST, None):
                if not (first := next((name for name in lists if name in given), None)):
                    raise ValueError(f"{more[0]} belongs to no option; put --{lists[0]} before it, or leave it out.")
                given[first] = [*given[first], *more]
            command(settings.load(given.pop("config", None), **given))

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return make


def quiet() -> None:
    """No progress bars of loading."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def _parameter(settings: type[Settings], field: dataclasses.Field, config: bool) -> inspect.Parameter:
    about = field.metadata
    flag = f"--{field.name.replace('_', '-')}" if about["flag"] is None else about["flag"]
    kind: Any = about["kind"] or types_of(settings)[field.name]
    if kind in (bool, bool | None) and (config or field.default is not False):  # there is something to switch off
        flag = f"{flag}/--no-{flag[2:]}"
    if not flag:
        argument = typer.Argument(help=_help(field), show_default=False)
        annotation = Annotated[kind, argument]  # type: ignore[valid-type]
        return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation)
    option = typer.Option(flag, help=_help(field), show_default=False, rich_help_panel=about["group"], hidden=about["hidden"])
    if type(None) not in typing.get_args(kind):
        kind = kind | None
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])


def _help(field: dataclasses.Field) -> str:
    """What the setting means, its limits and its default."""
    about, default = field.metadata, field.default
    meaning, _, said = about["help"].partition(" Default: ")
    words = [meaning]
    if about["choices"]:
        words.append(f"Choose from {', '.join(about['choices'])}.")
    for limit in ("least", "most"):
        if about[limit] is not None:
            words.append(f"At {limit} {about[limit]}.")
    if isinstance(default, tuple):
        default = ", ".join(map(str, default))
    if said:
        words.append(f"Default: {said}")
    elif isinstance(default, (str, int, float, Path)) and not (default == "" or default is False or about["flag"] == ""):
        words.append(f"Default: {default:.4g}." if isinstance(default, float) else f"Default: {default}.")
    return " ".join(words)
