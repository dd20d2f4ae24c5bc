"""The columns of the metadata that are ours, and their types."""

COLUMNS: dict[str, type] = {
    "file_name": str, "frame": int, "index": int, "prompt": str, "label": int, "class_name": str, "negative_prompt": str,
    "prompt_index": int, "candidate": int, "rank": int, "seed": int, "generator_seed": int,
    "path_energy_total": float, "path_energy_early": float, "path_energy_late": float,
    "model_energy_total": float, "model_energy_early": float, "model_energy_late": float, "per_dim": float,
    "network_calls": int, "guidance_scale": float, "scheduler": str,
    "alpha_0": float, "beta_0": float, "tau_split": float, "k": float,
    "early_schedule": str, "late_schedule": str, "touchdown": float,
}  # fmt: skip
RESERVED = {*COLUMNS, "image", "video"}
