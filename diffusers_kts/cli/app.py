"""The command ``kts``: parses, calls, prints. Bad input ends with one sentence and exit code 2, never a traceback."""

import sys
from typing import Annotated, NoReturn


def _refuse(sentence: object) -> NoReturn:
    print(f"kts: {sentence}", file=sys.stderr)
    sys.exit(2)


def _lacks(error: ImportError) -> NoReturn:
    package = (error.name or "a package").partition(".")[0]
    _refuse(f'{package} is missing; install what the commands need: pip install "diffusers-kts[demo,generate,space,tune]"')


try:
    import typer

    from .audit import audit
    from .card import card
    from .convert_sit import convert_sit
    from .demo import demo
    from .doctor import doctor
    from .evaluate import evaluate
    from .generate import generate
    from .publish import publish
    from .space import space
    from .tune import tune
    from .verify import verify
except ImportError as error:
    _lacks(error)

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        print(f"kts {__version__}")
        raise typer.Exit


@app.callback()
def kts(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Kinetic path energy and kinetic trajectory shaping for flow-matching models (arXiv 2602.07928)."""


app.command()(demo)
app.command()(doctor)
app.command()(audit)
app.command()(generate)
app.command()(evaluate)
app.command()(card)
app.command()(convert_sit)
app.command()(publish)
app.command()(space)
app.command()(tune)
app.command()(verify)


def main() -> None:
    try:
        app()
    except ImportError as error:
        _lacks(error)
    except (ValueError, TypeError, OSError) as error:
        _refuse(error)


if __name__ == "__main__":
    main()
