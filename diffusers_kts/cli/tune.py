"""``kts tune``: the shaping settings that suit a model and a goal."""

from typing import TYPE_CHECKING

import rich
from rich.table import Table

from ..tune.settings import TuneSettings
from .options import options_of

if TYPE_CHECKING:
    from ..tune.job import TuneResult


@options_of(TuneSettings)
def tune(settings: TuneSettings) -> None:
    """Tune the shaping of a model, and say whether the best setting beats plain sampling on fresh samples."""
    import optuna

    from ..tune.job import tune as run

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _print(run(settings))


def _print(result: "TuneResult") -> None:
    report = result.report
    table = Table("setting")
    for objective in report["objectives"]:
        table.add_column(f"{objective['label']} ({objective['direction']})", overflow="fold")
    chosen = report["candidate"] and report["candidate"]["words"]
    for words, row in [("plain", report["plain"]), *((row["words"], row) for row in report["front"])]:
        mark = " (candidate)" if words == chosen else ""
        table.add_row(words + mark, *(f"{value:.4g}" for value in row["values"]))
    rich.print(table)
    print(
        f"{report['settings_tried']} settings tried, {report['settings_drawn_whole']} of them with all "
        f"{report['num_samples']} samples. The table shows plain sampling and the front, on the samples used for tuning."
    )
    for sentence in report["verdict"]:
        print(sentence)
    for note in report["notes"]:
        print(f"Note: {note}")
    print("Written: " + ", ".join(str(path) for path in result.files))
