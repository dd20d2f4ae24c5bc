"""What `set_timesteps` costs with shaping, beside the diffusers scheduler that each of ours extends.

    python -m benchmarks.cost.schedule_cost

For 20, 50 and 100 steps of every KTS scheduler: asked for the same schedule again, as a pipeline does in call after call; the
same with a touchdown; and asked in turn for two schedules, so that each is new, also with the gains, which the first step
computes in float64. Writes ``benchmarks/results/schedule_cost.json``, with a profile of what a new schedule takes.
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


def in_turn(scheduler: Any, steps: int, gains: bool = False) -> None:
    """Two schedules, each new to a scheduler that knows the last one."""
    for n in (steps, steps - 1):
        scheduler.set_timesteps(n)
        if gains:
            scheduler._current_gains()


def compare(name: str, steps: int, rounds: int) -> dict[str, Any]:
    stock, ours = getattr(diffusers, STOCK[name])(), getattr(diffusers_kts, name)()
    landing = type(ours)(touchdown=0.7)
    again = {
        "stock": lambda: stock.set_timesteps(steps),
        "shaped": lambda: ours.set_timesteps(steps),
        "touchdown": lambda: landing.set_timesteps(steps),
    }
    new = {
        "stock": lambda: in_turn(stock, steps),
        "shaped": lambda: in_turn(ours, steps),
        "shaped, with gains": lambda: in_turn(ours, steps, gains=True),
    }
    repeated, changing = race(again, rounds), race(new, rounds)
    return {
        "scheduler": name,
        "steps": steps,
        "repeated": repeated.to_dict("shaped", "stock"),
        "repeated_touchdown": repeated.to_dict("touchdown", "stock"),
        "new": changing.to_dict("shaped", "stock"),
        "new_costs_microseconds_more": (changing.median("shaped") - changing.median("stock")) / 2 * 1e6,
        "gains_cost_microseconds": (changing.median("shaped, with gains") - changing.median("shaped")) / 2 * 1e6,
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
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    args = parser.parse_args()
    began, rows = time.time(), []
    for name in STOCK:
        for steps in args.steps:
            rows.append(compare(name, steps, args.rounds))
            print(rows[-1], flush=True)
    euler = [row for row in rows if row["scheduler"] == "KTSFlowMatchScheduler"]
    worst, dearest = (max(euler, key=lambda row, kind=kind: row[kind]["ratio"]["median"]) for kind in ("repeated", "new"))
    more, gains = (max(row[cost] for row in euler) for cost in ("new_costs_microseconds_more", "gains_cost_microseconds"))
    measures = [
        measure(
            "`set_timesteps` with shaping / stock, schedule asked for again, worst of the step counts",
            1.1,
            worst["repeated"]["ratio"],
            "comparing what is asked and beginning a record",
        ),
        measure(
            "`set_timesteps` with shaping / stock, schedule never asked for before",
            1.1,
            dearest["new"]["ratio"],
            f"reading the levels, beginning a record: {more:.0f} us more, and {gains:.0f} us for the gains at the first step",
        ),
    ]
    write("schedule_cost", {"measures": measures, "schedulers": rows, "profile_of_new": profile()}, began)


if __name__ == "__main__":
    main()
