"""``kts space``: the demo in the browser."""

from typing import Annotated

import typer

from ..models import NAMES, SHOWN_FIRST


def space(
    model: Annotated[
        str, typer.Option(envvar="KTS_MODEL", help=f"Pipeline folder, Hub id, or one of {', '.join(NAMES)}.")
    ] = SHOWN_FIRST,
    host: Annotated[str, typer.Option(help="Address to serve on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860,
) -> None:
    """Open the demo: plain and shaped images of the same noise, their energies and nearest training images."""
    import signal
    import sys

    from ..space.app import build, launch_options

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the temporary folder goes, as after Ctrl+C
    page = build(model)
    page.queue(max_size=32).launch(server_name=host, server_port=port or None, **launch_options())
