"""SiT restated from the papers (DiT, arXiv 2212.09748; SiT, arXiv 2401.08740), with plain operations and the published
weights' names: what the conversion and `SiTTransformer2DModel` are compared with."""

import math

import torch
from torch import nn

LAYOUTS = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}  # blocks, width, heads


class ReferenceSiT(nn.Module):
    """Predicts dx/dt at flow time t; with ``learn_sigma`` the last layer has a second half, which SiT does not use."""

    def __init__(self, depth, width, heads, patch, side=32, channels=4, classes=1000, learn_sigma=True):
        super().__init__()
        self.heads, self.patch, self.channels, self.grid = heads, patch, channels, side // patch
        self.out_channels = channels * (2 if learn_sigma else 1)

        def holder(**parts):
            module = nn.Module()
            for name, part in parts.items():
                setattr(module, name, part)
            return module

        def modulation(n):
            return nn.Sequential(nn.SiLU(), nn.Linear(width, n * width))

        self.x_embedder = holder(proj=nn.Conv2d(channels, width, patch, patch))
        self.t_embedder = holder(mlp=nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width)))
        self.y_embedder = holder(embedding_table=nn.Embedding(classes + 1, width))
        self.pos_embed = nn.Parameter(positions(self.grid, width).float()[None], requires_grad=False)
        self.blocks = nn.ModuleList(
            holder(
                attn=holder(qkv=nn.Linear(width, 3 * width), proj=nn.Linear(width, width)),
                mlp=holder(fc1=nn.Linear(width, 4 * width), fc2=nn.Linear(4 * width, width)),
                adaLN_modulation=modulation(6),
            )
            for _ in range(depth)
        )
        self.final_layer = holder(linear=nn.Linear(width, patch * patch * self.out_channels), adaLN_modulation=modulation(2))

    def forward(self, x, t, labels):
        conditions = self.t_embedder.mlp(frequencies(t)) + self.y_embedder.embedding_table(labels)
        h = self.x_embedder.proj(x).flatten(2).mT + self.pos_embed
        for block in self.blocks:
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = block.adaLN_modulation(conditions)[:, None].chunk(6, 2)
            h = h + gate_a * self.attention(block.attn, standardised(h) * (1 + scale_a) + shift_a)
            hidden = block.mlp.fc1(standardised(h) * (1 + scale_m) + shift_m)
            hidden = hidden / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
            h = h + gate_m * block.mlp.fc2(hidden)
        shift, scale = self.final_layer.adaLN_modulation(conditions)[:, None].chunk(2, 2)
        h = self.final_layer.linear(standardised(h) * (1 + scale) + shift)
        image = x.new_empty(len(x), self.out_channels, x.shape[2], x.shape[3])
        for token in range(self.grid**2):  # row by row; within a token rows, then columns, then channels
            top, left = (self.patch * n for n in divmod(token, self.grid))
            pixels = h[:, token].reshape(len(x), self.patch, self.patch, self.out_channels)
            image[:, :, top : top + self.patch, left : left + self.patch] = pixels.movedim(3, 1)
        return image[:, : self.channels]

    def attention(self, part, h):
        q, k, v = (z.unflatten(2, (self.heads, -1)).transpose(1, 2) for z in part.qkv(h).chunk(3, 2))
        weights = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1)
        return part.proj((weights @ v).transpose(1, 2).flatten(2))

    def guided(self, x, t, labels, scale, channels):
        """Guidance on the first ``channels``; SiT samples with 3, the others are as without."""
        with_class = self(x, t, labels)
        without = self(x, t, torch.full_like(labels, len(self.y_embedder.embedding_table.weight) - 1))
        first = without + scale * (with_class - without)
        return torch.cat([first[:, :channels], with_class[:, channels:]], 1)


def standardised(h):
    return (h - h.mean(2, keepdim=True)) / torch.sqrt(h.var(2, unbiased=False, keepdim=True) + 1e-6)


def frequencies(t):
    angles = t[:, None] * 10000 ** (-torch.arange(128, dtype=t.dtype) / 128)
    return torch.cat([angles.cos(), angles.sin()], 1)


def positions(grid, width):
    """(tokens, width): a quarter each of sines and cosines of the column, then of the row."""
    omega = 10000 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * omega for axis in (columns, rows)]
    return torch.cat([wave(a) for a in angles for wave in (torch.sin, torch.cos)], 1)


def random_sit(layout, patch, **options):
    """A `ReferenceSiT` of a published size (or of blocks, width, heads) with random weights, none of them 0, so that every
    part shows in the result, but for the half of the last layer that SiT does not train."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ReferenceSiT(*LAYOUTS.get(layout, layout), patch, **options)
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.5 / math.sqrt(parameter.shape[-1]) if parameter.ndim > 1 else 0.1)
        for parameter in model.final_layer.linear.parameters():
            parameter.data.unflatten(0, (patch**2, -1))[:, model.channels :] = 0
    return model.eval().requires_grad_(False)
