"""Pipelines, and what plugs into those of diffusers."""
