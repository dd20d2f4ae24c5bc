"""KPE and KTS for Hugging Face diffusers."""

__version__ = "0.1.0.dev0"
