"""The presets of the package as settings of the demo."""

from ..presets import PRESETS
from .limits import Shaping

SHAPING = tuple(Shaping.__dataclass_fields__)


def preset(name: str) -> Shaping:
    settings = {key: value for key, value in PRESETS[name].items() if key in SHAPING}
    return Shaping(**(settings | {"touchdown": settings["touchdown"] or 1.0}))
