"""The folders of repositories: scheduler, model, Space, data set. Each builder fills an empty folder.

``settings.source`` is what a builder starts from, by default what this project ships.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import brief
from ..files import read_json
from ..models import CLASS_CONDITIONAL, NAMES, embedded_model
from .cards import Card, card, write_card
from .one_file import PACKAGE, one_file
from .settings import PublishSettings

MODULE = "diffusers_kts"  # what model_index.json names, and the file where diffusers looks for it
SCHEDULER = "KTSFlowMatchScheduler"
MONITORED = {
    "pipeline": "StableDiffusion3Pipeline",
    "kpe_monitor_flux": "FluxPipeline",
    "kpe_monitor_qwenimage": "QwenImagePipeline",
    "kpe_monitor_wan": "WanPipeline",
    "kpe_monitor_ltx": "LTXPipeline",
}


def build_scheduler(folder: Path, settings: PublishSettings) -> None:
    """Configuration and code of the scheduler, monitors as community pipelines, a modular block, the card."""
    _no_source(settings)
    described = card("scheduler", settings.results)  # first: it may be refused
    _write_scheduler({}, settings, folder / "scheduler")
    for name, pipeline in MONITORED.items():
        (folder / f"{name}.py").write_text(monitor_file(pipeline))
    (folder / "block.py").write_text(
        one_file("pipelines.modular_kts", "KTSBlock: shaped steps and their energy in Modular Diffusers.")
    )
    modular = {"_class_name": "KTSBlock", "auto_map": {"ModularPipelineBlocks": "block.KTSBlock"}}
    (folder / "modular_config.json").write_text(json.dumps(modular, indent=2) + "\n")
    _write_card(described, folder)


def monitor_file(pipeline: str) -> str:
    """A community pipeline: ``pipeline`` of diffusers with its energy recorded."""
    tail = f'''class KPE{pipeline}(KPEMonitorPipeline, {pipeline}):
    """`{pipeline}` with the kinetic path energy of every sample: ``pipe.kpe`` and ``out.kpe`` after a call."""'''
    text = one_file(
        "pipelines.pipeline_kpe_monitor", f"{pipeline} that measures the kinetic path energy of every sample.", tail
    )
    return text.replace(
        "from diffusers import SchedulerMixin\n",
        f"from diffusers import SchedulerMixin\nfrom diffusers import {pipeline}\n",
        1,
    )


def build_model(folder: Path, settings: PublishSettings) -> None:
    """A pipeline folder whose ``model_index.json`` names our scheduler; an embedded model brings its pipeline's code, too.

    A user's folder needs a ``README.md``, and the JSON files of its numbers next to it.
    """
    name = settings.source or NAMES[0]
    origin = embedded_model(name) if name in NAMES else Path(name)
    described = card(name, settings.results) if name in CLASS_CONDITIONAL else None
    try:
        index = read_json(origin / "model_index.json", dict)
        config = read_json(origin / "scheduler" / "scheduler_config.json", dict)
    except ValueError as error:
        raise ValueError(f"source {name!r} is no pipeline folder ({error}); give one, or {', '.join(NAMES)}.") from error
    _copy(origin, folder, settings)
    index["scheduler"] = [MODULE, SCHEDULER]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    _write_scheduler(config, settings, folder / "scheduler")
    if described is not None:
        (folder / "pipeline.py").write_text(
            one_file("pipelines.pipeline_flow_class_conditional", "The pipeline of this model.")
        )
        _write_card(described, folder)


def build_space(folder: Path, settings: PublishSettings) -> None:
    """The Space: its two files, the card, and this package with the models, so that it needs nothing of ours from PyPI."""
    origin = Path(settings.source or "examples/space")
    missing = [name for name in ("app.py", "requirements.txt") if not (origin / name).is_file()]
    if missing:
        raise ValueError(f"{origin / missing[0]} does not exist; give the folder of the Space with --source.")
    for name in ("app.py", "requirements.txt"):
        shutil.copyfile(origin / name, folder / name)
    shutil.copytree(PACKAGE, folder / MODULE, ignore=shutil.ignore_patterns("__pycache__"))
    _write_card(card("space", settings.results), folder)


def build_dataset(folder: Path, settings: PublishSettings) -> None:
    """A finished output of ``kts generate`` with its card, without its private ledger."""
    from .dataset import data_set_card

    if settings.source is None:
        raise ValueError("a data set has no default source; give the output folder of kts generate with --source.")
    text = data_set_card(Path(settings.source))
    _copy(Path(settings.source), folder, settings)
    (folder / "README.md").write_text(text)


BUILDERS: dict[str, Callable[[Path, PublishSettings], None]] = {
    "scheduler": build_scheduler,
    "model": build_model,
    "space": build_space,
    "dataset": build_dataset,
}


def _write_scheduler(config: dict[str, Any], settings: PublishSettings, folder: Path) -> None:
    """The configuration, the code under the name the configuration's owner looks for, and what `AutoModel` reads."""
    from ..schedulers.scheduling_kts_flow_match import KTSFlowMatchScheduler

    assert settings.shaping is not None  # the default is a preset
    try:
        KTSFlowMatchScheduler.from_config(config, **settings.shaping.to_dict()).save_pretrained(folder)
    except Exception as error:  # whatever a foreign configuration makes diffusers raise
        raise ValueError(f"the scheduler of {settings.source} cannot be made ({brief(error)}); give another model.") from error
    (folder / f"{MODULE}.py").write_text(
        one_file("schedulers.scheduling_kts_flow_match", "KTSFlowMatchScheduler: shaped Euler steps for flow matching.")
    )
    auto = {"_class_name": SCHEDULER, "auto_map": {"AutoModel": f"{MODULE}.{SCHEDULER}"}}
    (folder / "config.json").write_text(json.dumps(auto, indent=2) + "\n")


def _write_card(described: Card, folder: Path) -> None:
    write_card(described, folder / "README.md")
    for path in described.sources:
        (folder / "measured").mkdir(exist_ok=True)
        shutil.copyfile(path, folder / "measured" / path.name)


def _no_source(settings: PublishSettings) -> None:
    if settings.source is not None:
        raise ValueError(f"a {settings.kind} is built from the package; leave --source out.")


def _copy(source: Path, folder: Path, settings: PublishSettings) -> None:
    if source.resolve() in settings.output.resolve().parents:
        raise ValueError(f"output {settings.output} lies in the source {source}; give another folder.")
    shutil.copytree(source, folder, dirs_exist_ok=True, symlinks=True, ignore=shutil.ignore_patterns(".kts", "__pycache__"))
