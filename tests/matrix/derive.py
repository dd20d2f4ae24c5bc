"""The list of flow-matching pipelines, read from the source of the diffusers that is installed, without importing it.

A pipeline counts as flow matching by the annotation of its ``scheduler`` argument; a modular one by the scheduler its blocks
ask for. `FLOW` are schedulers for flow models alone, `EITHER` serve noise-prediction models as well: a class that names only
such ones is listed too, unless `NOT_FLOW` says what it is. So a new pipeline is listed as soon as diffusers has it.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FLOW = re.compile(r"Flow\w*Scheduler|Helios\w*Scheduler|LTXEulerAncestralRFScheduler|MiniMaxH3Scheduler|SCMScheduler")
EITHER = {"UniPCMultistepScheduler", "DPMSolverMultistepScheduler", "SchedulerMixin"}
NOT_FLOW = {
    "LEditsPPPipelineStableDiffusion": "inverts Stable Diffusion, which predicts noise",
    "LEditsPPPipelineStableDiffusionXL": "inverts Stable Diffusion XL, which predicts noise",
    "PixArtAlphaPipeline": "predicts noise",
}

# a parser takes ten times as long as these, and every run of the tests reads 300 files
CLASS = re.compile(r"^class (\w+)\(([^)]*)\):(.*?)(?=^\S|\Z)", re.M | re.S)
INIT = re.compile(r"^    def __init__\((.*?)\)[^()]*:\n", re.M | re.S)
ARGUMENT = re.compile(r"\bscheduler\s*:\s*([^=,]+)")
COMPONENT = re.compile(r'ComponentSpec\(\s*"scheduler",\s*(\w+)')


@dataclass(frozen=True)
class FlowPipeline:
    """One class: its name, the folder of diffusers it is in, the scheduler it asks for, and whether it is modular."""

    name: str
    family: str
    scheduler: str
    modular: bool = False


@functools.cache
def flow_pipelines() -> dict[str, FlowPipeline]:
    """Every flow pipeline class of the installed diffusers by name; deprecated folders are left out."""
    spec = importlib.util.find_spec("diffusers")
    assert spec is not None and spec.origin is not None
    root = Path(spec.origin).parent
    found = [*_standard(root / "pipelines"), *_modular(root / "modular_pipelines")]
    return {p.name: p for p in sorted(found, key=lambda p: (p.modular, p.family, p.name))}


def _classes(folder: Path, pattern: str) -> Iterator[tuple[str, str, list[str], str]]:
    """Family, name, names of the bases, and body of every class."""
    for path in sorted(folder.glob(pattern)):
        family = path.relative_to(folder).parts[0]
        if family != "deprecated":
            for name, bases, body in CLASS.findall(path.read_text("utf-8")):
                yield family, name, re.findall(r"\w+(?=,|\s*$)", bases), body


def _is_flow(names: list[str]) -> bool:
    return any(FLOW.fullmatch(name) for name in names) or (bool(names) and set(names) <= EITHER)


def _standard(folder: Path) -> Iterator[FlowPipeline]:
    classes = {name: (family, bases, body) for family, name, bases, body in _classes(folder, "*/**/*.py")}

    def annotation(name: str) -> str:
        """Of the scheduler argument of a class, its own or inherited."""
        _, bases, body = classes.get(name, ("", [], ""))
        if init := INIT.search(body):
            argument = ARGUMENT.search(init[1])
            return argument[1] if argument else ""
        return next((found for base in bases if (found := annotation(base))), "")

    for name, (family, _, _) in classes.items():
        names = re.findall(r"\w*Scheduler\w*", annotation(name))
        if _is_flow(names) and name not in NOT_FLOW:
            yield FlowPipeline(name, family, " or ".join(names))


def _modular(folder: Path) -> Iterator[FlowPipeline]:
    pipelines = {"ModularPipeline"}
    for family, name, bases, _ in _classes(folder, "*/modular_pipeline.py"):
        if not pipelines.isdisjoint(bases):
            pipelines.add(name)
            sources = [path.read_text("utf-8") for path in (folder / family).glob("*.py")]
            asked = sorted({scheduler for source in sources for scheduler in COMPONENT.findall(source)})
            if _is_flow(asked):
                yield FlowPipeline(name, family, " or ".join(asked), modular=True)
