"""What shaping and measuring cost, in one table, from the result files: ``results/performance.md``.

    python -m benchmarks.cost.performance_table    # only writes the tables
    python -m benchmarks.cost.performance_table --data fashion_mnist.npz  # measures everything first; on a quiet machine

Measures nothing itself. A result file that is missing leaves its rows out, and says so. Rows of a GPU are there once somebody
has run ``step_cost.py --device cuda``.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.cost.stopwatch import measure
from benchmarks.report import HERE, marks, table, write_between

SCRIPTS = {  # in the order of the table, with the options of a whole measurement
    "step_cost": ["--pipeline"],
    "schedule_cost": [],
    "trajectory_energy": [],
    "import_time": [],
    "nearest_neighbors": [],
}
ON_CUDA = "step_cost_cuda"
STEP = "KTS + KPE step / stock step"


def step_measures(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of ``step_cost.json``, or of a GPU, which keep their ratios by latents."""
    rows, device = [], result["environment"]["accelerator"]
    on_device = f", {device}" if device else ""
    for name, step in result["steps"].items():
        least = step["microseconds_at_the_limit"] / step["microseconds"]["stock"]
        limit = f"{least:.2f}, read x, read v, write x"
        ratios = step["ratio_to_stock"]
        rows.append(measure(f"{STEP}, {name}{on_device}", 1.0, ratios["shaped and measured"], limit))
        if "shaped and measured, fused" in ratios:
            rows.append(measure(f"{STEP}, {name}, fused{on_device}", 0.6, ratios["shaped and measured, fused"], limit))
    if "pipeline" in result:
        ran = result["pipeline"]
        name = f"SD3-width pipeline of {ran['layers']} layer(s), {ran['steps']} steps, shaped and monitored / plain{on_device}"
        rows.append(measure(name, 1.002, ran["ratio_to_plain"], "1, the network"))
    return rows


def collect(output: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]:
    """Rows, the environments they were measured in, and scripts without a result."""
    rows, environments, missing = [], [], []
    for name in (*SCRIPTS, ON_CUDA):
        path = output / "results" / f"{name}.json"
        if not path.exists():
            missing += [name] if name in SCRIPTS else []
            continue
        result = json.loads(path.read_text())
        rows += result["measures"] if "measures" in result else step_measures(result)
        environments.append(result["environment"])
    return rows, environments, missing


def as_table(rows: list[dict[str, Any]]) -> str:
    return table(
        ("measure", "goal", "measured (95 %)", "limit", ""),
        [
            (
                row["measure"],
                f"{'>=' if row['at_least'] else '<='} {row['goal']:g}",
                f"{row['median']:.3g} ({row['low']:.3g} to {row['high']:.3g})",
                row["limit"],
                "reached" if row["reached"] else "missed",
            )
            for row in rows
        ],
    )


def made_on(environments: list[dict[str, Any]]) -> str:
    """The machines, each once, with the first and the last day."""
    machines: dict[str, list[str]] = {}
    for e in environments:
        machine = (
            f"{e['accelerator'] or e['cpu']}, {e['cores']} cores, {e['threads']} threads, {e['memory_gib']} GiB, Python "
            f"{e['python']}, torch {e['torch']}, diffusers {e['diffusers']}"
        )
        machines.setdefault(machine, []).append(e["date"])
    days = (f"{machine}, {' to '.join(sorted({min(dates), max(dates)}))}" for machine, dates in machines.items())
    return "; ".join(days)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help=".npz with x_train and x_test; with it, everything is measured anew")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of results/")
    args = parser.parse_args()
    if args.data:
        for name, options in SCRIPTS.items():
            data = ["--data", args.data] if name == "nearest_neighbors" else []
            subprocess.run([sys.executable, "-m", f"benchmarks.cost.{name}", *options, *data], check=True)
    rows, environments, missing = collect(args.output)
    for name in missing:
        print(f"no results of benchmarks/cost/{name}.py; run it")
    made = f"`python -m benchmarks.cost.performance_table`; ratios measured in turn, medians; {made_on(environments)}."
    write_between(args.output / "results" / "performance.md", marks("cost/performance_table"), f"{made}\n\n{as_table(rows)}")
    print(as_table(rows))


if __name__ == "__main__":
    main()
