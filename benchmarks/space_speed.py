"""How long a visitor of the Space waits: from its start to the first view, and for 16 images, plain and shaped.

python benchmarks/space_speed.py

Starts ``kts space`` on the embedded memorising model and asks for the page, then for 16 images of 50 steps through its API,
three times; medians go to ``benchmarks/results/space_speed.json``.
"""

import json
import os
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from gradio_client import Client
from report import environment

RESULTS = Path(__file__).parent / "results" / "space_speed.json"
PORT = 7861
ADDRESS = f"http://127.0.0.1:{PORT}/"
CALL = ["all classes", 0, 50, 16, 0.01, 0.01, 0.6, 1.0, "linear", "exponential"]
ROUNDS = 3


def wait_for_page(process: subprocess.Popen) -> None:
    while process.poll() is None:
        try:
            urllib.request.urlopen(ADDRESS, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise SystemExit("kts space ended before it answered.")


def one_round() -> tuple[float, float]:
    began = time.perf_counter()
    command = [sys.executable, "-m", "diffusers_kts", "space", "--port", str(PORT)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for_page(process)
        view = time.perf_counter() - began
        client = Client(ADDRESS, verbose=False)
        began = time.perf_counter()
        client.predict(*CALL, api_name="/generate")
        return view, time.perf_counter() - began
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    began = time.time()
    views, draws = zip(*(one_round() for _ in range(ROUNDS)), strict=True)
    result = {
        "first_view_seconds": statistics.median(views),
        "first_view_rounds": views,
        "images_16_plain_and_shaped_seconds": statistics.median(draws),
        "images_rounds": draws,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        **environment(began),
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
