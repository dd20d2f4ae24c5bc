"""Every figure of a GPU by one command, in at most eight minutes:

    python benchmarks/on_gpu.py                        # results/cuda_*.json as they come, then results/cuda.md
    python benchmarks/on_gpu.py --only step,pipelines
    python benchmarks/on_gpu.py --data emoji64.npz     # the training part trains on, see benchmarks/gpu/training.py
    python benchmarks/on_gpu.py --smoke --output DIR   # all of it in miniature, on the CPU

Carry a checkout of this repository. The machine needs PyTorch with CUDA (2.11 and later), diffusers, transformers, accelerate,
safetensors, scipy, psutil, pyarrow, pyyaml and tqdm; no weights, no network, and this package need not be installed. Each part
runs in a process of its own with a time limit, smallest first; a part that is stopped leaves the rows it has made.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PARTS = {"neighbors": 40, "step": 130, "generate": 80, "pipelines": 150, "training": 80}  # seconds, 480 in all
GRACE = 15  # seconds after its limit until a part is stopped


def run(part: str, options: argparse.Namespace) -> None:
    limit = PARTS[part] if options.seconds is None else options.seconds
    command = [sys.executable, "-m", f"benchmarks.gpu.{part}", "--output", str(options.output / f"cuda_{part}.json")]
    command += ["--seconds", str(limit - GRACE if limit > 2 * GRACE else limit)]
    command += ["--smoke"] * options.smoke + (["--data", str(options.data)] if options.data else [])
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}, timeout=limit)
        print(f"{part}: {'done' if done.returncode == 0 else f'ended with {done.returncode}'}", flush=True)
    except subprocess.TimeoutExpired:
        print(f"{part}: stopped after {limit:g} s; its rows so far are kept", flush=True)


def page(folder: Path) -> str:
    """The tables of the documentation, from the result files that are there."""
    text = ["# On a GPU", "", "Written by `benchmarks/on_gpu.py` from the `cuda_*.json` next to this page."]
    for part in PARTS:
        path = folder / f"cuda_{part}.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text())
        about = found["environment"]
        text += ["", f"## {part.capitalize()}", "", f"{about['accelerator']}, torch {about['torch']}, diffusers "
                 f"{about['diffusers']}, {about['date']}.", ""]  # fmt: skip
        text += _step_table(found["rows"]) if part == "step" else _table(found["rows"])
    return "\n".join(text) + "\n"


def _step_table(rows: dict[str, Any]) -> list[str]:
    names = ("shaped", "off", "fused", "shaped, graph")
    lines = [
        "| latents | stock, us | " + " | ".join(f"{name} / stock" for name in names) + " | kernels, stock and shaped | waits |"
    ]
    lines += ["|---" * (len(names) + 4) + "|"]
    for name, row in rows.items():
        if "microseconds" not in row:
            lines.append(f"| {name} | {row.get('error') or row.get('left_out')} |" + " |" * (len(names) + 2))
            continue
        ratios = [f"{row['ratio_to_stock'][n]['median']:.2f}" if n in row["ratio_to_stock"] else "" for n in names]
        counted = row["counted"]
        kernels = f"{counted['stock']['kernels']}, {counted['shaped']['kernels']}"
        waits = counted["shaped"]["waits"]
        cells = [name, f"{row['microseconds']['stock']:.0f}", *ratios, kernels, "none" if waits == "" else str(waits)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _table(rows: dict[str, Any]) -> list[str]:
    lines = ["| row | measure | value |", "|---|---|---|"]
    for name, row in rows.items():
        for key, value in row.items():
            if isinstance(value, dict):
                value = ", ".join(f"{k} {_number(v)}" for k, v in value.items())
            lines.append(f"| {name} | {key.replace('_', ' ')} | {_number(value)} |")
    return lines


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, with commas, of {', '.join(PARTS)}")
    parser.add_argument("--smoke", action="store_true", help="all of it in miniature, on the CPU")
    parser.add_argument("--seconds", type=float, help="limit of each part, in place of its own")
    parser.add_argument("--data", type=Path, help="emoji for the training part; random pictures without")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    options.output = options.output.resolve()
    chosen = options.only.split(",")
    if unknown := [part for part in chosen if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    if options.smoke and options.output == ROOT / "benchmarks" / "results":
        parser.error("--smoke measures nothing; give another folder with --output")
    if options.data is not None and not options.data.exists():
        parser.error(f"{options.data} does not exist; give the emoji with --data, or leave it out")
    options.data = options.data and options.data.resolve()
    for part in (part for part in PARTS if part in chosen):
        run(part, options)
    (options.output / "cuda.md").write_text(page(options.output))
    print(f"Written: {options.output / 'cuda.md'}")


if __name__ == "__main__":
    main()
