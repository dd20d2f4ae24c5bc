"""SiTTransformer2DModel: the class-conditional flow transformer SiT (Ma et al., arXiv 2401.08740), in diffusers' convention.

`DiTTransformer2DModel` has the same blocks and cannot carry SiT's weights: it spaces its 128 time frequencies by 1/127 of the
exponent where SiT has 1/128, takes ``1000 sigma`` where SiT takes ``t = 1 - sigma``, and embeds time and label in every
block where SiT does so once.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import AttentionMixin, FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import LabelEmbedding, PatchEmbed, TimestepEmbedding, Timesteps, get_2d_sincos_pos_embed
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import AdaLayerNormContinuous, AdaLayerNormZero
from torch import nn

TIME_FREQUENCIES = 256  # sines and cosines
LABEL_DROPOUT = 0.1  # in training; its slot is the label of no class


class SiTBlock(nn.Module):
    """A transformer block with adaLN-Zero (Peebles and Xie, arXiv 2212.09748): (B, tokens, width) in and out."""

    def __init__(self, width: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.norm1 = AdaLayerNormZero(width)
        self.attn = Attention(query_dim=width, heads=num_heads, dim_head=head_dim, bias=True)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.ff = FeedForward(width, activation_fn="gelu-approximate")

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        normed, gate, ff_shift, ff_scale, ff_gate = self.norm1(x, emb=condition)
        x = x + gate[:, None] * self.attn(normed)
        normed = self.norm2(x) * (1 + ff_scale[:, None]) + ff_shift[:, None]
        return x + ff_gate[:, None] * self.ff(normed)


class SiTTransformer2DModel(ModelMixin, ConfigMixin, AttentionMixin):
    """The velocity network SiT. ``kts convert-sit`` makes one of published weights; the defaults are SiT-XL/2 at 256x256.

    As every flow transformer of diffusers it takes ``num_train_timesteps * sigma`` and gives ``dx/dsigma``.

    Args:
        sample_size (`int`, defaults to 32): side of the latents.
        patch_size (`int`, defaults to 2): side of a token.
        in_channels (`int`, defaults to 4): channels of the latents, and of the velocity.
        num_layers (`int`, defaults to 28): blocks.
        num_attention_heads (`int`, defaults to 16): heads.
        attention_head_dim (`int`, defaults to 72): channels of a head.
        num_embeds_ada_norm (`int`, defaults to 1000): classes; the label after the last one stands for no class.
        num_train_timesteps (`int`, defaults to 1000): the scheduler's.
        reversed_time (`bool`, defaults to False): the network itself takes ``sigma`` and predicts ``dx/dsigma``, as
            weights of REPA do; False for SiT's own, which take ``t = 1 - sigma`` and predict ``dx/dt``.
    """

    __module__ = "diffusers_kts"  # diffusers writes this into model_index.json and looks the class up there
    _repeated_blocks = ["SiTBlock"]
    _no_split_modules = ["SiTBlock"]
    _skip_layerwise_casting_patterns = ["patch_embed", "norm"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        num_layers: int = 28,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        num_embeds_ada_norm: int = 1000,
        num_train_timesteps: int = 1000,
        reversed_time: bool = False,
    ) -> None:
        super().__init__()
        width = num_attention_heads * attention_head_dim
        self.patch_embed = PatchEmbed(sample_size, sample_size, patch_size, in_channels, width, pos_embed_type=None)
        side = sample_size // patch_size
        positions = get_2d_sincos_pos_embed(width, side, base_size=side)
        # fixed, but saved: published weights hold their own
        self.pos_embed = nn.Parameter(positions.float()[None], requires_grad=False)
        self.time_proj = Timesteps(TIME_FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.timestep_embedder = TimestepEmbedding(TIME_FREQUENCIES, width)
        self.class_embedder = LabelEmbedding(num_embeds_ada_norm, width, LABEL_DROPOUT)
        self.transformer_blocks = nn.ModuleList(
            SiTBlock(width, num_attention_heads, attention_head_dim) for _ in range(num_layers)
        )
        self.norm_out = AdaLayerNormContinuous(width, width, elementwise_affine=False, eps=1e-6)
        self.proj_out = nn.Linear(width, patch_size**2 * in_channels)

    def forward(
        self, hidden_states: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor, return_dict: bool = True
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """The velocity ``dx/dsigma``, (B, C, H, W).

        Args:
            hidden_states (`torch.Tensor`): (B, C, H, W) noisy latents.
            timestep (`torch.Tensor`): (B,) ``num_train_timesteps * sigma``.
            class_labels (`torch.Tensor`): (B,) int64, ``num_embeds_ada_norm`` for no class.
            return_dict (`bool`, defaults to True): a `Transformer2DModelOutput`, or a tuple.
        """
        time = timestep / self.config.num_train_timesteps
        if not self.config.reversed_time:
            time = 1 - time
        frequencies = self.time_proj(time).to(hidden_states.dtype)
        condition = self.timestep_embedder(frequencies) + self.class_embedder(class_labels)
        x = self.patch_embed(hidden_states) + self.pos_embed
        for block in self.transformer_blocks:
            x = block(x, condition)
        velocity = self._image(self.proj_out(self.norm_out(x, condition)))
        if not self.config.reversed_time:
            velocity = -velocity
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)

    def _image(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, tokens, patch * patch * C), channels last, as (B, C, H, W)."""
        patch, side = self.config.patch_size, self.config.sample_size // self.config.patch_size
        pixels = tokens.unflatten(2, (patch, patch, -1)).unflatten(1, (side, side))
        return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
