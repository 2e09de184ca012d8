"""The batched engine: it prefills prompts into free places of a batch, and takes steps of one token for every sequence.

    waiting ──prefill──→ sequences of the batch ──step──→ one more token in each ──stop or limit──→ Output
       ↑                                                                              │
       └──────────────────── the place is free for the next prompt ───────────────────┘

A record's tokens depend on the record, the model, the settings and the seed alone: sequences never see each other,
and each draws from its own generator. Only rounding can differ with the size of the batch, because a matrix product
may add in another order; in fp32 this changes no token except at an exact near-tie.

    python -m sdft generate "Why is the sky blue?"
"""
from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from sdft.data.chat import common_prefix
from sdft.errors import SdftError
from sdft.generation.batch import PREFILL_TOKENS, Batch
from sdft.generation.fast.cuda import PROMPT_TOKENS
from sdft.generation.fast.cuda_graphs import StepGraphs
from sdft.generation.fast.drafts import NgramIndex
from sdft.generation.memory import batch_size_for
from sdft.generation.sampling import Sampling, record_uniforms
from sdft.model.llama import Llama
from sdft.tokenizers.tokenizer import Tokenizer

GPU_FREE_SHARE = 0.25          # on a GPU prompts wait until this share of the places is free: see `admits`


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
    """Counts of what generation did."""

    steps: int = 0                        # of the batch, without prefills
    written: int = 0                      # tokens in all responses, including stop tokens
    drafted: int = 0                      # drafted tokens,
    accepted: int = 0                     # and those of them that were accepted

    @property
    def acceptance(self) -> float:
        """The share of the drafted tokens that were accepted (0 when nothing was drafted)."""
        return self.accepted / self.drafted if self.drafted else 0.0


@dataclass
class Response:
    """A response that is being written."""

    request: Request
    limit: int                            # of its tokens
    ngrams: NgramIndex | None = None      # None: no drafts
    written: list[int] = field(default_factory=list)
    finish: str | None = None

    @property
    def length(self) -> int:
        """Tokens of the prompt and of the response so far."""
        return len(self.request.tokens) + len(self.written)

    @property
    def capacity(self) -> int:
        """The slots that it may need."""
        return len(self.request.tokens) + self.limit


