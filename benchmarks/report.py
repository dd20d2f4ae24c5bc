"""Where results go: numbers as JSON and pictures as PNG, with the script's own page beside them."""

import argparse
import json
import platform
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch

HERE = Path(__file__).parent
TITLES = {
    "paper_tables": "The paper's tables on Fashion-MNIST",
    "trainings": "The paper's claims on other trainings",
    "along_training": "Memorization along training",
    "frontier": "Quality against memorization: KTS, touchdown, fewer steps",
    "memorization_score": "A memorization score from the trajectory alone",
    "text_to_image_shaping": "What shaping does to a text-to-image model",
    "detector": "A detector of memorized samples",
    "matched_launch": "A launch matched to what a model lacks",
    "planted_copies": "Planted copies: which the audit finds",
    "acting": "Acting on the detector of memorized samples",
    "tuning": "Settings that kts tune recommends",
    "excess": "What the path energy measures, and its excess",
    "adaptive": "Gains per sample: energy budget and turning",
    "energy_and_judge": "Energies under guidance against what a picture shows",
    "fitted_sampling": "Fitted sampling: error against network calls",
}


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that the scripts have in common."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--data", required=True, help=".npz with x_train, y_train, x_test, y_test")
    result.add_argument("--num-samples", type=int, default=500, help="per seed")
    result.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    result.add_argument("--num-images", type=int, default=1024, help="training images of a model given as a snapshot")
    result.add_argument("--epochs", type=int, default=4, help="of the classifier")
    result.add_argument("--output", type=Path, default=HERE, help="folder of results/")
    result.add_argument("--cache", type=Path, default=HERE / "cache", help="folder of what has been drawn already")
    result.add_argument(
        "--draw-only", action="store_true", help="fill the cache and stop, so that processes can share the work"
    )
    return result


def environment(began: float) -> dict[str, Any]:
    return {
        "seconds": round(time.time() - began),
        "device": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def write_between(path: Path, marks: tuple[str, str], text: str) -> None:
    """Put ``text`` between two marks of a file that has both."""
    before, _, rest = path.read_text().partition(marks[0])
    _, _, after = rest.partition(marks[1])
    path.write_text(f"{before}{marks[0]}\n{text}\n{marks[1]}{after}")


def write_json(output: Path, name: str, result: dict[str, Any]) -> None:
    """``results/<name>.json``."""
    (output / "results").mkdir(parents=True, exist_ok=True)
    (output / "results" / f"{name}.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")


def write_page(output: Path, name: str, text: str, result: dict[str, Any]) -> None:
    """``results/<name>.md``, the page of a script, and its numbers in ``results/<name>.json``."""
    write_json(output, name, result)
    run = result["environment"]
    made = (
        f"`python -m benchmarks.science.{name}`, {run['date']}: seeds {', '.join(map(str, result['seeds']))}, "
        f"{result['num_samples']} samples of each; {run['device']}, Python {run['python']}, torch {run['torch']}, "
        f"diffusers {run['diffusers']}."
    )
    text = re.sub(r"(\n[^*\n][^\n]*)\n\* ", r"\1\n\n* ", text)  # Markdown wants an empty line before a list
    (output / "results" / f"{name}.md").write_text(f"# {TITLES[name]}\n\n{made}\n\n{text}\n")


def marks(script: str) -> tuple[str, str]:
    """Between which a script writes into a file that people write, too; ``script`` as "cost/performance_table"."""
    return f"<!-- written by benchmarks/{script}.py -->", f"<!-- end of {script.rpartition('/')[2]} -->"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
