"""What `set_timesteps` costs with shaping, beside the diffusers scheduler that each of ours extends.

    python -m benchmarks.cost.schedule_cost

For 20, 50 and 100 steps of every KTS scheduler, asked in turn for two schedules. Writes
``benchmarks/results/schedule_cost.json``, with a profile of what a schedule takes.
"""

import argparse
import cProfile
import pstats
import time
from typing import Any

import diffusers

import diffusers_kts
from benchmarks.cost.stopwatch import measure, race, write

STEPS = (20, 50, 100)
STOCK = {
    "KTSFlowMatchScheduler": "FlowMatchEulerDiscreteScheduler",
    "KTSFlowMatchHeunScheduler": "FlowMatchHeunDiscreteScheduler",
    "KTSUniPCMultistepScheduler": "UniPCMultistepScheduler",
    "KTSDPMSolverMultistepScheduler": "DPMSolverMultistepScheduler",
    "KTSDDIMScheduler": "DDIMScheduler",
    "KTSEulerDiscreteScheduler": "EulerDiscreteScheduler",
}


def in_turn(scheduler: Any, steps: int) -> None:
    """Two schedules, each new to a scheduler that knows the last one."""
    for n in (steps, steps - 1):
        scheduler.set_timesteps(n)


def compare(name: str, steps: int, rounds: int) -> dict[str, Any]:
    stock, ours = getattr(diffusers, STOCK[name])(), getattr(diffusers_kts, name)()
    changing = race({"stock": lambda: in_turn(stock, steps), "shaped": lambda: in_turn(ours, steps)}, rounds)
    return {
        "scheduler": name,
        "steps": steps,
        "new": changing.to_dict("shaped", "stock"),
        "new_costs_microseconds_more": (changing.median("shaped") - changing.median("stock")) / 2 * 1e6,
    }


def profile(calls: int = 1000) -> list[dict[str, Any]]:
    """Where the time of new schedules goes, dearest function first."""
    scheduler, profiler = diffusers_kts.KTSFlowMatchScheduler(), cProfile.Profile()
    profiler.enable()
    for _ in range(calls // 2):
        in_turn(scheduler, 50)
    profiler.disable()
    stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    dearest = sorted(stats.items(), key=lambda item: -item[1][2])[:12]
    return [{"function": where[2], "microseconds_per_call": own / calls * 1e6} for where, (_, _, own, _, _) in dearest]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--num-inference-steps", dest="steps", type=int, nargs="+", default=STEPS)
    args = parser.parse_args()
    began, rows = time.time(), []
    for name in STOCK:
        for steps in args.steps:
            rows.append(compare(name, steps, args.rounds))
            print(rows[-1], flush=True)
    euler = [row for row in rows if row["scheduler"] == "KTSFlowMatchScheduler"]
    dearest = max(euler, key=lambda row: row["new"]["ratio"]["median"])
    more = max(row["new_costs_microseconds_more"] for row in euler)
    limit = f"reading the levels, planning the gains, beginning a record: {more:.0f} us more per call of a pipeline"
    measures = [measure("`set_timesteps` with shaping / stock", 1.1, dearest["new"]["ratio"], limit)]
    write("schedule_cost", {"measures": measures, "schedulers": rows, "profile_of_new": profile()}, began)


if __name__ == "__main__":
    main()
