"""``kts evaluate``: quality, memorization and energies of images that are there."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import rich
import typer
from rich.table import Table

if TYPE_CHECKING:
    from ..evaluate.job import Evaluation


def evaluate(
    images: Annotated[Path, typer.Argument(help="A finished output of kts generate, a folder of pictures, .npz or .npy.")],
    reference: Annotated[
        Path | None, typer.Option(help="Real images: folder, .npz or .npy, or statistics (.npz with mu and sigma).")
    ] = None,
    training_images: Annotated[Path | None, typer.Option(help="For F_mem: folder of pictures, .npz or .npy.")] = None,
    metrics: Annotated[
        str,
        typer.Option(
            help="Of fid, kid, is, precision-recall, fd-dinov2, fd, clip-score, f-mem, kpe, with commas; auto: what can be "
            "measured with the files that are there."
        ),
    ] = "auto",
    inception: Annotated[Path | None, typer.Option(help="torch-fidelity's weight file; else torch's hub cache.")] = None,
    dinov2: Annotated[str | None, typer.Option(help="Folder or Hub id. Default: facebook/dinov2-large.")] = None,
    clip: Annotated[str | None, typer.Option(help="Folder or Hub id. Default: openai/clip-vit-large-patch14.")] = None,
    features: Annotated[
        str | None, typer.Option(help="Space of fd: pixels, module:function, TorchScript or .pt2 file. Default: pixels.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Crop and scale all images to a square of this side.")] = None,
    kid_subset_size: Annotated[int, typer.Option(help="Images in each of KID's 100 subsets.")] = 1000,
    statistics: Annotated[Path | None, typer.Option(help="Also save the reference's statistics in this .npz file.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for evaluation.json and samples.parquet.")] = Path("kts-evaluation"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files of an earlier evaluation.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 64,
) -> None:
    """Measure images against a reference: FID, KID, Inception Score, precision and recall, DINOv2 distance, CLIP score, F_mem,
    energies, and how the energies correlate with every score of a sample."""
    from ..evaluate.job import evaluate

    found = evaluate(
        images,
        reference,
        training_images=training_images,
        metrics=metrics,
        inception=inception,
        dinov2=dinov2,
        clip=clip,
        features=features,
        image_size=image_size,
        kid_subset_size=kid_subset_size,
        statistics=statistics,
        output=output,
        overwrite=overwrite,
        device=device,
        batch_size=batch_size,
    )
    _print(found)


def _print(found: "Evaluation") -> None:
    table = Table("metric", "value", "95 % or deviation", "samples", "against", "measured with")
    for name, number in found.metrics.items():
        spread = f"{number.low:.4g} to {number.high:.4g}" if number.low is not None else ""
        spread = f"deviation {number.deviation:.4g}" if number.deviation is not None else spread
        against = str(number.reference.get("n") or "") if number.reference else ""
        table.add_row(name, f"{number.value:.7g}", spread, str(number.n), against, number.extractor or "")
    rich.print(table)
    for name, c in found.correlations.items():
        interval = f"{c.low:+.3f} to {c.high:+.3f}"
        print(f"Spearman of path energy with {name}: {c.rho:+.3f} ({interval}), p = {c.p_value:.2g}, n = {c.n}")
    for note in found.notes:
        print(f"Note: {note}")
    print("Written: " + ", ".join(str(path) for path in found.files))
