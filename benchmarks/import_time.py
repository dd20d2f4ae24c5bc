"""What ``import diffusers_kts`` costs beside ``import diffusers``: medians of processes started in turn.

python benchmarks/import_time.py
"""

import statistics
import subprocess
import sys
import time


def seconds(statement: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    times = [(seconds("import diffusers"), seconds("import diffusers_kts")) for _ in range(9)]
    theirs, ours = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"import diffusers {theirs:.2f} s, import diffusers_kts {ours:.2f} s, ratio {ours / theirs:.3f}")
