"""Batched generation: prompts are prefilled into free rows of a static cache, and every row takes a step at a time.

    waiting ──prefill──→ rows of the cache ──step──→ one more token in every row ──stop or length──→ Output
       ↑                                                                                │
       └────────────────────── the row is free for the next prompt ─────────────────────┘

A record's tokens depend on the record, the model, the settings and the seed alone: rows never see each other, and each
draws from its own generator. Only rounding can differ with the company a row keeps, since a matrix product may add in
another order when it has more rows; in fp32 this moves no token but at an exact near-tie.

    python -m sdft generate "Why is the sky blue?"
"""
from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdft.data.chat import common_prefix
from sdft.errors import SdftError
from sdft.generation.cache import DecodeAttention, KVCache
from sdft.generation.fast.cuda import PROMPT_TOKENS, fused, prefill_attention
from sdft.generation.fast.cuda_graphs import StepGraphs
from sdft.generation.fast.drafts import NgramIndex, accepted
from sdft.generation.fast.prepacked import packed
from sdft.generation.sampling import Sampling, choose, record_uniforms

PREFILL_TOKENS = 2048          # prompts are prefilled together up to about so many tokens


@dataclass(frozen=True)
class Request:
    """A prompt to be answered."""

    id: str
    tokens: list[int]                     # ends where the assistant begins to write
    max_new_tokens: int | None = None     # None: the sampling settings'


@dataclass(frozen=True)
class Output:
    """A finished response."""

    id: str
    text: str
    tokens: list[int]                     # without the stop token
    finish: str                           # "stop" or "length"


@dataclass
class Report:
    """What generation did, counted over one run."""

    steps: int = 0                        # of the batch, prefills aside
    written: int = 0                      # tokens in all responses, stop tokens included
    drafted: int = 0                      # tokens guessed by looking up n-grams,
    accepted: int = 0                     # and those of them that stood

    @property
    def acceptance(self) -> float:
        """The share of the drafted tokens that stood (0 when nothing was drafted)."""
        return self.accepted / self.drafted if self.drafted else 0.0


@dataclass
class Row:
    """A response under way, in one row of the cache."""

    request: Request
    limit: int
    ngrams: NgramIndex | None = None      # None: no drafts
    written: list[int] = field(default_factory=list)
    finish: str | None = None

    @property
    def length(self) -> int:
        """Tokens of the prompt and of what is written so far."""
        return len(self.request.tokens) + len(self.written)

    @property
    def newest(self) -> int:
        return self.written[-1]

    @property
    def capacity(self) -> int:
        """The slots that it may come to need."""
        return len(self.request.tokens) + self.limit


