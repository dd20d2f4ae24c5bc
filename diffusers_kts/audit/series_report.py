"""``report.html`` of an audit of checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..page import png, render, svg
from ..plotting import plot_samples
from .copies import copy_rows
from .figures import plot_steps
from .measures import Findings
from .report import copies_section, duplicates_section, findings_row, reproduced_section, said_of_the_audit
from .training import TrainingImages

TEMPLATE = Path(__file__).with_name("series.html")
SHOWN = 12  # samples of a checkpoint
MOST_SHOWN = 6  # checkpoints


def write_series_report(
    path: Path, found: Mapping[str, Findings], steps: Mapping[str, int], report: Mapping[str, Any], training: TrainingImages
) -> None:
    """Write the page: ``report`` is what goes into ``report.json``."""
    settings, worst = report["audit"]["settings"], found[report["most_reproduced_by"]]
    names = [*found]
    if len(names) > MOST_SHOWN:
        names = [names[round(i * (len(names) - 1) / (MOST_SHOWN - 1))] for i in range(MOST_SHOWN)]
    samples = plot_samples(
        {name: found[name].images[:SHOWN] for name in names},
        {name: found[name].memorization.is_memorized[:SHOWN] for name in names},
        columns=4,
    )
    html = render(
        TEMPLATE,
        **said_of_the_audit(report),
        model=report["model"],
        rows=[
            findings_row(name, f) | {"chosen": name == report["last_below"], "copies": copy_rows(f.copies or {})}
            for name, f in found.items()
        ],
        duplicates=duplicates_section(training),
        copies=copies_section(worst, f"of {worst.heading}"),
        reproduced=reproduced_section(worst, report["most_reproduced"], training, f"of {worst.heading}"),
        figures={
            "steps": svg(plot_steps(found, steps, report["limit"], report["last_below"])),
            "samples": png(samples, "The same noises by each checkpoint"),
        },
        shown=min(SHOWN, settings["num_samples"]),
    )
    path.write_text(html, encoding="utf-8")
