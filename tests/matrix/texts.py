"""Tokenizers and small language models of several families; all byte-level and with random weights."""

from collections.abc import Sequence
from typing import Any

from tiny_pipelines import T5_DIM, VOCAB_SIZE, _tokenizer
from transformers import PreTrainedTokenizerFast

LM: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": T5_DIM,
    "intermediate_size": 2 * T5_DIM,
    "num_hidden_layers": 4,  # pipelines take the hidden states of the last layers but two
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
QWEN_ROPE: dict[str, Any] = {"rope_scaling": {"rope_type": "default", "type": "mrope", "mrope_section": [1, 1, 2]}}
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{{ part['text'] if 'text' in part else '<image>' }}{% endfor %}{% endif %}{% endfor %}"
)


def lm_tokenizer(special: Sequence[str] = (), padding_side: str = "right") -> PreTrainedTokenizerFast:
    """A tokenizer with ``special`` tokens of one piece, and a chat template that strings the messages together."""
    tokenizer = _tokenizer(512, pad="<pad>", eos="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.padding_side = padding_side
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
