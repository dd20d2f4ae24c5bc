"""Write ``docs/reference/cli.md``, the reference of the command ``kts``, from the commands themselves.

python tools/cli_reference.py
"""

from pathlib import Path

import typer
from typer.cli import get_docs_for_click

from diffusers_kts.cli.app import app

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "cli.md"


def main() -> None:
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="kts", title="Command line")
    PAGE.write_text(text.replace("\n**Usage**", "\n\n**Usage**"), encoding="utf-8")


if __name__ == "__main__":
    main()
