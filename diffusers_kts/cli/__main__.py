"""``python -m diffusers_kts.cli``."""

from .app import main

main()
