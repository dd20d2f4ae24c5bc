"""How a job is cut: samples into batches, batches into blocks. A block is committed whole, by one rank.

Sample ``i`` belongs to prompt ``i // images_per_prompt``. Neighbors in a batch change a sample's last bits, so the cut
depends on the settings alone, never on how many processes there are or what an earlier run has left to do.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .settings import GenerateSettings


@dataclass(frozen=True)
class Block:
    """Samples ``start`` to ``stop - 1``, drawn in pipeline calls of ``batch_size``."""

    number: int
    start: int
    stop: int
    batch_size: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def batches(self) -> list[range]:
        return [range(i, min(i + self.batch_size, self.stop)) for i in range(self.start, self.stop, self.batch_size)]


@dataclass(frozen=True)
class Plan:
    """The cut of ``num_samples`` into blocks of ``block_size``.

    A block is one batch (imagefolder), the batches of one file (webdataset, parquet), or, where the best of each prompt are
    kept, at least one batch of whole prompts.
    """

    num_samples: int
    images_per_prompt: int
    batch_size: int
    block_size: int

    @classmethod
    def of(cls, settings: GenerateSettings, num_prompts: int) -> "Plan":
        n = settings.images_per_prompt
        size = settings.batch_size
        if settings.format != "imagefolder":
            size *= math.ceil(settings.shard_size / size)
        if settings.keep_top is not None:
            size = n * math.ceil(size / n)
        return cls(num_prompts * n, n, settings.batch_size, size)

    def __len__(self) -> int:
        return math.ceil(self.num_samples / self.block_size)

    def block(self, number: int) -> Block:
        start = number * self.block_size
        return Block(number, start, min(start + self.block_size, self.num_samples), self.batch_size)

    def samples(self, blocks: Iterable[int]) -> int:
        """How many samples the blocks are."""
        return sum(len(self.block(number)) for number in blocks)

    def share(self, part: tuple[int, int], rank: int, world: int, steal: bool) -> Iterator[int]:
        """Numbers of the blocks for one rank: its own first, then, with ``steal``, those of the other ranks of this part."""
        i, n = part
        mine = range(i, len(self), n)
        yield from mine[rank::world]
        for other in range(1, world) if steal else ():
            yield from mine[(rank + other) % world :: world]
