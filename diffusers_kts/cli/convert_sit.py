"""``kts convert-sit``: published SiT weights as a pipeline folder."""

from pathlib import Path
from typing import Annotated

import typer


def convert_sit(
    weights: Annotated[Path, typer.Argument(help="SiT-XL-2-256.pt, a training checkpoint of SiT or REPA, or .safetensors.")],
    output: Annotated[Path, typer.Argument(help="Folder to make; must not exist or be empty.")],
    vae: Annotated[
        str | None, typer.Option(help="Folder or Hub id of the VAE. Default: stabilityai/sd-vae-ft-ema.", show_default=False)
    ] = None,
    no_vae: Annotated[bool, typer.Option("--no-vae", help="Leave the VAE out: the pipeline then gives latents.")] = False,
    labels: Annotated[
        Path | None, typer.Option(help="Text file, a class name a line. Default: ImageNet's, if torchvision is installed.")
    ] = None,
    reversed_time: Annotated[
        bool | None,
        typer.Option(
            help="The network is told the noise level and points to the noise (REPA). Default: if it has REPA's projectors.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Convert published SiT weights (S, B, L, XL; patches of 2, 4, 8) to a folder that from_pretrained loads."""
    from diffusers.utils.logging import disable_progress_bar

    from ..convert_sit import VAE, convert_sit

    disable_progress_bar()
    if no_vae and vae is not None:
        raise ValueError("--vae and --no-vae are both given; give one of them.")
    made = convert_sit(weights, output, None if no_vae else vae or VAE, labels, reversed_time)
    size = f"images of {made.image_size}x{made.image_size}" if made.image_size else "latents only, without a VAE"
    classes = "classes by name or number" if made.named_classes else "classes by number (--labels gives them names)"
    print(f"{made.name}: {made.parameters / 1e6:.1f} million parameters, {size}, {classes}")
    for note in made.notes:
        print(f"Note: {note}.")
    print(f"Written: {output}")
