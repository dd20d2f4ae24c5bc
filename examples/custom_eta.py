"""A gain of your own: here a wave that brakes in the middle of the path, in place of launch and landing.

    python examples/custom_eta.py --depth 0.2

``gain`` takes a function of the flow time, or one number per step; the record then holds the gains used.
"""

import argparse
import math

import torch

from diffusers_kts import ClassConditionalFlowPipeline, KTSFlowMatchScheduler, embedded_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=float, default=0.2)
    parser.add_argument("--num-inference-steps", type=int, default=50)
    parser.add_argument("--output", default="custom_eta.png")
    args = parser.parse_args()

    def wave(t: float) -> float:
        """``eta(t) = 1 - depth sin(pi t)``."""
        return 1 - args.depth * math.sin(math.pi * t)

    pipe = ClassConditionalFlowPipeline.from_pretrained(embedded_model())
    pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config, gain=wave)
    generator = torch.Generator().manual_seed(0)
    out = pipe("Sneaker", num_inference_steps=args.num_inference_steps, generator=generator)
    out.images[0].save(args.output)
    trace = pipe.scheduler.kpe
    print(f"eta from {trace.gains.min():.3f} to {trace.gains.max():.3f}; energy per dimension {trace.per_dim[0]:.4f}")


if __name__ == "__main__":
    main()
