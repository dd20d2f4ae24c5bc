"""The command ``kts``: parses, calls, prints. Bad input ends with one sentence and exit code 2, never a traceback."""

import difflib
import sys
from typing import Annotated, Any, NoReturn

from ..errors import install

EXTRAS = {"generate": "generate", "verify": "generate", "evaluate": "eval", "space": "space", "tune": "tune"}  # else demo

LONGEST = 2000  # characters of an error


def _refuse(sentence: object) -> NoReturn:
    print(f"kts: {' '.join(str(sentence).split()):.{LONGEST}}", file=sys.stderr)
    sys.exit(2)


def _missing(error: ImportError) -> NoReturn:
    package = (error.name or "a package").partition(".")[0]
    extra = next((EXTRAS[word] for word in sys.argv[1:] if word in EXTRAS), "demo")
    _refuse(f"{package} is missing; install what the command needs: {install(extra)}")


try:
    import typer

    from ..sampling.settings import RENAMED
    from .audit import audit
    from .convert_sit import convert_sit
    from .demo import demo
    from .doctor import doctor
    from .evaluate import evaluate
    from .fit import fit
    from .generate import generate
    from .publish import publish
    from .space import space
    from .theory import theory
    from .tune import tune
    from .verify import verify
except ImportError as error:
    _missing(error)

HELP = {"help_option_names": ["-h", "--help"]}
UsageError: Any = typer.BadParameter.__mro__[1]  # which typer does not export
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, context_settings=HELP)


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

    1. Look: kts demo.

    2. Choose, on your model: kts doctor says what fits, kts audit what it memorizes, kts tune which settings help,
    kts fit saves network calls.

    3. Draw and measure: kts generate draws with them, kts verify checks the output, kts evaluate measures it.

    4. Share: kts publish.
    """


for group, commands in {
    "Look": (demo, theory, doctor, space),
    "Choose": (audit, tune, fit),
    "Draw and measure": (generate, verify, evaluate),
    "Convert and share": (convert_sit, publish),
}.items():
    for command in commands:
        app.command(rich_help_panel=group, context_settings=HELP)(command)


def _misused(error: Any) -> str:
    """What is wrong with a command line, and where to look."""
    wrong, context = getattr(error, "option_name", None), error.ctx
    sentence = error.format_message().rstrip(".")
    if wrong is not None and context is not None:
        known = [flag for parameter in context.command.params for flag in parameter.opts if flag.startswith("--")]
        renamed = RENAMED.get(wrong.lstrip("-").replace("-", "_"), "").replace("_", "-")
        close = [f"--{renamed}"] if f"--{renamed}" in known else difflib.get_close_matches(wrong, known, n=1)
        sentence = f"there is no option {wrong}" + (f"; did you mean {close[0]}?" if close else "")
    sentence = sentence[0].lower() + sentence[1:]
    return f"{sentence}{'' if sentence.endswith('?') else ';'} see {context.command_path if context else 'kts'} -h."


def main() -> None:
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    try:
        sys.exit(app(prog_name="kts", standalone_mode=False))
    except ImportError as error:
        _missing(error)
    except UsageError as error:
        _refuse(_misused(error))
    except typer.Abort as error:  # as which typer hands on the end of a file
        _refuse(f"it ended too early ({error.__cause__ or 'stopped'}).")
    except (ValueError, TypeError, OSError) as error:
        _refuse(error)


if __name__ == "__main__":
    main()
