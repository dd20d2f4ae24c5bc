"""``kts space``: the demo in the browser."""

import os
from dataclasses import dataclass

from ..models import NAMES, SHOWN_FIRST
from ..sampling.settings import OUTPUT, SamplingSettings, Settings, inherited, setting
from .options import options_of


@dataclass(frozen=True, kw_only=True)
class SpaceSettings(Settings):
    """What `kts space` serves, and where."""

    model: str = inherited(
        SamplingSettings,
        "model",
        "",
        help=f"Pipeline folder, Hub id, or an embedded model: {', '.join(NAMES)}. Default: KTS_MODEL, else {SHOWN_FIRST}.",
    )
    host: str = setting("127.0.0.1", "Address to serve on; 0.0.0.0 lets other machines in.", OUTPUT)
    port: int = setting(7860, "0 takes a free one.", OUTPUT, least=0, most=65535)


@options_of(SpaceSettings)
def space(settings: SpaceSettings) -> None:
    """Open the demo: plain and shaped images of the same noise, their energies and nearest training images."""
    import signal
    import sys

    from ..space.app import build, launch_options

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the temporary folder goes, as after Ctrl+C
    page = build(settings.model or os.environ.get("KTS_MODEL", SHOWN_FIRST))
    page.queue(max_size=32).launch(server_name=settings.host, server_port=settings.port or None, **launch_options())
