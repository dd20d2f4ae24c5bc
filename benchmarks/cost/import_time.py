"""What importing this package costs beside importing diffusers: processes started in turn.

    python -m benchmarks.cost.import_time

Twice: the bare packages, and the scheduler that a user names. Both sides of the second load torch and the stock scheduler.
Writes ``benchmarks/results/import_time.json``, with the modules that our scheduler loads beyond the stock one's.
"""

import argparse
import json
import subprocess
import sys
import time

from benchmarks.cost.stopwatch import measure, race, write

PAIRS = {
    "package": ("import diffusers", "import diffusers_kts"),
    "scheduler": (
        "from diffusers import FlowMatchEulerDiscreteScheduler",
        "from diffusers_kts import KTSFlowMatchScheduler",
    ),
}


def run(statement: str) -> str:
    return subprocess.run([sys.executable, "-c", statement], check=True, capture_output=True, text=True).stdout


def modules(statement: str) -> set[str]:
    return set(json.loads(run(f"{statement}; import json, sys; print(json.dumps(list(sys.modules)))").splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args()
    began = time.time()
    raced = {}
    for name, (theirs, ours) in PAIRS.items():
        contenders = {"stock": lambda theirs=theirs: run(theirs), "ours": lambda ours=ours: run(ours)}
        raced[name] = race(contenders, args.rounds, at_least=0).to_dict("ours", "stock")
        print(name, raced[name], flush=True)
    theirs, ours = PAIRS["scheduler"]
    beyond = sorted(modules(ours) - modules(theirs))
    measures = [
        measure(
            "`import diffusers_kts` / `import diffusers`",
            1.05,
            raced["package"]["ratio"],
            "starting Python; names load when used",
        ),
        measure(
            f"`{ours}` / `{theirs}`",
            1.05,
            raced["scheduler"]["ratio"],
            f"1, loading torch and diffusers; {len(beyond)} modules beyond those",
        ),
    ]
    write("import_time", {"measures": measures, **raced, "modules_beyond_stock": beyond}, began)


if __name__ == "__main__":
    main()
