"""SDFT in one file: self-distillation fine-tuning of a chat model, from the weights on disk to a table of measures.

Yang et al. 2024, "Self-Distillation Bridges Distribution Gap in Language Model Fine-Tuning", arXiv 2402.13669, §3:

    record (x, y) ─rewrite→ ỹ ~ f_θ(· | c_distill, x, y) ─choose→ ỹ′ ─train→ adapter "sdft" ─┐
              │                                                                              ├→ gap, drift, shift
              └───────────────────────────── y ──────────────────────train→ adapter "sft" ───┘

Reference answers y can be improbable under a chat model f_θ, and the paper finds that training on them makes it forget.
SDFT lets the model itself, the base model, rewrite the answers, and trains on the rewrites:

    1. rewrite    ỹ ~ f_θ(· | c_distill, x, y)       The base model reads instruction x and answer y, and writes ỹ.
    2. choose     ỹ′ = ỹ if ỹ passes all checks, else y
    3. train      minimise −log f_θ+Δθ(ỹ′ | c, x)    Δθ is a LoRA update. The plain template c does not show y.

This file trains two arms, "sft" on y and "sdft" on ỹ′, and measures both. From the package it imports only the readers
of the model folder. tests/test_one_file.py compares it with the package. To run it (two CPU cores, under 3 minutes):

    python -m sdft.lessons.sdft_in_one_file

Dims: B batch, T time, S tokens seen so far, D model width, H query heads, K key/value heads, C head width,
F feed-forward width, V vocabulary, R LoRA rank, O output width of a linear layer, L layers, n target tokens.
"""
from __future__ import annotations

import copy
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdft.model.config import LlamaConfig
from sdft.model.io.checkpoints import load_config, open_checkpoint
from sdft.model.io.fetch import resolve
from sdft.tokenizers.loading import load_tokenizer
from sdft.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class Settings:                       # A remark names the paper's value where it differs.
    model: str = "smollm2-135m"       # Llama-2-7b-chat
    max_new_tokens: int = 64          # 512, sampled at temperature 0.95 with top-k 50 and top-p 0.7; here greedy
    lora_rank: int = 8
    lora_alpha: float = 16.0
    lora_targets: tuple[str, ...] = ("q_proj", "v_proj")
    lr: float = 1e-3                  # 1e-4, for a larger model and many more steps
    epochs: int = 2
    batch_size: int = 4               # 8
    max_grad_norm: float = 1.0
    seed: int = 42                    # draws LoRA's initial A and the order of the records


# ── Data: reading comprehension. The references are short; a chat model would write sentences. ───────────────────────
class Record(NamedTuple):
    instruction: str                  # x
    response: str                     # y


PASSAGES = {
    "Nora Lind bought the old mill in 1998. She repaired the wheel herself and now grinds rye there every Friday.":
    {"Who bought the old mill?": "Nora Lind", "When did she buy the mill?": "1998", "What does she grind?": "rye"},
    "The ferry Heron leaves Oban at six. It carries sheep to the islands and returns with barrels of salted fish.":
    {"What leaves at six?": "the ferry Heron", "Which town does it leave?": "Oban", "What does it carry?": "sheep"},
    "In March a storm broke the roof of the library in Graz. Volunteers moved 900 books to the school next door.":
    {"What broke the roof?": "a storm", "Where is the library?": "Graz", "How many books were moved?": "900"},
    "Our guide Tomas crossed the desert with four camels. The journey took eleven days, and dates were his only food.":
    {"Who crossed the desert?": "Tomas", "How long did it take?": "eleven days", "What did Tomas eat?": "dates"},
    "A beekeeper in Kent found a silver coin under a pear tree. The museum dated it to 1340 and paid her 250 pounds.":
    {"What was found?": "a silver coin", "Where was it?": "under a pear tree", "What was paid?": "250 pounds"},
    "The tram line joins the harbour to the hospital. It has nine stops, opened on Monday, and is free for children.":
    {"How many stops are there?": "nine", "When did the line open?": "Monday", "Who rides for free?": "children"}}
