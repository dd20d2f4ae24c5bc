"""How long a visitor of the Space waits: from its start to the first view, and for 16 images, plain and shaped.

python -m benchmarks.cost.space_speed

Starts ``kts space`` on the embedded memorizing model and opens it in a browser (Debian's chromium), then asks for 16 images of
50 steps through its API, three times; medians go to ``benchmarks/results/space_speed.json``. The first view stands when the
curve eta(t) can be seen and Generate be pressed; the first images come once the model is loaded behind it.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from gradio_client import Client
from playwright.sync_api import Browser, sync_playwright

from benchmarks.report import environment

RESULTS = Path(__file__).parents[1] / "results" / "space_speed.json"
PORT = 7861
ADDRESS = f"http://127.0.0.1:{PORT}/"
CALL = ["all classes", 0, 50, 16, 0.01, 0.01, 0.6, 1.0, "linear", "exponential"]
ROUNDS = 3


def wait_for_answer(process: subprocess.Popen) -> None:
    while process.poll() is None:
        try:
            urllib.request.urlopen(ADDRESS, timeout=60).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.02)
    raise SystemExit("kts space ended before it answered.")


def one_round(browser: Browser) -> dict[str, float]:
    """Seconds from the start of ``kts space`` to each thing a visitor sees, and seconds of the drawing."""
    seconds = {}
    began = time.perf_counter()
    command = [sys.executable, "-m", "diffusers_kts", "space", "--port", str(PORT)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for_answer(process)
        seconds["answer"] = time.perf_counter() - began
        page = browser.new_page()
        page.set_default_timeout(120_000)  # ms, for a machine that has other work
        page.goto(ADDRESS, wait_until="commit")
        page.wait_for_selector("#eta svg .line")
        page.wait_for_selector("#generate:enabled")
        seconds["first_view"] = time.perf_counter() - began
        page.wait_for_selector("#compared img.drawn")
        seconds["first_images"] = time.perf_counter() - began
        page.close()
        client = Client(ADDRESS, verbose=False)
        began = time.perf_counter()
        client.predict(*CALL, api_name="/generate")
        seconds["images_16_plain_and_shaped"] = time.perf_counter() - began
        return seconds
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    began = time.time()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        rounds = [one_round(browser) for _ in range(ROUNDS)]
        browser.close()
    result = {
        "seconds": {name: statistics.median(each[name] for each in rounds) for name in rounds[0]},
        "rounds": rounds,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "environment": environment(began),
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
