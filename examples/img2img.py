"""Image to image with shaping: the run starts late, so most of it is landing, and the record says where it began.

python examples/img2img.py stabilityai/stable-diffusion-3.5-medium photo.png "as a watercolor" --strength 0.6
"""

import argparse

import torch
from diffusers import AutoPipelineForImage2Image
from diffusers.utils import load_image

from diffusers_kts import KTSFlowMatchScheduler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("image")
    parser.add_argument("prompt")
    parser.add_argument("--strength", type=float, default=0.6)
    parser.add_argument("--num-inference-steps", type=int, default=28)
    parser.add_argument("--output", default="img2img.png")
    args = parser.parse_args()

    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    pipe = AutoPipelineForImage2Image.from_pretrained(args.model, dtype=dtype).to(device)
    pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config, alpha_0=0.0, beta_0=0.01)
    image = load_image(args.image)
    call = {"image": image, "strength": args.strength, "num_inference_steps": args.num_inference_steps, "height": image.height}
    out = pipe(args.prompt, **call, width=image.width, generator=torch.Generator().manual_seed(0))
    out.images[0].save(args.output)
    print(pipe.scheduler.kpe)
    print(pipe.scheduler.schedule_table())


if __name__ == "__main__":
    main()
