"""The Space: the demo of diffusers-kts. ``KTS_MODEL`` names another model, of the Hub for a Space with a GPU."""

import os

from diffusers_kts.models import SHOWN_FIRST
from diffusers_kts.space.app import build, launch_options

demo = build(os.environ.get("KTS_MODEL", SHOWN_FIRST))

if __name__ == "__main__":
    demo.queue(max_size=32).launch(**launch_options())
