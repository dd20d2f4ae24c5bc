"""``samples.parquet`` of an audit."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from ..seeding import sample_seed
from .measures import Findings
from .sampling import PlainSampler
from .settings import AuditSettings


def samples_table(sampler: PlainSampler, settings: AuditSettings, findings: Mapping[str, Findings]) -> pa.Table:
    """A row per sampler (or checkpoint) and sample; energies are null for samples made from others'."""
    samples, tables = range(settings.num_samples), []
    recorded = next(found.trace for found in findings.values() if found.trace is not None)
    for name, found in findings.items():
        columns: dict[str, Any] = {
            "sampler": [name] * len(samples),
            "sample": list(samples),
            "generator_seed": [sample_seed(settings.seed, i) for i in samples],
            "subject": [sampler.subject(i) for i in samples],
        }
        memory = found.memorization
        for k in (0, 1):
            columns[f"d{k + 1}"] = memory.distances[:, k].tolist()
            columns[f"training_image_{k + 1}"] = memory.indices[:, k].tolist()
        columns["memorized"] = memory.is_memorized.tolist()
        for key, values in (found.trace or recorded).to_dict().items():
            unknown = pa.nulls(len(samples), pa.array(values).type)
            columns[key] = columns.get(key, values if found.trace is not None else unknown)
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)


def diverged(findings: Mapping[str, Findings]) -> list[str]:
    """A note for each sampler with samples that are no pictures."""
    return [
        f"{bad} samples of {found.heading} diverged; they count as black pictures."
        for found in findings.values()
        if found.trace is not None and (bad := int((found.trace.nonfinite >= 0).sum()))
    ]