class Engine:
    """Answers requests in the rows of one cache; `run` yields each Output as it finishes."""

    def __init__(self, model, tokenizer, requests: Sequence[Request], sampling: Sampling, batch_size: int = 32,
                 speculation: bool = True, report: Report | None = None):
        if batch_size < 1:
            raise SdftError(f"batch_size: expected at least 1 row to write at a time, got {batch_size}")
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        self.report = Report() if report is None else report
        # Where drafts pay was measured on the CPU alone. The penalty is there to prevent what drafts live on.
        self.speculation = speculation and model.device.type == "cpu" and sampling.repetition_penalty == 1
        on_gpu = model.device.type == "cuda"
        self.compute = fused(model) if on_gpu else packed(model)            # the same function, laid out for decoding
        self.graphs = StepGraphs() if on_gpu else None
        self.prefill_tokens = PROMPT_TOKENS if on_gpu else PREFILL_TOKENS
        self.stop_ids = set(tokenizer.stop_ids)
        # Longest first: rows of like length lie together, whatever follows fits where one has finished, and no long one is
        # left to run alone at the end.
        rows = sorted((self._row(request) for request in requests), key=lambda row: -row.capacity)
        self.waiting = deque(rows)
        self.batch_size = B = min(batch_size, len(rows))
        self.prefix = shared_prefix([row.request.tokens for row in rows])
        self.rows: list[Row | None] = []                                    # by place in the cache; None: free
        self.cache = KVCache(model.config, [row.capacity for row in rows[:B]], model.dtype, model.device)
        integers = {"dtype": torch.long, "device": model.device}
        self.tokens = torch.zeros(B, **integers)                            # each row's newest token,
        self.positions = torch.zeros(B, **integers)                         # where it stands,
        self.counts = torch.zeros(B, **integers)                            # and how many the row wrote
        self.uniforms = torch.zeros(B, max((row.limit for row in rows), default=0), device=model.device)
        self.seen = None                                                    # (B, V): the tokens in each row's context
        if sampling.repetition_penalty != 1:
            self.seen = torch.zeros(B, model.config.vocab_size, dtype=torch.bool, device=model.device)

    def _row(self, request: Request) -> Row:
        length, context = len(request.tokens), self.model.config.context_length
        if length == 0:
            raise SdftError(f"record {request.id}: its prompt has no token; give it at least one")
        if not 0 <= min(request.tokens) <= max(request.tokens) < self.model.config.vocab_size:
            raise SdftError(f"record {request.id}: expected token ids from 0 to {self.model.config.vocab_size - 1}, got "
                            f"{min(request.tokens)} to {max(request.tokens)}; is it another model's tokenizer?")
        if length >= context:
            raise SdftError(f"record {request.id}: its prompt has {length} tokens, which leaves no room to answer in the "
                            f"model's context of {context}; shorten the record or leave it out")
        return Row(request, min(request.max_new_tokens or self.sampling.max_new_tokens, context - length))

    @torch.inference_mode()
    def run(self) -> Iterator[Output]:
        """Answer everything that waits."""
        self.share()
        while self.waiting or self.rows:
            self.admit()
            yield from self.retire()
            if self.waiting and None in self.rows:
                continue                                                    # one token was enough for some: admit more first
            self.compact()
            if self.rows:
                self.advance()
                yield from self.retire()

    @torch.inference_mode()
    def run_tokens(self) -> Iterator[int]:
        """Answer the first prompt, token by token."""
        self.share()
        self.admit()
        row, sent = self.rows[0], 0
        while True:
            yield from row.written[sent:]
            if row.finish is not None:
                return
            sent = len(row.written)
            self.advance()

    def admit(self) -> None:
        """Prefill waiting prompts into the free places, in packed groups, and choose each one's first token."""
        self.rows += [None] * (self.batch_size - len(self.rows))
        free = [place for place, row in enumerate(self.rows) if row is None]
        while self.waiting and free:
            places, total = [], 0
            while self.waiting and free and (not places or total + self.waiting[0].length <= self.prefill_tokens):
                row = self.waiting.popleft()
                places.append(free.pop(0))
                self.rows[places[-1]] = row
                total += row.length
            self._prefill(places)

    def _prefill(self, places: list[int]) -> None:
        rows, device = [self.rows[place] for place in places], self.model.device
        lengths = [row.length - self.prefix for row in rows]
        tokens = [token for row in rows for token in row.request.tokens[self.prefix :]]
        x = self._forward(tokens, places, lengths, self.prefix)                                             # (n, D)
        for place, row in zip(places, rows, strict=True):
            if not self.sampling.greedy:
                uniforms = record_uniforms(self.sampling.seed, row.request.id, row.limit)
                self.uniforms[place, : row.limit] = uniforms.to(device)
            if self.speculation:
                row.ngrams = NgramIndex(row.request.tokens)
            if self.seen is not None:
                self.seen[place].zero_()[torch.tensor(row.request.tokens, device=device)] = True
        index, ends = torch.tensor(places, device=device), torch.tensor(lengths, device=device)
        self.positions[index], self.counts[index] = self.prefix + ends - 1, 0
        chosen = self._choose(index, x)
        self._note(places, [[token] for token in chosen.tolist()])

    def _forward(self, tokens: list[int], places: Sequence[int], lengths: list[int], prefix: int) -> Tensor:
        """The last hidden states (n, D) at the ends of n packed documents that begin behind `prefix` slots of theirs."""
        device = self.model.device
        positions = torch.cat([torch.arange(prefix, prefix + length) for length in lengths]).to(device)     # (N,)
        attend = prefill_attention(self.model)(self.cache, places, lengths, prefix)
        ends = torch.tensor(lengths, device=device).cumsum(0) - 1                                           # (n,)
        return self.compute.hidden(torch.tensor(tokens, device=device), positions, attend, ends)

    def share(self) -> None:
        """Compute the prefix of all prompts once, and put it into every row, where it stays."""
        if self.prefix:
            self._forward(self.waiting[0].request.tokens[: self.prefix], [0], [self.prefix], 0)
            self.cache.spread(self.prefix)

    def advance(self) -> None:
        """One step of every row."""
        self.report.steps += 1
        n, drafts = len(self.rows), []
        if self.speculation:
            drafts = [self._to_stop(row.ngrams.draft(n, row.limit - len(row.written) - 1)) for row in self.rows]
        if any(drafts):
            self.verify(drafts)
        else:
            ends = [row.length for row in self.rows]
            chosen = self.graphs.step(self, ends) if self.graphs else self.step(ends)
            self._note(range(n), [[token] for token in chosen.tolist()])

    def _to_stop(self, draft: list[int]) -> list[int]:
        """A draft up to its first stop token: what stood behind that in the prompt is another turn."""
        return next((draft[: place + 1] for place, token in enumerate(draft) if token in self.stop_ids), draft)

    def step(self, ends: list[int]) -> Tensor:
        """Write one more token in each of the first n rows, row b ending before slot ends[b]: ids (n,).

        Reads and writes static buffers alone and never waits for the device, as a captured CUDA graph needs it.
        """
        n = len(ends)
        attend = DecodeAttention(self.cache, self.positions[:n], ends)
        x = self.compute.hidden(self.tokens[:n], self.positions[:n], attend)                                  # (n, D)
        return self._choose(torch.arange(n, device=x.device), x)

    def verify(self, drafts: list[list[int]]) -> None:
        """Write each row's newest token and its draft behind it, and keep what the model would have chosen itself.

        Slots of drafted tokens that do not stand are not cleared: they lie behind their row's end and are written over.
        """
        device, n = self.model.device, len(self.rows)
        starts, counts = [row.length - 1 for row in self.rows], [1 + len(draft) for draft in drafts]
        tokens = [token for row, draft in zip(self.rows, drafts, strict=True) for token in (row.newest, *draft)]
        positions = [start + i for start, count in zip(starts, counts, strict=True) for i in range(count)]
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        tokens, positions = torch.tensor(tokens, device=device), torch.tensor(positions, device=device)             # (N,)
        x = self.compute.hidden(tokens, positions, DecodeAttention(self.cache, positions, ends, counts))            # (N, D)
        rows = torch.arange(n, device=device).repeat_interleave(torch.tensor(counts, device=device))                # (N,)
        places = self.counts[rows] + positions - self.positions[rows]               # of each choice in its row's response
        choices = choose(self.compute.head(x), self.sampling, self.uniforms[rows, places]).split(counts)
        kept = [accepted(draft, choice.tolist()) for draft, choice in zip(drafts, choices, strict=True)]
        self.report.drafted += sum(map(len, drafts))
        self.report.accepted += sum(len(tokens) - 1 for tokens in kept)
        self._note(range(n), kept)
        self.tokens[:n] = torch.tensor([tokens[-1] for tokens in kept], device=device)
        grown = torch.tensor([len(tokens) for tokens in kept], device=device)
        self.positions[:n] += grown
        self.counts[:n] += grown

    def _choose(self, index: Tensor, x: Tensor) -> Tensor:
        """Choose the next token of the rows `index` (n,) from x (n, D), and make it each row's newest."""
        uniforms = self.uniforms[index, self.counts[index]]                                                 # (n,)
        seen = None if self.seen is None else self.seen[index]                                              # (n, V)
        tokens = choose(self.compute.head(x), self.sampling, uniforms, seen)                                # (n,)
        if self.seen is not None:
            self.seen.index_put_((index, tokens), self.seen.new_ones(()))  # `= True` would copy it from the host
        self.tokens[index] = tokens
        self.positions[index] += 1
        self.counts[index] += 1
        return tokens

    def _note(self, places: Iterable[int], chosen: list[list[int]]) -> None:
        """Append the tokens chosen for each row to what it wrote, up to its end."""
        for place, tokens in zip(places, chosen, strict=True):
            row = self.rows[place]
            before = len(row.written)
            for token in tokens:
                self.report.written += 1
                if token in self.stop_ids:
                    row.finish = "stop"
                    break
                row.written.append(token)
                if len(row.written) == row.limit:
                    row.finish = "length"
                    break
            if row.ngrams is not None:
                row.ngrams.extend(row.written[before:])

    def retire(self) -> Iterator[Output]:
        """Hand out the finished rows; their places are free."""
        for place, row in enumerate(self.rows):
            if row is not None and row.finish is not None:
                self.rows[place] = None
                yield Output(row.request.id, self.tokenizer.decode(row.written), row.written, row.finish)

    def compact(self) -> None:
        """Nothing waits any more: fill free places with rows from the end, so that a step runs over live rows only."""
        for place in range(len(self.rows)):
            while self.rows and self.rows[-1] is None:
                self.rows.pop()
            if place < len(self.rows) and self.rows[place] is None:
                last = len(self.rows) - 1
                self.rows[place] = row = self.rows.pop()
                self.cache.copy(last, place, row.length)
                for buffer in (self.tokens, self.positions, self.counts, self.uniforms, self.seen):
                    if buffer is not None:
                        buffer[place] = buffer[last]


def shared_prefix(prompts: Sequence[list[int]]) -> int:
    """How many tokens all of several prompts share; each keeps at least one of its own. One prompt shares nothing."""
    return min(common_prefix(prompts), min(map(len, prompts)) - 1) if len(prompts) > 1 else 0
