"""The KTS schedulers, a file each, and what they share."""
