"""Tiny random-weight versions of diffusers' flow pipelines, a file per family; `registry` collects them."""
