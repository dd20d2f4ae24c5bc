"""What the batch job costs beside a bare loop of pipeline calls, from one process to two, and in memory.

    python -m benchmarks.cost.generate_scaling

* Overhead: the same batches of the embedded model, once in a bare loop (monitored pipeline, images to the CPU, nothing
  written) and once as a job that encodes and writes PNG and metadata; in turn, medians. ``ratio`` is of the rates by the
  clock; ``cpu_ratio`` of processor time, writers included: what is left of the rate where no core is free for them.
* Scaling: the job in one process and in two, one thread each, timed between the first and the last block.
* Memory: resident memory of a job of 10,000 prompts while it runs.

With a GPU, overhead is measured on it, too. Writes ``benchmarks/results/generate_scaling.json``.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import diffusers
import psutil
import torch

from diffusers_kts import KPEMonitorPipeline, embedded_model
from diffusers_kts.generate.job import GenerateResult, run_generate
from diffusers_kts.generate.settings import GenerateSettings
from diffusers_kts.pipelines.loading import load_pipeline
from diffusers_kts.seeding import sample_generators

RESULTS = Path(__file__).parents[1] / "results" / "generate_scaling.json"
BATCH = 32


def bare_loop(device: str, samples: int, steps: int) -> tuple[float, float]:
    """Seconds by the clock, and of the processor, of pipeline calls alone."""
    pipe = KPEMonitorPipeline.from_pipe(load_pipeline(embedded_model("generalizing"))).to(device)
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": steps, "output_type": "np"}
    pipe(list(range(2)), **call)
    began, used = time.perf_counter(), time.process_time()
    for start in range(0, samples, BATCH):
        indices = range(start, min(start + BATCH, samples))
        pipe([i % 10 for i in indices], generator=sample_generators(0, indices), **call)
    return time.perf_counter() - began, time.process_time() - used


def job(samples: int, steps: int, folder: str) -> GenerateResult:
    """A job; it times itself from its first block to its last, writing included."""
    settings = {"num_prompts": samples, "num_inference_steps": steps, "batch_size": BATCH}
    return run_generate(GenerateSettings(output=folder, **settings))


def overhead(device: str, rounds: int, samples: int, steps: int) -> dict:
    rows = []
    for _ in range(rounds):
        gc.collect()
        with tempfile.TemporaryDirectory() as folder:
            (clock, cpu), done = bare_loop(device, samples, steps), job(samples, steps, f"{folder}/out")
        row = {"bare_loop": samples / clock, "job": samples / done.seconds, "ratio": clock / done.seconds}
        rows.append(row | {"cpu_ratio": cpu / done.cpu_seconds, "waited_share": done.waited / done.seconds})
        print(device, rows[-1], flush=True)
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    return {"samples": samples, "steps": steps, "batch_size": BATCH, "rounds": rows, "median": medians}


def scaling(rounds: int, samples: int, steps: int) -> dict:
    """Images a second over all processes, from the records' times, so that imports do not count."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for world in rates:
            with tempfile.TemporaryDirectory() as folder:
                launch = [sys.executable, "-m", "accelerate.commands.launch"]
                several = ["--multi_gpu", f"--num_processes={world}", "--main_process_port=0"]
                command = [*launch, *(several if world > 1 else ["--num_processes=1"]), "-m", "diffusers_kts.generate"]
                command += [
                    f"--output={folder}/out",
                    f"--num-prompts={samples}",
                    f"--num-inference-steps={steps}",
                    "--batch-size=8",
                ]
                environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
                subprocess.run(command, check=True, env=environment, capture_output=True)
                times = sorted(path.stat().st_mtime for path in Path(folder, "out/.kts/blocks").iterdir())
            done = samples - 8 * world  # the first block of each process began before the first was written
            rates[world].append(done / (times[-1] - times[world - 1]))
            print(world, "process(es)", rates[world][-1], flush=True)
    medians = {str(world): statistics.median(values) for world, values in rates.items()}
    return {"samples": samples, "steps": steps, "images_per_second": medians, "ratio": medians["2"] / medians["1"]}


def memory(samples: int, steps: int) -> dict:
    """Resident memory from the first tenth of a job to its end, in MB."""
    process, seen, stop = psutil.Process(), [], threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            seen.append((time.perf_counter(), process.memory_info().rss / 1e6))

    watcher, began = threading.Thread(target=watch), time.perf_counter()
    watcher.start()
    with tempfile.TemporaryDirectory() as folder:
        job(samples, steps, f"{folder}/out")
    stop.set()
    watcher.join()
    late = [megabytes for at, megabytes in seen if at > began + 0.1 * (seen[-1][0] - began)]
    first, last = statistics.median(late[: len(late) // 10]), statistics.median(late[-len(late) // 10 :])
    return {"prompts": samples, "after_a_tenth": first, "at_the_end": last, "peak": max(late), "growth": last - first}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--num-inference-steps", dest="steps", type=int, default=10)
    parser.add_argument("--memory-samples", type=int, default=10_000)
    parser.add_argument("--only", choices=["overhead", "scaling", "memory"], help="Measure one thing, keep the others.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = json.loads(RESULTS.read_text()) if args.only and RESULTS.exists() else {}
    if args.only in (None, "memory"):
        result["memory_mb"] = memory(args.memory_samples, 1)
        print(result["memory_mb"], flush=True)
    if args.only in (None, "overhead"):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        result[f"overhead_{device}"] = overhead(device, args.rounds, args.samples, args.steps)
    if args.only in (None, "scaling"):
        result["scaling_cpu"] = scaling(max(1, args.rounds // 2), args.samples, args.steps)
    result["machine"] = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