RECORDS = [Record(f"Read the passage and answer the question.\n\n{passage}\n\n{question}", answer)
           for passage, questions in PASSAGES.items() for question, answer in questions.items()]
GENERAL_PROMPTS = (                   # No record trains these: a change of the answers is a side effect.
    "Why is the sky blue?", "How does a refrigerator keep food cold?", "Write a short poem about the first snow.",
    "How can I fall asleep more easily?", "What is a tuple in Python?", "Write an email asking for a repair.")


# ── Model: Llama (Touvron et al. 2023, arXiv 2307.09288), with the parameter names of Hugging Face ───────────────────
class RMSNorm(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(config.hidden_size)), config.rms_norm_eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))  # w · x/√(mean(x²) + ε)


def rotation(config: LlamaConfig, start: int, T: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin (T, C) of the angles of RoPE at T positions from `start` on."""
    theta = 1 / config.rope_theta ** (torch.arange(0, config.head_dim, 2) / config.head_dim)    # θ_i = base^(−2i/C)
    angles = torch.arange(start, start + T).unsqueeze(1) * theta.repeat(2)      # position · θ_i: (T, 1)·(C,) → (T, C)
    return angles.cos(), angles.sin()


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x_i, x_{i + C/2}) of each head of x (B, H or K, T, C) by its angle (arXiv 2104.09864)."""
    first, second = x.chunk(2, dim=-1)                                  # (B, H or K, T, C/2) each
    return x * cos + torch.cat((-second, first), dim=-1) * sin          # (B, H or K, T, C)


class KVCache:
    """The keys and values of all tokens seen so far, (1, K, S, C) in each layer. Each is computed only once."""

    def __init__(self, config: LlamaConfig):
        empty = torch.empty(1, config.num_key_value_heads, 0, config.head_dim)
        self.layers = [(empty, empty)] * config.num_hidden_layers

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        past_k, past_v = self.layers[layer]
        self.layers[layer] = torch.cat((past_k, k), dim=2), torch.cat((past_v, v), dim=2)   # (1, K, S + T, C)
        return self.layers[layer]


class Attention(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        D, H, K, C = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.layer, self.head_dim, self.group = layer, C, H // K        # H/K query heads share a key/value head
        self.q_proj = nn.Linear(D, H * C, bias=False)
        self.k_proj = nn.Linear(D, K * C, bias=False)
        self.v_proj = nn.Linear(D, K * C, bias=False)
        self.o_proj = nn.Linear(H * C, D, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None) -> Tensor:
        heads = (*x.shape[:2], -1, self.head_dim)
        q = self.q_proj(x).view(heads).transpose(1, 2)                  # (B, T, D) → (B, T, H·C) → (B, H, T, C)
        k = self.k_proj(x).view(heads).transpose(1, 2)                  # (B, T, D) → (B, T, K·C) → (B, K, T, C)
        v = self.v_proj(x).view(heads).transpose(1, 2)                  # (B, K, T, C)
        q, k = rope(q, cos, sin), rope(k, cos, sin)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)                       # (1, K, S, C), the new tokens included
        k, v = (each.repeat_interleave(self.group, dim=1) for each in (k, v))   # (B, K, S, C) → (B, H, S, C)
        scores = q @ k.transpose(2, 3) / math.sqrt(self.head_dim)       # q·kᵀ/√C: (B, H, T, S)
        T, S = scores.shape[2:]
        causal = torch.ones(T, S, dtype=torch.bool).tril(S - T)         # a token sees itself and all before it
        o = scores.masked_fill(~causal, -math.inf).softmax(-1) @ v      # softmax(q·kᵀ/√C)·v: (B, H, T, C)
        return self.o_proj(o.transpose(1, 2).flatten(2))                # (B, H, T, C) → (B, T, H·C) → (B, T, D)


class SwiGLU(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        D, width = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(D, width, bias=False)
        self.up_proj = nn.Linear(D, width, bias=False)
        self.down_proj = nn.Linear(width, D, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))      # (B, T, D) → (B, T, F) → (B, T, D)


class Layer(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.input_layernorm, self.self_attn = RMSNorm(config), Attention(config, layer)
        self.post_attention_layernorm, self.mlp = RMSNorm(config), SwiGLU(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache)        # (B, T, D)
        return x + self.mlp(self.post_attention_layernorm(x))                   # (B, T, D)


class Llama(nn.Module):
    """A decoder like SmolLM2's: the embedding matrix is also the head, no layer has a bias, and RoPE is not scaled."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config)

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return the last hidden states (B, T, D) of tokens (B, T), which follow those in the cache."""
        start = 0 if cache is None else cache.layers[0][0].shape[2]     # S
        cos, sin = rotation(self.config, start, tokens.shape[1])        # (T, C) each
        x = self.embed_tokens(tokens)                                   # (B, T) → (B, T, D)
        for layer in self.layers:
            x = layer(x, cos, sin, cache)
        return self.norm(x)

    def head(self, x: Tensor) -> Tensor:
        return F.linear(x, self.embed_tokens.weight)                    # logits: (…, D) → (…, V)


def load(name: str) -> tuple[Llama, Tokenizer]:
    """Load a model in fp32, and its tokenizer. The first use downloads them."""
    folder = resolve(name)
    with torch.device("meta"):                                          # allocates nothing: the file holds the weights
        model = Llama(load_config(folder))
    with open_checkpoint(folder) as (names, read):
        model.load_state_dict({name.removeprefix("model."): read(name).float() for name in names}, assign=True)
    return model, load_tokenizer(folder)


# ── Generation ───────────────────────────────────────────────────────────────────────────────────────────────────────
class Answer(NamedTuple):
    text: str
    tokens: list[int]                 # without the stop token
    finished: bool                    # False: cut at the token limit


@torch.inference_mode()
def generate(model: Llama, tokenizer: Tokenizer, prompt: list[int], max_new_tokens: int) -> Answer:
    """Append the most probable token, again and again, until the model ends its answer."""
    cache, unseen, answer = KVCache(model.config), prompt, list[int]()
    while len(answer) < max_new_tokens:
        hidden = model(torch.tensor([unseen]), cache)                   # the prompt, then one token: (1, T) → (1, T, D)
        token = int(model.head(hidden[0, -1]).argmax())                 # (D,) → (V,) → the largest logit's token
        if token in tokenizer.stop_ids:
            return Answer(tokenizer.decode(answer), answer, True)
        answer.append(token)
        unseen = [token]
    return Answer(tokenizer.decode(answer), answer, False)


# ── Chat format and templates ────────────────────────────────────────────────────────────────────────────────────────
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"     # SmolLM2's default
C_DISTILL = ("Below are an instruction that describes a task along with a reference answer. Using the reference answer "
             "as a guide, write your own response.\n\n### Instruction:\n{x}\n\n### Reference Answer:\n{y}\n\n"
             "### Response:\n")


class Example(NamedTuple):
    prompt: list[int]
    target: list[int]                 # the loss counts these tokens only


def chat_prompt(tokenizer: Tokenizer, user: str) -> list[int]:
    """Render <|im_start|>system⏎…<|im_end|>⏎<|im_start|>user⏎…<|im_end|>⏎<|im_start|>assistant⏎ as token ids."""
    start, end = tokenizer.special["<|im_start|>"], tokenizer.special["<|im_end|>"]
    tokens: list[int] = []
    for turn in (f"system\n{SYSTEM}", f"user\n{user}"):                 # encode() makes no control token from text
        tokens += [start, *tokenizer.encode(turn), end, *tokenizer.encode("\n")]
    return [*tokens, start, *tokenizer.encode("assistant\n")]


def training_example(tokenizer: Tokenizer, record: Record, response: str) -> Example:
    """The plain template c shows x alone. The model learns the response and the token that ends it."""
    return Example(chat_prompt(tokenizer, record.instruction), [*tokenizer.encode(response), tokenizer.eos_id])


# ── Step 1: rewrite ──────────────────────────────────────────────────────────────────────────────────────────────────
def rewrite(base: Llama, tokenizer: Tokenizer, record: Record, settings: Settings) -> Answer:
    """ỹ ~ f_θ(· | c_distill, x, y): the base model sees instruction and reference answer, and writes its own answer."""
    prompt = chat_prompt(tokenizer, C_DISTILL.format(x=record.instruction, y=record.response))
    return generate(base, tokenizer, prompt, settings.max_new_tokens)


# ── Step 2: choose ───────────────────────────────────────────────────────────────────────────────────────────────────
BANNED = ("reference answer", "your response", "my response", "your own response", "now it's your turn")


def choose(record: Record, rewritten: Answer) -> str:
    """ỹ′ = ỹ if ỹ passes all checks, else y. (The package also checks repetition and length.)"""
    return record.response if objection(record, rewritten) else rewritten.text.strip()


def objection(record: Record, rewritten: Answer) -> str:
    """Name the first check that the rewrite fails; "" if none. Tell-tale words show that the model saw y."""
    text = rewritten.text.strip()
    failed = {"empty": not text, "unfinished": not rewritten.finished,
              "tell-tale words": text.startswith("Your turn") or any(words in text.lower() for words in BANNED),
              "the answer does not occur": not answer_occurs(record.response, text)}
    return next((check for check in failed if failed[check]), "")


def answer_occurs(answer: str, text: str) -> bool:
    """Whether the answer occurs in the text as whole words, whatever their case and punctuation: the task's check."""
    wanted, written = (" ".join(re.findall(r"\w+", each.casefold())) for each in (answer, text))
    return f" {wanted} " in f" {written} "


# ── LoRA (Hu et al. 2021, arXiv 2106.09685) ──────────────────────────────────────────────────────────────────────────
class LoRALinear(nn.Module):
    """A frozen linear layer W and a low-rank update of it: y = W·x + ΔW·x, ΔW = s·B·A, s = α/R.

                  ┌─────────── W (O, D), frozen ────────────┐
    x (B, T, D) ──┤                                         + ──→ y (B, T, O)
                  └── A (R, D) → (B, T, R) → B (O, R) · s ──┘
    """

    def __init__(self, frozen: nn.Linear, settings: Settings, generator: torch.Generator):
        super().__init__()
        self.frozen, self.scale = frozen, settings.lora_alpha / settings.lora_rank
        self.lora_A = nn.Parameter(torch.empty(settings.lora_rank, frozen.in_features))     # (R, D)
        self.lora_B = nn.Parameter(torch.zeros(frozen.out_features, settings.lora_rank))    # (O, R), so ΔW = 0 at first
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5), generator=generator)          # U(−1/√D, 1/√D), as in PEFT

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(x, self.lora_A)                                          # A·x: (B, T, D) → (B, T, R)
        return self.frozen(x) + self.scale * F.linear(low, self.lora_B)         # W·x + s·B·(A·x): (B, T, R) → (B, T, O)

    def delta(self) -> Tensor:
        return self.scale * self.lora_B @ self.lora_A                           # ΔW = s·B·A: (O, R)·(R, D) → (O, D)


