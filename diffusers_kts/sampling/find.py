"""Where a model is, what it is, and the images that it was trained on."""

import hashlib
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from ..errors import brief
from ..files import read_json
from ..models import NAMES, REMEDY, check_model_name, embedded_model
from ..pipelines.loading import load_pipeline, pipeline_class

LIGHT_BYTES = 200_000_000
SHOWN = 3  # missing weights named
IMAGES = "training_images.npz"


def find_model(name: str) -> Path:
    """The folder of a pipeline: embedded, local, or of the Hub, whose files are downloaded unless they are cached.

    Raises:
        ValueError: there is none.
    """
    check_model_name(name)
    if name in NAMES:
        return embedded_model(name)
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(DiffusionPipeline.download(name))
    except Exception as error:  # whatever the network or the Hub make it raise
        raise ValueError(f"model {name!r} is no folder and cannot be downloaded ({brief(error)}); {REMEDY}.") from error


def load_model(folder: Path | str, name: str, **options: Any) -> Any:
    """The pipeline of a folder, with all its weights; ``name`` is what the user calls it.

    Raises:
        ValueError: it cannot be loaded, or weights are missing.
    """
    try:
        pipe: Any = load_pipeline(folder, **options)
    except Exception as error:  # whatever a damaged folder makes diffusers, safetensors or torch raise
        raise ValueError(f"model {name!r} cannot be loaded ({brief(error)}); {REMEDY}.") from error
    missing = [
        f"{part}.{weight}"
        for part, module in pipe.components.items()
        if isinstance(module, torch.nn.Module)
        for weight, value in chain(module.named_parameters(), module.named_buffers())
        if value.is_meta
    ]
    if missing:
        named = ", ".join(missing[:SHOWN])
        raise ValueError(f"model {name!r} is incomplete: {len(missing)} weights are missing ({named} ...); download it again.")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_schedulers(name: str) -> Any:
    """The pipeline of a name; of large models only the schedulers are loaded.

    Raises:
        ValueError: there is no readable pipeline, or a light one is incomplete.
    """
    check_model_name(name)
    folder = embedded_model(name) if name in NAMES else Path(name)
    if folder.is_dir() and sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < LIGHT_BYTES:
        return load_model(folder, name)
    try:
        config = DiffusionPipeline.load_config(name)
    except Exception as error:  # whatever a damaged folder, the network or the Hub make it raise
        raise ValueError(f"model {name!r} cannot be read ({brief(error)}); {REMEDY}.") from error
    parts = {part: kinds for part, kinds in config.items() if part[0] != "_" and isinstance(kinds, list | tuple)}
    absent = {part: None for part, (_, kind) in parts.items() if kind is not None and "Scheduler" not in kind}
    return load_model(name, name, **absent)


def num_classes(folder: Path) -> int | None:
    """Number of classes of a class-conditional pipeline of this package; None for one that takes prompts.

    Raises:
        ValueError: no pipeline folder.
    """
    try:
        if pipeline_class(folder) != "ClassConditionalFlowPipeline":
            return None
        found = read_json(folder / "transformer" / "config.json", dict)["num_embeds_ada_norm"]
        if not isinstance(found, int) or found < 1:
            raise ValueError(f"transformer/config.json has {found!r:.60} classes")
        return found
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"model {str(folder)!r} cannot be loaded ({brief(error)}); {REMEDY}.") from error


def fingerprint(folder: Path) -> str:
    """SHA-256 over the names and contents of ``model_index.json`` and of every file of the components."""
    index = read_json(folder / "model_index.json", dict)
    components = [name for name, value in index.items() if not name.startswith("_") and isinstance(value, list)]
    return files_hash(folder, ["model_index.json", *components])


def files_hash(folder: Path, names: Iterable[str]) -> str:
    """SHA-256 over the names and contents of files in a folder, and of all files in its folders of these names."""
    paths = [path for name in names for path in (folder / name, *(folder / name).rglob("*"))]
    digest = hashlib.sha256()
    for path in sorted(path for path in paths if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()} {file_hash(path)}\n".encode())
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    blob = path.resolve()
    if blob.parent.name == "blobs" and len(blob.name) == 64:  # the Hub's cache names large files by their SHA-256
        return blob.name
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_images(folder: Path, given: Path | None, option: str, output: Path) -> Path:
    """Where real images are: those ``given`` with ``option``, else the training images next to the model.

    Raises:
        ValueError: nowhere, or in the folder that the job writes to.
    """
    path = given or folder / IMAGES
    if not path.exists():
        raise ValueError(f"there are no images at {path}; give a file or folder with {option}.")
    if path.resolve() == output.resolve() or output.resolve() in path.resolve().parents:
        raise ValueError(f"the images at {path} are in the output folder {output}; give another --output.")
    return path
