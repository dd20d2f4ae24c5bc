"""``python -m diffusers_kts`` is ``kts``."""

from .cli import main

main()
