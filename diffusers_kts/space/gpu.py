"""ZeroGPU: on such a Space the function that draws runs in a process that holds the GPU, and comes back with its result.

Import this before torch: ``spaces`` must come first. Elsewhere there is no ``spaces``, and functions stay what they are.
"""

from collections.abc import Callable
from typing import Any

try:
    import spaces
except ImportError:
    spaces = None

SECONDS = 120  # of the GPU, asked for one drawing


def on_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    return function if spaces is None else spaces.GPU(duration=SECONDS)(function)
