"""Loading of any pipeline, those of this package included."""

import os
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from ..files import read_json
from .complete_weights import check_weights


def pipeline_class(folder: Path) -> str:
    """The name of the pipeline class of a saved pipeline.

    Raises:
        ValueError: ``model_index.json`` is missing, cannot be read, or names none.
    """
    if not (folder / "model_index.json").exists():
        raise ValueError("it is no pipeline folder: model_index.json is missing")
    name = read_json(folder / "model_index.json", dict).get("_class_name")
    if isinstance(name, list):  # the file with the code, and the name
        name = name[-1] if name else None
    if not isinstance(name, str):
        raise ValueError(f"model_index.json has the class name {name!r:.60}")
    return name


def load_pipeline(path: str | os.PathLike, **kwargs: Any) -> DiffusionPipeline:
    """`DiffusionPipeline.from_pretrained`, which also knows the pipeline class of this package.

    Raises:
        ValueError: a local folder without a readable ``model_index.json``, or whose weights are not complete.
    """
    if not Path(path).exists():
        return DiffusionPipeline.from_pretrained(path, **kwargs)
    name = pipeline_class(Path(path))
    check_weights(Path(path), **kwargs)
    if name != "ClassConditionalFlowPipeline":
        return DiffusionPipeline.from_pretrained(path, **kwargs)
    from .pipeline_flow_class_conditional import ClassConditionalFlowPipeline

    return ClassConditionalFlowPipeline.from_pretrained(path, **kwargs)
