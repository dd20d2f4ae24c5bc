"""Loading of any pipeline, those of this package included."""

import os
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from ..files import read_json
from .complete_weights import check_weights


def load_pipeline(path: str | os.PathLike, **kwargs: Any) -> DiffusionPipeline:
    """`DiffusionPipeline.from_pretrained`, which also knows the pipeline class of this package.

    Raises:
        ValueError: a local folder without a readable ``model_index.json``, or whose weights are not complete.
    """
    if Path(path).exists():
        try:
            name = str(read_json(Path(path) / "model_index.json", dict)["_class_name"])
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path} is not a pipeline folder: model_index.json cannot be read ({error}).") from error
        check_weights(Path(path), **kwargs)
        if "ClassConditionalFlowPipeline" in name:  # a name, or a list of a file and a name
            from .pipeline_flow_class_conditional import ClassConditionalFlowPipeline

            return ClassConditionalFlowPipeline.from_pretrained(path, **kwargs)
    return DiffusionPipeline.from_pretrained(path, **kwargs)
