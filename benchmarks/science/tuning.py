"""What ``kts tune`` recommends for the embedded models.

    python -m benchmarks.science.tuning --data fashion_mnist.npz

Quality is the Frechet distance (FD, classifier features) to the real test images. The memorizing model is tuned for FD and
F_mem, the generalizing model for FD alone, with every shaping setting free. Studies are kept in the cache: a stopped run goes
on where it was, and several processes share the work. Writes ``results/tuning.md`` and ``results/tuning.json``.
"""

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch

from benchmarks.report import environment, parser, table, write_page
from benchmarks.science.fashion_mnist import Classifier, Data, load_data
from diffusers_kts.tune.job import tune
from diffusers_kts.tune.settings import TuneSettings

TOLERANCE = 0.1
STUDIES: dict[str, dict[str, Any]] = {
    "memorizing": {"model": "memorizing", "objectives": ("frechet", "f_mem"), "trials": 60},
    "memorizing, FD may rise by 10 %": {"model": "memorizing", "objectives": ("frechet", "f_mem"), "trials": 60}
    | {"tolerance": TOLERANCE},
    "generalizing": {"model": "generalizing", "objectives": ("frechet",), "trials": 40},
}


def export_features(classifier: Classifier, path: Path) -> Path:
    """The classifier's features as the file that a user would give."""
    network = classifier.network[:-1]
    shapes = ({0: torch.export.Dim.AUTO},)
    torch.export.save(torch.export.export(network, (torch.zeros(4, 1, 28, 28),), dynamic_shapes=shapes), path)
    return path


def save_test_images(data: Data, path: Path) -> Path:
    np.save(path, (255 * data.x_test[:, 0]).round().to(torch.uint8).numpy())
    return path


def section(name: str, report: dict[str, Any], with_front: bool) -> str:
    labels = [objective["label"] for objective in report["objectives"]]
    front = [["plain", *report["plain"]["values"]], *([row["words"], *row["values"]] for row in report["front"])]
    rows = [[words, *(f"{value:.4g}" for value in values)] for words, *values in front]
    text = [
        f"## {name}",
        f"{report['settings_tried']} settings tried, {report['settings_drawn_whole']} of them with all "
        f"{report['num_samples']} samples; {report['samples_drawn']} samples drawn in all.",
    ]
    if with_front:
        text += ["Plain sampling and the front, on the samples used for tuning:", table(["setting", *labels], rows)]
    if report["comparisons"]:
        text.append(f"The candidate, {report['candidate']['words']}, on {report['fresh_samples']} fresh samples:")
        compared = [
            [
                c["label"],
                f"{c['plain']:.4g}",
                f"{c['candidate']:.4g}",
                f"{c['difference']:+.4g} ({c['low']:+.4g} to {c['high']:+.4g})",
                c["finding"],
            ]
            for c in report["comparisons"]
        ]
        text.append(table(["objective", "plain", "candidate", "difference (95 %, Bonferroni)", "finding"], compared))
    return "\n\n".join([*text, f"Verdict: {' '.join(report['verdict'])}"])


def main() -> None:
    options = parser(__doc__)
    options.set_defaults(num_samples=256, seeds=[0])
    options.add_argument("--fresh-samples", type=int, default=600, help="of the candidate and of plain sampling")
    options.add_argument("--num-inference-steps", dest="steps", type=int, default=50)
    options.add_argument("--trials", type=int, help="in place of each study's own number")
    args, began = options.parse_args(), time.time()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    data = load_data(args.data)
    folder = args.cache / "tuning"
    for needed in (folder, args.output / "results"):
        needed.mkdir(parents=True, exist_ok=True)
    classifier = Classifier(data, args.epochs, args.cache)
    shared = {
        "features": str(export_features(classifier, folder / "classifier.pt2")),
        "reference": save_test_images(data, folder / "test-images.npy"),
        "num_samples": args.num_samples,
        "fresh_samples": args.fresh_samples,
        "num_inference_steps": args.steps,
        "seed": args.seeds[0],
    }
    reports = {}
    for name, study in STUDIES.items():
        study = study | ({"trials": args.trials} if args.trials else {})
        result = tune(TuneSettings(output=folder / study["model"], **shared, **study))
        reports[name] = result.report
        shutil.copy(result.files[1], args.output / "results" / f"tuning-{study['model']}.png")
    about = (
        f"{args.steps} steps; FD is to the {len(data.x_test)} real test images in the features of a classifier that gets "
        f"{classifier.accuracy:.1%} of them right; it depends on the number of samples, so it compares within a table only. "
        "Recommended is, by the rule of `kts tune`, what on fresh samples is significantly worse in no objective and better "
        "in one.\n\n![The memorizing model's settings](tuning-memorizing.png)"
    )
    result = {
        "num_samples": args.num_samples,
        "seeds": args.seeds[:1],
        "environment": environment(began),
        "classifier_accuracy": classifier.accuracy,
        "studies": reports,
    }
    fronts = [report["front"] for report in reports.values()]  # of another look at the same study it is the same
    new = [front not in fronts[:i] for i, front in enumerate(fronts)]
    sections = [section(name, report, is_new) for (name, report), is_new in zip(reports.items(), new, strict=True)]
    text = "\n\n".join([about, *sections])
    write_page(args.output, "tuning", text, result)


if __name__ == "__main__":
    main()
