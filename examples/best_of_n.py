"""Draw N images of each class and keep the one with the most (or least) kinetic path energy.

    python examples/best_of_n.py --n 8 --keep most

Whether energy tells good from bad is a property of the model: look at both ends before you rely on one.
"""

import argparse

import torch

from diffusers_kts import ClassConditionalFlowPipeline, KPEMonitorPipeline, embedded_model
from diffusers_kts.plotting import plot_samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--keep", choices=["most", "least"], default="most")
    parser.add_argument("--num-inference-steps", type=int, default=50)
    parser.add_argument("--output", default="best_of_n.png")
    args = parser.parse_args()

    pipe = ClassConditionalFlowPipeline.from_pretrained(embedded_model("generalizing"))
    pipe = KPEMonitorPipeline.from_pipe(pipe)
    labels = list(range(pipe.num_classes))
    out = pipe(
        labels,
        num_images_per_prompt=args.n,
        num_inference_steps=args.num_inference_steps,
        guidance_scale=1.5,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    )
    energy = out.kpe.per_dim.view(len(labels), args.n)  # the images of a class lie side by side
    best = energy.argmax(1) if args.keep == "most" else energy.argmin(1)
    kept = out.images.view(len(labels), args.n, *out.images.shape[1:])[torch.arange(len(labels)), best]
    plot_samples({f"{args.keep} energy of {args.n}": kept}, columns=5).savefig(args.output)
    for label, row, chosen in zip(labels, energy, best, strict=True):
        print(f"{pipe.id2label[label]:12} kept {row[chosen]:.4f} of {row.min():.4f} to {row.max():.4f}")


if __name__ == "__main__":
    main()
