"""``report.html`` of an audit: one file that opens offline, with its pictures inside."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup
from matplotlib.figure import Figure

from ..kpe.plot import plot_power
from ..memorization.copying import ALPHA, NEAREST
from ..memorization.fraction import FALSE_ALARMS
from ..page import png, render, svg
from ..plotting import plot_neighbors, plot_samples
from .copies import UNKNOWN, copy_rows
from .figures import plot_energies, plot_groups, plot_pairs, plot_reproduced, plot_shares
from .measures import STATISTICS, Findings, deciles
from .sampling import CONTROLS
from .store import CHECKPOINTS
from .training import MOST_COMPARED, TrainingImages

TEMPLATE, DUPLICATES, COPIES, REPRODUCED = (
    Path(__file__).with_name(f"{name}.html") for name in ("report", "duplicates", "copies", "reproduced")
)
PAIRS, LISTED = 8, 50  # duplicates shown, and listed
SHOWN = 24
NEIGHBOR_ROWS = 8
MAIN = ("euler", "kts", "touchdown")
CONTROLS_IN_WORDS = {
    "even": "KTS's net displacement as a constant gain",
    "noise": "the plain sample with noise as strong as KTS changed it",
    "finished": "KTS moved on by its missing displacement",
}


def write_report(
    path: Path, model: str, found: Mapping[str, Findings], report: Mapping[str, Any], training: TrainingImages
) -> None:
    """Write the page: ``report`` is what goes into ``report.json``."""
    plain, settings = found["euler"], report["audit"]["settings"]
    labels = {name: findings.heading for name, findings in found.items()}
    memorized = int(plain.memorization.is_memorized.sum())
    html = render(
        TEMPLATE,
        **said_of_the_audit(report),
        model=model,
        manifold_k=plain.manifold.k,
        rows=[findings_row(name, findings) for name, findings in found.items()],
        figures=_figures(found, labels, training.images, settings["threshold"]),
        duplicates=duplicates_section(training),
        copies=copies_section(plain, "by plain sampling"),
        reproduced=reproduced_section(plain, report["most_reproduced"], training, "by plain sampling"),
        shown=min(SHOWN, len(plain.images)),
        counts={"memorized": memorized, "other": len(plain.images) - memorized},
        separation_headings=[labels[name] for name in MAIN],
        separations=[{"name": key, "cells": [_auc(found[name], key) for name in MAIN]} for key in STATISTICS],
        detector=report["detector"],
    )
    path.write_text(html, encoding="utf-8")


def said_of_the_audit(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the pages of both kinds of audit take from ``report.json``."""
    return {name: report[name] for name in ("verdict", "notes", "neighbor_space", "frechet_space", "reference")} | {
        "settings": report["audit"]["settings"],
        "training": report["training_images"],
        "reference_kind": "training" if same_reference(report) else "reference",
        "details": details(report),
    }


def same_reference(report: Mapping[str, Any]) -> bool:
    digests = report["audit"]["sha256"]
    return bool(digests["training_images"] == digests["reference"])


def findings_row(name: str, findings: Findings) -> dict[str, Any]:
    f, change = findings.f_mem, findings.against_plain
    displacement, trace = findings.net_displacement, findings.trace
    energy = deciles(trace.path_energy.per_dim.total) if trace is not None else None
    excess = deciles(trace.excess_per_dim) if trace is not None and trace.displacement is not None else None
    return {
        "heading": findings.heading,
        "control": CONTROLS_IN_WORDS.get(name),
        "calls": findings.network_calls or UNKNOWN,
        "displacement": UNKNOWN if displacement is None else f"{displacement:.4f}",
        "f_mem": f.in_words,
        "change": f"{100 * change.difference:+.1f} ({100 * change.low:+.1f} to {100 * change.high:+.1f})"
        if change
        else UNKNOWN,
        "p": f"{change.p_value:.2g}" if change else UNKNOWN,
        "frechet": f"{findings.frechet_distance:.4g}",
        "precision": f"{findings.manifold.precision:.2f}",
        "recall": f"{findings.manifold.recall:.2f}",
        "density": f"{findings.support.density:.2f}",
        "coverage": f"{findings.support.coverage:.2f}",
        "energy": UNKNOWN if energy is None else f"{energy['median']:.4f}",
        "excess": UNKNOWN if excess is None else f"{excess['median']:.4f}",
    }


