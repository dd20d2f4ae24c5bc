"""``kts verify``: is an output of ``kts generate`` whole?"""

from dataclasses import dataclass

import typer

from ..sampling.settings import OUTPUT, Settings, setting
from .options import options_of


@dataclass(frozen=True, kw_only=True)
class VerifySettings(Settings):
    """What `kts verify` looks at."""

    output: str = setting("", "Folder or URL that kts generate wrote to.", flag="")
    quick: bool = setting(False, "Compare sizes only, not contents.", OUTPUT)


@options_of(VerifySettings)
def verify(settings: VerifySettings) -> None:
    """Say what is there, missing and damaged. Exit codes: 0 complete, 3 not complete, 2 no such output."""
    from ..generate.ledger import Ledger
    from ..generate.storage import Store
    from ..generate.verify import inspect_output

    store = Store(settings.output)
    found = inspect_output(store, Ledger(store), contents=not settings.quick)
    for line in found.lines():
        print(line)
    if not found.complete:
        raise typer.Exit(3)
