"""``accelerate launch -m diffusers_kts.generate``: the command ``kts generate`` on every process."""

import sys

from ..cli.app import main

sys.argv.insert(1, "generate")
main()
