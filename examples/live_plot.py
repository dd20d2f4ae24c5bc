"""Watch the energy while the images are drawn: a callback that redraws the plot every few steps.

python examples/live_plot.py --every 10      # writes energy.png again and again; in a notebook, display the figure
"""

import argparse

from diffusers_kts import ClassConditionalFlowPipeline, KPECallback, KPEMonitorPipeline, KPETrace, embedded_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--num-inference-steps", type=int, default=50)
    parser.add_argument("--output", default="energy.png")
    args = parser.parse_args()

    def on_step(step: int, trace: KPETrace) -> None:
        if (step + 1) % args.every == 0:
            trace.plot().figure.savefig(args.output)
            print(f"step {step + 1}: t = {trace.t[-1]:.2f}, energy per dimension so far {trace.per_dim.mean():.4f}")

    pipe = ClassConditionalFlowPipeline.from_pretrained(embedded_model())
    pipe = KPEMonitorPipeline.from_pipe(pipe)
    pipe(["Sneaker", "Bag"], num_inference_steps=args.num_inference_steps, callback_on_step_end=KPECallback(on_step))


if __name__ == "__main__":
    main()
