"""Shape any flow-matching pipeline: SD3.5, FLUX, Wan, LTX, ... Plain and shaped from the same noise, with their energies.

python examples/swap_scheduler.py                # the embedded text-to-image model
python examples/swap_scheduler.py stabilityai/stable-diffusion-3.5-medium "a red fox in fresh snow" --beta-0 0.02
python examples/swap_scheduler.py Wan-AI/Wan2.1-T2V-1.3B-Diffusers "waves at dusk" --num-frames 33   # a video
"""

import argparse

import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import export_to_gif

from diffusers_kts import KTSFlowMatchScheduler, embedded_model
from diffusers_kts.models import GUIDANCE, NAMES, SHOWN_FIRST


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=SHOWN_FIRST, help="Hub id, folder or embedded flow-matching pipeline")
    parser.add_argument("prompt", nargs="?", default="noto emoji of a tangerine")
    parser.add_argument("--alpha-0", type=float, default=0.01)
    parser.add_argument("--beta-0", type=float, default=0.01)
    parser.add_argument("--num-inference-steps", type=int, default=28)
    parser.add_argument("--guidance-scale", type=float, help="by default the pipeline's own")
    parser.add_argument("--size", type=int, help="height and width; by default the pipeline's own")
    parser.add_argument("--num-frames", type=int, help="of a video")
    parser.add_argument("--output", default="swapped")
    args = parser.parse_args()

    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    model = embedded_model(args.model) if args.model in NAMES else args.model
    pipe = DiffusionPipeline.from_pretrained(model, dtype=dtype).to(device)
    call = {"prompt": args.prompt, "num_inference_steps": args.num_inference_steps}
    if args.size:
        call |= {"height": args.size, "width": args.size}
    if args.guidance_scale is None:
        args.guidance_scale = GUIDANCE.get(args.model)
    if args.guidance_scale is not None:
        call["guidance_scale"] = args.guidance_scale
    if args.num_frames:
        call["num_frames"] = args.num_frames

    config = pipe.scheduler.config
    for name, shaping in {
        "plain": {"alpha_0": 0.0, "beta_0": 0.0},
        "shaped": {"alpha_0": args.alpha_0, "beta_0": args.beta_0},
    }.items():
        pipe.scheduler = KTSFlowMatchScheduler.from_config(config, **shaping)  # this is all that changes
        out = pipe(**call, generator=torch.Generator().manual_seed(0))
        if hasattr(out, "images"):
            out.images[0].save(f"{args.output}-{name}.png")
        else:
            export_to_gif(VaeImageProcessor.numpy_to_pil(out.frames[0]), f"{args.output}-{name}.gif")
        energy = pipe.scheduler.kpe.path_energy.per_dim
        print(f"{name}: energy per dimension {energy.total[0]:.4f}, of which late {energy.late[0]:.4f}")


if __name__ == "__main__":
    main()
