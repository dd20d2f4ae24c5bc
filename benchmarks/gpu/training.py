"""How fast ``examples/train_text_to_image.py`` trains; with real data the run is the training itself, checkpointed.

Without ``--data`` it learns random pictures, and only the rate counts. With it the run resumes in ``training/`` next to the
result file, from the embedded `emoji`, and what it has reached when the time is up is in ``training/flow/pipeline``.
"""

import csv
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.rows import Rows, parse_args
from diffusers_kts import embedded_model

SCRIPT = Path(__file__).parents[2] / "examples" / "train_text_to_image.py"


def random_pictures(path: Path, count: int) -> Path:
    words, rng = ("red", "blue", "green", "round", "small"), np.random.default_rng(0)
    np.savez(
        path,
        images=rng.integers(0, 256, (2 * count, 64, 64, 3), dtype=np.uint8),
        captions=np.array([f"{words[i % 5]} thing {i}" for i in range(count)] * 2),
        categories=np.array(["things"] * 2 * count),
        styles=np.array(["noto"] * count + ["twemoji"] * count),
    )
    return path


def trained(rows: Rows, data: Path | None, limit: float) -> dict[str, Any]:
    emoji = embedded_model("emoji")
    with tempfile.TemporaryDirectory() as scratch:
        output = rows.path.parent / "training" if data is not None else Path(scratch) / "run"
        given = data or random_pictures(Path(scratch) / "pictures.npz", 40 if rows.smoke else 2000)
        batch, updates = (4, 3) if rows.smoke else (256, 30_000)
        often = (
            ["--log-every", "1", "--held-out", "2", "--sample-prompts", "1"]
            if rows.smoke
            else ["--compile", "--checkpoint-every", "500"]
        )
        command = [
            sys.executable, str(SCRIPT), "flow", "--data", str(given), "--output", str(output), "--init-from", str(emoji),
            "--vae", str(emoji), "--updates", str(updates), "--batch-size", str(batch), "--learning-rate", "5e-4",
            "--warmup", "1000", "--ema-decay", "0.9995", "--mixed-precision", "bf16", "--sample-every", "2000", *often,
        ]  # fmt: skip
        stopped = False
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
            if done.returncode:
                raise RuntimeError((done.stderr.strip().splitlines() or ["it ended without a word"])[-1])
        except subprocess.TimeoutExpired:
            stopped = True
        with (output / "flow" / "loss.csv").open() as file:
            lines = list(csv.DictReader(file))
    first, last = lines[len(lines) // 2], lines[-1]  # the first half compiles and warms up
    between = int(last["update"]) - int(first["update"])
    taken = float(last["seconds"]) - float(first["seconds"])
    return {
        "data": "emoji" if data is not None else "random pictures",
        "batch_size": batch,
        "updates": int(last["update"]),
        "pictures_per_second": between * batch / taken if taken > 0 else None,
        "loss": float(last["loss"]),
        "stopped_at_the_limit": stopped,
    }


def main() -> None:
    options = parse_args(__doc__)
    rows = Rows(options)
    rows.make("text-to-image training", lambda: trained(rows, options.data, options.seconds))


if __name__ == "__main__":
    main()
