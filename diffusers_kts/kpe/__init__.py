"""Kinetic path energy: the record, and what fills it."""
