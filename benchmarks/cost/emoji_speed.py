"""Seconds for 16 pictures in 20 guided steps by the embedded text-to-image models.

python -m benchmarks.cost.emoji_speed
"""

import time

import torch
from diffusers import DiffusionPipeline

from benchmarks.report import HERE, environment, write_json
from diffusers_kts import embedded_model
from diffusers_kts.models import TEXT_TO_IMAGE

COUNT, STEPS, GUIDANCE, ROUNDS = 16, 20, 4.0, 3


def seconds(name: str) -> float:
    """The least of some rounds."""
    pipe = DiffusionPipeline.from_pretrained(embedded_model(name))
    pipe.set_progress_bar_config(disable=True)
    prompts = (embedded_model(name) / "prompts.txt").read_text().splitlines()
    asked, least = [prompts[i % len(prompts)] for i in range(COUNT)], float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        pipe(asked, num_inference_steps=STEPS, guidance_scale=GUIDANCE)
        least = min(least, time.perf_counter() - began)
    return least


def main() -> None:
    torch.set_num_threads(2)
    began = time.time()
    found = {name: round(seconds(name), 1) for name in TEXT_TO_IMAGE}
    print(found)
    write_json(HERE, "emoji_speed", {"seconds": found, "environment": environment(began)})


if __name__ == "__main__":
    main()
