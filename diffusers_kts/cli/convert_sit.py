"""``kts convert-sit``: published SiT weights as a pipeline folder."""

from ..convert_sit.settings import ConvertSiTSettings
from .options import options_of


@options_of(ConvertSiTSettings)
def convert_sit(settings: ConvertSiTSettings) -> None:
    """Convert published SiT weights (S, B, L, XL; patches of 2, 4, 8) to a folder that from_pretrained loads."""
    from ..convert_sit.job import run_convert_sit

    made = run_convert_sit(settings)
    size = f"images of {made.image_size}x{made.image_size}" if made.image_size else "latents only, without a VAE"
    classes = "classes by name or number" if made.named_classes else "classes by number (--labels gives them names)"
    print(f"{made.name}: {made.parameters / 1e6:.1f} million parameters, {size}, {classes}")
    print(f"The network's own time runs from {made.time.replace('-', ' ')}: {made.reason}.")
    print(f"Written: {settings.output}")
