"""The command ``kts``: parses, calls, prints. Bad input ends with one sentence and exit code 2, never a traceback."""

import sys
from typing import Annotated, NoReturn

EXTRAS = {"generate": "generate", "verify": "generate", "evaluate": "eval", "space": "space", "tune": "tune"}  # else demo


def _refuse(sentence: object) -> NoReturn:
    print(f"kts: {sentence}", file=sys.stderr)
    sys.exit(2)


def _missing(error: ImportError) -> NoReturn:
    package = (error.name or "a package").partition(".")[0]
    extra = next((EXTRAS[word] for word in sys.argv[1:] if word in EXTRAS), "demo")
    _refuse(f'{package} is missing; install what the command needs: pip install "diffusers-kts[{extra}]"')


try:
    import typer

    from .audit import audit
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
    _missing(error)

HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, context_settings=HELP)


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        print(f"kts {__version__}")
        raise typer.Exit


@app.callback()
def kts(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Kinetic path energy and kinetic trajectory shaping for flow-matching models (arXiv 2602.07928).

    To look: kts demo.

    On your model: kts doctor says what fits, kts audit what it memorizes, kts tune which settings help.

    Then kts generate draws with them, kts verify checks the output, kts evaluate measures it.
    """


for group, commands in {
    "Look": (demo, doctor, space),
    "Choose": (audit, tune),
    "Draw and measure": (generate, verify, evaluate),
    "Convert and share": (convert_sit, publish),
}.items():
    for command in commands:
        app.command(rich_help_panel=group, context_settings=HELP)(command)


def main() -> None:
    try:
        app()
    except ImportError as error:
        _missing(error)
    except (ValueError, TypeError, OSError) as error:
        _refuse(error)


if __name__ == "__main__":
    main()
