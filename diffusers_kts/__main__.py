"""``python -m diffusers_kts``: the command ``kts``."""

from .cli.app import main

if __name__ == "__main__":
    main()
