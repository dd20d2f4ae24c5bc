"""A finished output as a data set on the Hub, with a card that says how it was made."""

from typing import Any

from ..hub import check_repo, upload
from .assemble import CANDIDATES, METADATA
from .ledger import Manifest
from .settings import GenerateSettings
from .storage import PRIVATE, Store

DATA_FILES: dict[str, Any] = {
    "imagefolder": [METADATA, "images/**", "videos/**", "frames/**"],
    "webdataset": "shards/*.tar",
    "parquet": "data/*.parquet",
}
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10**7, "1M<n<10M"))


def data_card(manifest: Manifest, sums: dict[str, int], folders: list[str]) -> str:
    """The text of ``README.md``: what the data set is, its columns and settings.

    Args:
        manifest: of the output.
        sums: what the output holds, counted.
        folders: top-level names of the output; only patterns that match something are named to the Hub.
    """
    from huggingface_hub import DatasetCardData

    identity = manifest.identity
    patterns = DATA_FILES[identity["format"]]
    if isinstance(patterns, list):
        patterns = [pattern for pattern in patterns if pattern.partition("/")[0] in folders]
    head = DatasetCardData(
        pretty_name="Generated samples with kinetic path energies",
        tags=["synthetic", "diffusers", "diffusers-kts", "kinetic-path-energy"],
        size_categories=[next((name for n, name in SIZES if sums["samples"] < n), "n>10M")],
        configs=[{"config_name": "default", "data_files": patterns}],
    )
    settings = {name: value for name, value in identity.items() if value not in (None, {}, False)}
    rows = "\n".join(f"| {name} | `{value}` |" for name, value in settings.items())
    noted = "\n".join(f"| {name} | {value} |" for name, value in manifest.noted.items())
    screening = f" Screening saved {sums['calls_saved']} of them." if sums["calls_saved"] else ""
    candidates = f"\n`{CANDIDATES}` has the energies of all candidates.\n" if identity.get("keep_top") is not None else ""
    detected = ""
    if (action := identity.get("on_memorized")) is not None:
        detected = (
            "\nA detector judged each sample: `memorization_probability`, that it repeats a training image, and whether it is "
            f"`flagged`. What was done with flagged ones: {action}.\n"
        )
    return f"""---
{head.to_yaml()}
---

# Generated samples with kinetic path energies

{sums["samples"]} samples of `{manifest.noted["model"]}`, drawn with {sums["calls"]} network calls (summed over
samples).{screening}

Each row has the prompt or class, the seed (`generator_seed` draws the same noise alone), the sampler's settings, and the
kinetic path energy `E = 1/2 sum_i ||v_i||^2 |sigma_(i+1) - sigma_i|` in squared latent units: `path_energy_*` of the motion
that happened, `model_energy_*` of the network's own field, each in total, before `tau_split` (early) and after it (late);
`per_dim` is `path_energy_total` per latent dimension. Source: arXiv 2602.07928, measured with diffusers-kts. `excess`, not
from the paper, is the path energy beyond that of the straight, even way to the same place.
{detected}{candidates}
## Settings

| setting | value |
|---|---|
{rows}

## Made with

| what | version |
|---|---|
{noted}
"""


def check_hub(settings: GenerateSettings, store: Store) -> None:
    """Raises ValueError for an output that cannot be uploaded, before anything is drawn."""
    check_repo(settings.push_to_hub or "", "push_to_hub")
    if not store.is_local:
        raise ValueError(f"push_to_hub needs a local output, not {store.url}; or write to hf://datasets/owner/name directly.")


def write_card(store: Store, manifest: Manifest, sums: dict[str, int]) -> None:
    """Write ``README.md``, from which `datasets` knows which files are the data, whatever else is in the folder."""
    folders = [name.rstrip("/").rpartition("/")[2] for name in store.names("")]
    store.write("README.md", data_card(manifest, sums, folders).encode())


def push_to_hub(settings: GenerateSettings, store: Store, manifest: Manifest, sums: dict[str, int]) -> str:
    """Upload the folder with its card; returns the address of the data set. Repeated, it sends only what has changed.

    Raises:
        OSError: the Hub cannot be reached or refuses.
    """
    write_card(store, manifest, sums)
    message = f"{sums['samples']} samples by kts generate"
    repo = str(settings.push_to_hub)
    return upload(store.root, repo, "dataset", settings.public, message, [f"{PRIVATE}/*"], what="the data set")