def _auc(findings: Findings, statistic: str) -> str:
    separation = findings.separations.get(statistic)
    if separation is None:
        return UNKNOWN
    low, high = separation.interval()
    return f"{separation.auc:.2f} ({low:.2f}–{high:.2f})"


def _figures(
    found: Mapping[str, Findings], labels: Mapping[str, str], training: torch.Tensor, threshold: float
) -> dict[str, Markup]:
    plain, main = found["euler"], {labels[name]: found[name] for name in MAIN}
    d1, d2 = plain.memorization.distances.unbind(1)
    closest = torch.where(d2 > 0, d1 / d2, 0.0).argsort(stable=True)[:NEIGHBOR_ROWS].tolist()
    neighbors = plot_neighbors(
        closest,
        {label: findings.images for label, findings in main.items()},
        training,
        {label: findings.memorization.distances for label, findings in main.items()},
        {label: findings.memorization.indices for label, findings in main.items()},
        f"number: d1/d2, framed below {threshold:.3g} (memorized)",
        threshold,
    )
    power: Any = plot_power({label: findings.trace for label, findings in main.items() if findings.trace is not None}).figure
    return {
        "shares": svg(plot_shares(found, labels)),
        "neighbors": png(neighbors, "Samples and their two nearest training images"),
        "samples": png(
            _grid({labels[name]: found[name] for name in MAIN}), "The same noises by plain Euler, KTS and touchdown"
        ),
        "controls": png(_grid({labels[name]: found[name] for name in CONTROLS}), "The same noises by the controls of KTS"),
        "power": svg(power),
        "energies": svg(plot_energies(found, labels)),
        "groups": svg(plot_groups(plain)) if plain.separations else Markup(""),
    }


def _grid(found: Mapping[str, Findings]) -> Figure:
    images = {label: findings.images[:SHOWN] for label, findings in found.items()}
    return plot_samples(images, {label: f.memorization.is_memorized[:SHOWN] for label, f in found.items()}, columns=6)


def details(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    audit = report["audit"]
    lines = [("model", report["model"]), ("runs on", report["device"])]
    lines += [(name, str(value)) for name, value in audit["settings"].items() if value is not None and name != "shaping"]
    lines += [(f"KTS {name}", str(value)) for name, value in audit["settings"].get("shaping", {}).items() if value is not None]
    lines += [(name, str(value)) for name, value in audit["versions"].items()]
    digests = audit["sha256"] | audit.get(CHECKPOINTS, {})
    return lines + [(f"sha256 of {name}", value) for name, value in digests.items()]


def duplicates_section(training: TrainingImages) -> Markup:
    """What occurs twice in the training set, by name."""
    pairs = training.close or []
    shown = plot_pairs(training.images, pairs[:PAIRS]) if pairs else None
    return Markup(
        render(
            DUPLICATES,
            equal=[[training.names[i] for i in group] for group in training.equal[:LISTED]],
            close=[[training.names[i], training.names[j]] for i, j in pairs[:LISTED]],
            more=[max(0, len(training.equal) - LISTED), max(0, len(pairs) - LISTED)],
            looked=training.close is not None,
            most=MOST_COMPARED,
            figure=png(shown, "Pairs of training images that are nearly equal") if shown else None,
        )
    )


def copies_section(findings: Findings, by: str) -> Markup:
    """Copies by every measure, next to what real images give."""
    values = {"threshold": f"{findings.memorization.threshold:.3g}", "false_alarms": FALSE_ALARMS, "nearest": NEAREST}
    return Markup(render(COPIES, rows=copy_rows(findings.copies or {}), by=by, alpha=ALPHA, **values))


def reproduced_section(
    findings: Findings, reproduced: Sequence[Mapping[str, Any]], training: TrainingImages, by: str
) -> Markup:
    """The training images given back most, with the samples."""
    figure = plot_reproduced(findings.images, training.images, reproduced) if reproduced else None
    alt = "Training images and the samples that repeat them"
    return Markup(render(REPRODUCED, rows=reproduced, by=by, figure=png(figure, alt) if figure else None))