def add_lora(model: Llama, settings: Settings) -> list[nn.Parameter]:
    """Freeze the model, add an adapter to the target projections of every layer, and return the factors A and B."""
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(settings.seed)
    for layer in model.layers:
        for name in settings.lora_targets:
            setattr(layer.self_attn, name, LoRALinear(getattr(layer.self_attn, name), settings, generator))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


# ── Step 3: train ────────────────────────────────────────────────────────────────────────────────────────────────────
def target_logits(model: Llama, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Return the logits (n, V) that predict the target tokens of the examples, and these tokens (n,).

    The examples are padded on the right. Causal attention does not look there, so padding changes no target's logits.
    """
    rows = [torch.tensor(prompt + target) for prompt, target in examples]
    masks = [torch.tensor([False] * len(prompt) + [True] * len(target)) for prompt, target in examples]
    tokens, is_target = (nn.utils.rnn.pad_sequence(each, batch_first=True) for each in (rows, masks))     # (B, T) each
    hidden = model(tokens[:, :-1])                                              # (B, T − 1) → (B, T − 1, D)
    return model.head(hidden[is_target[:, 1:]]), tokens[is_target]              # (n, D) → (n, V), and (n,)


def batches(examples: Sequence[Example], settings: Settings) -> Iterator[list[Example]]:
    """Yield the examples of each optimiser step, in the package's order: the seed and the epoch decide it."""
    for epoch in range(settings.epochs):
        order = np.random.default_rng([settings.seed, 0, epoch]).permutation(len(examples)).tolist()
        for start in range(0, len(order), settings.batch_size):
            yield [examples[index] for index in order[start : start + settings.batch_size]]


def train(base: Llama, examples: Sequence[Example], settings: Settings) -> tuple[Llama, list[float]]:
    """Train an adapter on a copy of the base model; return the tuned model and the loss of each step."""
    model, steps, losses = copy.deepcopy(base), list(batches(examples, settings)), list[float]()
    factors = add_lora(model, settings)
    optimiser = torch.optim.AdamW(factors, weight_decay=0.0)
    for step, batch in enumerate(steps):
        logits, targets = target_logits(model, batch)                           # (n, V), (n,)
        loss = F.cross_entropy(logits, targets, reduction="sum") / len(targets)             # −1/n Σ log p(target)
        loss.backward()
        nn.utils.clip_grad_norm_(factors, settings.max_grad_norm)
        optimiser.param_groups[0]["lr"] = settings.lr * (1 + math.cos(math.pi * step / len(steps))) / 2   # cosine to 0
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return model, losses


# ── Measures ─────────────────────────────────────────────────────────────────────────────────────────────────────────
@torch.inference_mode()
def gap(base: Llama, examples: Sequence[Example]) -> float:
    """How surprising the targets are to the base model: their NLL in nats per token."""
    logits, targets = target_logits(base, examples)                             # (n, V), (n,)
    return (F.cross_entropy(logits, targets, reduction="sum") / len(targets)).item()        # −1/n Σ log p_base(target)


@torch.inference_mode()
def drift(base: Llama, tuned: Llama, answers: Sequence[Example]) -> float:
    """How far the outputs moved: KL(base ‖ tuned) in nats per token of the base model's own answers."""
    log_p, log_q = (target_logits(model, answers)[0].log_softmax(-1) for model in (base, tuned))    # (n, V) each
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()                # 1/n Σ Σ_v p·(log p − log q)


@torch.inference_mode()
def shift(tuned: Llama) -> float:
    """How far the weights moved: ‖ΔW‖_F over all adapted layers."""
    deltas = [module.delta() for module in tuned.modules() if isinstance(module, LoRALinear)]
    return math.sqrt(sum(delta.square().sum().item() for delta in deltas))      # √Σ ‖s·B·A‖²_F


def own_answer(base: Llama, tokenizer: Tokenizer, text: str, settings: Settings) -> Example:
    """The base model's answer to a prompt, as an example whose targets are the tokens that it chose."""
    prompt = chat_prompt(tokenizer, text)
    answer = generate(base, tokenizer, prompt, settings.max_new_tokens)
    return Example(prompt, answer.tokens + [tokenizer.eos_id] * answer.finished)


def main() -> None:
    """Rewrite, choose, train both arms, and print the measures of each."""
    settings = Settings()
    base, tokenizer = load(settings.model)
    answers = [own_answer(base, tokenizer, text, settings) for text in GENERAL_PROMPTS]
    rewrites = [rewrite(base, tokenizer, record, settings) for record in RECORDS]
    for record, rewritten in zip(RECORDS, rewrites, strict=True):
        print(f"{record.response} → {rewritten.text!r} {objection(record, rewritten)}", file=sys.stderr)
    arms = {"sft": [record.response for record in RECORDS], "sdft": list(map(choose, RECORDS, rewrites))}
    print("arm    gap (NLL)   drift (KL)   shift (‖ΔW‖)")
    for arm, responses in arms.items():
        examples = [training_example(tokenizer, *pair) for pair in zip(RECORDS, responses, strict=True)]
        tuned, _ = train(base, examples, settings)
        print(f"{arm:4}   {gap(base, examples):9.3f}   {drift(base, tuned, answers):10.4f}   {shift(tuned):12.3f}")


if __name__ == "__main__":
    main()
