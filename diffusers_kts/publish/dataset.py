"""The card of a data set that ``kts generate`` drew: what the job wrote about itself, and what a reader of the Hub needs."""

from pathlib import Path
from typing import Any

from ..generate.assemble import assembled
from ..generate.ledger import Ledger
from ..generate.storage import Store
from ..generate.upload import data_card

USE = """
## How to use

With `datasets`: `load_dataset("owner/name")`. To draw one sample again, alone, take the row's `generator_seed`:
`torch.Generator().manual_seed(generator_seed)` gives its noise.

## Intended use

Research about the energy of samples, selection by energy, and memorization.

## Limits

The images are synthetic, with the faults and the biases of the model that drew them, and may repeat its training images.
Energies compare within one model and one schedule; across resolutions only `per_dim` does.

## Provenance

Drawn by `kts generate` with the settings above; the model's own licence holds for what may be done with its images.
"""


def data_set_card(folder: Path) -> str:
    """The text of ``README.md`` for a finished output.

    Raises:
        ValueError: the folder is no output of ``kts generate``, or is not finished.
    """
    from huggingface_hub import DatasetCard

    store = Store(str(folder))
    manifest = Ledger(store).manifest() if folder.is_dir() else None
    sums = assembled(store, contents=False) if manifest is not None else None
    if manifest is None or sums is None:
        raise ValueError(f"{folder} is no finished output of kts generate; run the job, or give its --output as --source.")
    written: Any = DatasetCard(data_card(manifest, sums, [path.name for path in folder.iterdir()]))
    written.data.license = "other"
    written.data.license_name = "as-the-model"
    written.data.tags = [*(written.data.tags or []), "arxiv:2602.07928"]
    return f"{written}".rstrip() + "\n" + USE
