"""The model behind the page. What the page is built from is known at once; the model is loaded when it is first needed.

torch and diffusers take longer to import than the page takes to stand, so the page of an embedded model does without them. Any
other model is loaded at once, since it alone knows its classes, and so is every model on ZeroGPU, which demands it.
"""

import json
import logging
import threading
from typing import TYPE_CHECKING

from ..models import CLASS_CONDITIONAL, GUIDANCE, NAMES, PROMPTS, SHOWN_FIRST, embedded_model
from . import gpu
from .limits import ALL, About

if TYPE_CHECKING:
    import torch

    from .model import SpaceModel

log = logging.getLogger(__name__)


class Unavailable(RuntimeError):
    """The model could not be loaded; the sentence is meant for the visitor."""


class Served:
    """A model by name, see `diffusers_kts.space.model.SpaceModel`.

    Attributes:
        about (`About`): what is known of it.
        loaded (`SpaceModel`, *optional*): the model, once `load` has succeeded.

    Raises:
        ValueError, OSError: as `SpaceModel`, where the model is loaded at once.
    """

    def __init__(self, name: str = SHOWN_FIRST) -> None:
        self.name = name
        self.loaded: SpaceModel | None = None
        self._lock = threading.Lock()
        if name in NAMES and gpu.spaces is None:
            self.about = _embedded(name)
        else:
            from .model import load

            self.loaded = load(name)
            self.about = self.loaded.about

    @property
    def by_class(self) -> bool:
        return bool(self.about.classes)

    @property
    def training(self) -> "torch.Tensor | None":
        """(n, C, H, W) training images, once the model is loaded."""
        return self.loaded.training if self.loaded is not None else None

    def load(self) -> "SpaceModel":
        """The model; the first caller loads it, others wait for that. After a failure the next caller tries again.

        Raises:
            Unavailable: it could not be loaded; the traceback is in the log.
        """
        with self._lock:
            if self.loaded is None:
                try:
                    from .model import load

                    self.loaded = load(self.name)
                except Exception as error:  # anything from a missing package to no memory
                    log.exception("The model %s could not be loaded.", self.name)
                    raise Unavailable(
                        "The model could not be loaded. Press Generate to try again; should that fail, the log says why."
                    ) from error
            return self.loaded


def _embedded(name: str) -> About:
    folder = embedded_model(name)
    index, known = json.loads((folder / "model_index.json").read_text()), (folder / "training_images.npz").exists()
    if name in CLASS_CONDITIONAL:
        classes = (ALL, *index["id2label"].values())
        return About(classes, guidance_scale=1.0 if index["guidance_trained"] else None, knows_training=known)
    prompts = tuple((folder / PROMPTS).read_text().split("\n")[:-1])
    return About((), prompts, GUIDANCE[name], takes_negative_prompt=True, knows_training=known)
