"""A gain of your own: here a wave that brakes in the middle of the path, in place of launch and landing.

    python examples/custom_eta.py --depth 0.2

The scheduler asks its gain for eta at the flow times of the steps, whatever the gain is; the record then holds these gains.
"""

import argparse
import dataclasses
import math

import torch

from diffusers_kts import ClassConditionalFlowPipeline, Gain, KTSFlowMatchScheduler, embedded_model


@dataclasses.dataclass(frozen=True)
class Wave(Gain):
    """``eta(t) = 1 - depth sin(pi t)``."""

    depth: float = 0.2

    @property
    def is_identity(self) -> bool:
        return self.depth == 0

    def __call__(self, t):
        return 1 - self.depth * torch.sin(math.pi * torch.as_tensor(t, dtype=torch.float64))


class WaveScheduler(KTSFlowMatchScheduler):
    def set_wave(self, depth: float) -> None:
        self._gain = Wave(tau_split=self.config.tau_split, depth=depth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=float, default=0.2)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--output", default="custom_eta.png")
    args = parser.parse_args()

    pipe = ClassConditionalFlowPipeline.from_pretrained(embedded_model())
    pipe.scheduler = WaveScheduler.from_config(pipe.scheduler.config)
    pipe.scheduler.set_wave(args.depth)
    pipe("Sneaker", num_inference_steps=args.steps, generator=torch.Generator().manual_seed(0)).images[0].save(args.output)
    trace = pipe.scheduler.kpe
    print(f"eta from {trace.gains.min():.3f} to {trace.gains.max():.3f}; energy per dimension {trace.per_dim[0]:.4f}")


if __name__ == "__main__":
    main()
