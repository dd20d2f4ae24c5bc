"""``kts verify``: is an output of ``kts generate`` whole?"""

from typing import Annotated

import typer


def verify(
    output: Annotated[str, typer.Argument(help="The folder or URL that was --output.")],
    quick: Annotated[bool, typer.Option("--quick", help="Compare sizes only, not contents.")] = False,
) -> None:
    """Say what is there, missing and damaged. Exit codes: 0 complete, 3 not complete, 2 no such output."""
    from ..generate.ledger import Ledger
    from ..generate.storage import Store
    from ..generate.verify import inspect_output

    store = Store(output)
    found = inspect_output(store, Ledger(store), contents=not quick)
    for line in found.lines():
        print(line)
    if not found.complete:
        raise typer.Exit(3)
