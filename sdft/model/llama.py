"""The Llama family: nothing but the mathematics (Touvron et al. 2023, arXiv 2307.09288, section 2.2; GQA 2305.13245).

    tokens (N,) ─embed→ x (N, D)
      L times:  x += o_proj( attend( rope(q), rope(k), v ) )     q, k, v = projections of RMSNorm(x)
                x += down_proj( silu(gate) · up )                gate, up = projections of RMSNorm(x)
    ─RMSNorm→ x (N, D) ─head→ logits (N, V)

The tokens of all documents are concatenated, with no batch dimension and no padding. Only attention relates tokens to
one another. It is an argument, `attend(layer, q, k, v)`, which knows which tokens see which: those of one document in
training, those of a cached sequence in generation. Parameters have Hugging Face's names, so its checkpoints load as is.

Dims: B batch, T time, N packed tokens, D model width, H query heads, K key/value heads, C head width,
F feed-forward width, V vocabulary, L layers.
"""
from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from sdft.kernels.attention import DocumentAttention
from sdft.kernels.rms_norm import rms_norm
from sdft.kernels.rope import rope
from sdft.kernels.swiglu import swiglu
from sdft.model.config import LlamaConfig

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]     # (layer, q (N, H, C), k and v (N, K, C)) → o (N, H, C)


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        D, H, K, C = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.layer, self.head_dim = layer, C
        self.q_proj = nn.Linear(D, H * C, bias=config.attention_bias)
        self.k_proj = nn.Linear(D, K * C, bias=config.attention_bias)
        self.v_proj = nn.Linear(D, K * C, bias=config.attention_bias)
        self.o_proj = nn.Linear(H * C, D, bias=config.output_bias)
        self.q_norm = RMSNorm(C, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(C, config.rms_norm_eps) if config.qk_norm else None

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, rows: Tensor | None = None) -> Tensor:
        heads = (x.shape[0], -1, self.head_dim)
        q = self.q_proj(x).view(heads)                              # (N, D) → (N, H·C) → (N, H, C)
        k = self.k_proj(x).view(heads)                              # (N, D) → (N, K·C) → (N, K, C)
        v = self.v_proj(x).view(heads)                              # (N, K, C)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        o = attend(self.layer, rope(q, cos, sin), rope(k, cos, sin), v).flatten(1)      # (N, H, C) → (N, H·C)
        return self.o_proj(o if rows is None else o[rows])          # (N, D), or (n, D)


class MLP(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        D, width = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(D, width, bias=config.mlp_bias)
        self.up_proj = nn.Linear(D, width, bias=config.mlp_bias)
        self.down_proj = nn.Linear(width, D, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))   # (N, D) → (N, F) → (N, D)


class Layer(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, rows: Tensor | None = None) -> Tensor:
        o = self.self_attn(self.input_layernorm(x), cos, sin, attend, rows)
        x = (x if rows is None else x[rows]) + o                            # (N, D), or (n, D)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        empty = torch.empty(config.vocab_size, config.hidden_size)  # (V, D): loaded later, so not initialised
        self.embed_tokens = nn.Embedding.from_pretrained(empty, freeze=False)
        self.layers = nn.ModuleList(Layer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Llama(nn.Module):
    """A decoder and its head. With config.tie_word_embeddings, the head is the embedding matrix.

    Attention is full, so a model with a sliding window (Mistral) is exact only up to the window's length, which bounds
    config.context_length.
    """

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        D, V = config.hidden_size, config.vocab_size
        self.lm_head = None if config.tie_word_embeddings else nn.Linear(D, V, bias=False)
        self._frequencies = rope_frequencies(config)                # not a buffer: casting the model must not round it

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits (B, T, V) of tokens (B, T); each row is a document that starts at position 0."""
        B, T = tokens.shape
        positions = torch.arange(T, device=tokens.device).repeat(B)                          # (N,), N = B·T
        x = self.hidden(tokens.reshape(-1), positions, DocumentAttention([T] * B))           # (N, D)
        return self.head(x).view(B, T, -1)                                                   # (N, V) → (B, T, V)

    def hidden(self, tokens: Tensor, positions: Tensor, attend: Attend, rows: Tensor | None = None,
               checkpoint: bool = False) -> Tensor:
        """Return the hidden states (N, D), after the final norm, of tokens (N,) at positions (N,).

        rows: indices (n,) of the tokens to return, (n, D); after its attention, the last layer computes only these.
        checkpoint: the backward pass computes each layer's activations again instead of keeping them.
        """
        x = self.model.embed_tokens(tokens)                         # (N,) → (N, D)
        cos, sin = self.rotation(positions)                         # (N, C) each
        for layer in self.model.layers:
            layer_rows = rows if layer is self.model.layers[-1] else None
            if checkpoint:
                x = recompute(layer, x, cos, sin, attend, layer_rows, use_reentrant=False)
            else:
                x = layer(x, cos, sin, attend, layer_rows)
        return self.model.norm(x)

    def head(self, x: Tensor) -> Tensor:
        """Return the logits (n, V) of hidden states (n, D)."""
        return F.linear(x, self.head_weight)

    def rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin (N, C) of the rotary angles at positions (N,), in the model's dtype."""
        if self._frequencies.device != positions.device:
            self._frequencies = self._frequencies.to(positions.device)
        angles = positions.unsqueeze(1).float() * self._frequencies           # (N, 1)·(C/2,) → (N, C/2)
        angles = torch.cat((angles, angles), dim=1)                           # (N, C): both halves rotate alike
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)

    @property
    def head_weight(self) -> Tensor:
        """The matrix (V, D) that maps hidden states to logits."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.embed_tokens.weight.dtype


def rope_frequencies(config: LlamaConfig) -> Tensor:
    """Return θ_i = base^(−2i/C), i < C/2, in radians per position, with config.rope_scaling applied: fp32 (C/2,).

    "linear" divides every frequency by `factor` (Chen et al. 2023, arXiv 2306.15595). "llama3" (Llama 3.1) divides
    those with fewer than low_freq_factor turns within the original context, keeps those with more than
    high_freq_factor, and interpolates between the two.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu") / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents                          # (C/2,)
    scaling = config.rope_scaling
    if not scaling:
        return frequencies
    slowed = frequencies / scaling["factor"]
    if scaling["rope_type"] == "linear":
        return slowed
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0, 1)                         # 0: slowed, 1: kept
    return (1 - keep) * slowed + keep * frequencies
