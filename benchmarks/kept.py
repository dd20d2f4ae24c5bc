"""What takes long, kept in a file once it has been done."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def kept(folder: Path, name: str, work: Callable[[], Any]) -> Any:
    """What ``work`` makes, from ``folder/name.pt`` where that is there. The name must say all that the result depends on."""
    path, began = folder / f"{name}.pt", time.perf_counter()
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        torch.save(work(), partial)
        partial.replace(path)
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    return torch.load(path, weights_only=False)