class Engine:
    """Answers requests in one batch; `run` yields each Output as it finishes."""

    def __init__(self, model: Llama, tokenizer: Tokenizer, requests: Sequence[Request], sampling: Sampling,
                 batch_size: int = 32, speculation: bool = True, report: Report | None = None):
        if batch_size < 1:
            raise SdftError(f"batch_size: expected at least 1 sequence at a time, got {batch_size}")
        self.tokenizer, self.sampling, self.stop_ids = tokenizer, sampling, set(tokenizer.stop_ids)
        self.report = Report() if report is None else report
        # Drafts were measured on the CPU alone. A repetition penalty prevents the repetitions that drafts need.
        self.speculation = speculation and model.device.type == "cpu" and sampling.repetition_penalty == 1
        on_gpu = model.device.type == "cuda"
        self.graphs = StepGraphs() if on_gpu else None
        self.prefill_tokens = PROMPT_TOKENS if on_gpu else PREFILL_TOKENS
        # Longest first: sequences of similar length share a group, every later prompt fits where an earlier one has
        # finished, and no long one is left to run alone at the end.
        responses = sorted((_response(request, model, sampling) for request in requests), key=lambda one: -one.capacity)
        self.waiting = deque(responses)
        self.batch_size = batch_size_for(model, [one.capacity for one in responses], batch_size)
        self.least_free = max(1, int(self.batch_size * GPU_FREE_SHARE)) if on_gpu else 1
        self.prefix = shared_prefix([one.request.tokens for one in responses])
        self.responses: list[Response | None] = []                          # by index in the batch; None: a free place
        self.batch = Batch(model, sampling, [one.capacity for one in responses[: self.batch_size]],
                           max((one.limit for one in responses), default=0))

    @torch.inference_mode()
    def run(self) -> Iterator[Output]:
        """Answer every request."""
        self.share()
        while self.waiting or self.responses:
            if self.admits():
                self.admit()
                yield from self.retire()
                continue                                                    # a first token may have ended some
            self.compact()
            if self.responses:
                self.advance()
                yield from self.retire()

    @torch.inference_mode()
    def run_tokens(self) -> Iterator[int]:
        """Answer the first request, token by token."""
        self.share()
        response, sent = self.waiting[0], 0
        self.admit()
        while True:
            yield from response.written[sent:]
            if response.finish is not None:
                return
            sent = len(response.written)
            self.advance()

    def share(self) -> None:
        """Compute the shared prefix of all prompts once, and copy it to every sequence."""
        if self.prefix:
            self.batch.share(self.waiting[0].request.tokens[: self.prefix])

    def admits(self) -> bool:
        """Whether enough places are free to prefill waiting prompts.

        On a GPU a prefill takes as long for one prompt as for many: launching its kernels bounds it, while captured
        steps are launched at once. 1024 prompts in 128 places took 10.8 s prompt by prompt and 3.3 s by quarters.
        """
        free = self.batch_size - sum(response is not None for response in self.responses)
        return bool(self.waiting) and free >= min(self.least_free, len(self.waiting))

    def admit(self) -> None:
        """Prefill waiting prompts into the free places, several at a time, and choose each one's first token."""
        self.responses += [None] * (self.batch_size - len(self.responses))
        free = deque(index for index, response in enumerate(self.responses) if response is None)
        while self.waiting and free:
            indices: list[int] = []
            admitted: list[Response] = []
            total = 0
            while self.waiting and free and (not admitted or total + self.waiting[0].length <= self.prefill_tokens):
                admitted.append(self.waiting.popleft())
                indices.append(free.popleft())
                self.responses[indices[-1]] = admitted[-1]
                total += admitted[-1].length
            for response in admitted:
                response.ngrams = NgramIndex(response.request.tokens) if self.speculation else None
            uniforms = None if self.sampling.greedy else [
                record_uniforms(self.sampling.seed, response.request.id, response.limit) for response in admitted]
            tokens = self.batch.begin(indices, [one.request.tokens for one in admitted], uniforms)
            self._append(admitted, [[token] for token in tokens])

    def advance(self) -> None:
        """Take one step of all sequences; every place is taken."""
        self.report.steps += 1
        responses = [response for response in self.responses if response is not None]
        drafts = [self._draft(response, len(responses)) for response in responses]
        if any(drafts):
            self.verify(drafts)
            return
        ends = [response.length for response in responses]
        tokens = self.graphs.step(self.batch, ends) if self.graphs else self.batch.step(ends)
        self._append(responses, [[token] for token in tokens.tolist()])

    def _draft(self, response: Response, batch_size: int) -> list[int]:
        """A draft up to its first stop token: after that, the prompt holds another turn."""
        if response.ngrams is None:
            return []
        draft = response.ngrams.draft(batch_size, response.limit - len(response.written) - 1)
        return next((draft[: i + 1] for i, token in enumerate(draft) if token in self.stop_ids), draft)

    def verify(self, drafts: list[list[int]]) -> None:
        """Take one step of all sequences with their drafts."""
        responses = [response for response in self.responses if response is not None]
        kept = self.batch.verify(drafts, [response.length - 1 for response in responses])
        self.report.drafted += sum(map(len, drafts))
        self.report.accepted += sum(len(tokens) - 1 for tokens in kept)
        self._append(responses, kept)

    def _append(self, responses: list[Response], chosen: list[list[int]]) -> None:
        """Append the chosen tokens to each response, up to its end."""
        for response, tokens in zip(responses, chosen, strict=True):
            before = len(response.written)
            for token in tokens:
                self.report.written += 1
                if token in self.stop_ids:
                    response.finish = "stop"
                    break
                response.written.append(token)
                if len(response.written) == response.limit:
                    response.finish = "length"
                    break
            if response.ngrams is not None:
                response.ngrams.extend(response.written[before:])

    def retire(self) -> Iterator[Output]:
        """Yield the finished responses, and free their places."""
        for index, response in enumerate(self.responses):
            if response is not None and response.finish is not None:
                self.responses[index] = None
                text = self.tokenizer.decode(response.written)
                yield Output(response.request.id, text, response.written, response.finish)

    def compact(self) -> None:
        """Move the last sequences of the batch into free places, so that a step computes active sequences only."""
        for index in range(len(self.responses)):
            while self.responses and self.responses[-1] is None:
                self.responses.pop()
            if index < len(self.responses) and self.responses[index] is None:
                last = self.responses.pop()
                assert last is not None
                self.responses[index] = last
                self.batch.move(len(self.responses), index, last.length)


def _response(request: Request, model: Llama, sampling: Sampling) -> Response:
    """The empty response to a request, once it is checked."""
    length, vocabulary, context = len(request.tokens), model.config.vocab_size, model.config.context_length
    if length == 0:
        raise SdftError(f"record {request.id}: its prompt has no token; give it at least one")
    if not 0 <= min(request.tokens) <= max(request.tokens) < vocabulary:
        raise SdftError(f"record {request.id}: expected token ids from 0 to {vocabulary - 1}, got "
                        f"{min(request.tokens)} to {max(request.tokens)}; is it the tokenizer of this model?")
    if length >= context:
        raise SdftError(f"record {request.id}: its prompt has {length} tokens, which leaves no room for an answer in "
                        f"the model's context of {context}; shorten the record or leave it out")
    return Response(request, min(request.max_new_tokens or sampling.max_new_tokens, context - length))


def shared_prefix(prompts: Sequence[list[int]]) -> int:
    """Length of the longest prefix that all prompts share and none is equal to; 0 for a single prompt."""
    return min(common_prefix(prompts), min(map(len, prompts)) - 1) if len(prompts) > 1 else 0
