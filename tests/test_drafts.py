"""Drafts change the number of steps and nothing else."""
from __future__ import annotations

import pytest
import torch
from test_generate import NumberTokenizer, models, prompts, theirs

from sdft.generation import Report, Request, Sampling, generate, stream
from sdft.generation.engine import Engine
from sdft.generation.fast.drafts import NgramIndex, accepted, draft_length
from sdft.generation.sampling import choose


def test_the_longest_match_wins_and_of_equals_the_latest() -> None:
    index = NgramIndex([7, 1, 2, 3, 50, 8, 2, 3, 60, 9, 2, 3, 70, 1, 2, 3])
    assert index.match() == (3, 4)                          # "1 2 3" beats the later "2 3"
    index = NgramIndex([8, 2, 3, 60, 9, 2, 3, 70, 5, 2, 3])
    assert index.match() == (2, 7)
    assert NgramIndex([1, 2, 3, 4]).match() == (0, 0)
    assert NgramIndex([1]).match() == (0, 0)


def test_new_tokens_can_be_matched_and_a_draft_keeps_to_its_room() -> None:
    index = NgramIndex([1, 2, 3, 4, 5, 6, 7])
    index.extend([1, 2])
    assert index.draft(batch_size=1, room=100)[:2] == [3, 4]
    assert index.draft(batch_size=1, room=1) == [3]
    assert index.draft(batch_size=1, room=0) == []


def test_drafts_shorten_as_steps_fill_and_lengthen_with_the_match() -> None:
    by_size = [draft_length(2, batch_size) for batch_size in (1, 4, 16, 64, 256)]
    assert by_size == sorted(by_size, reverse=True) and by_size[0] > by_size[-1]
    by_match = [draft_length(matched, 128) for matched in range(2, 11)]
    assert by_match == sorted(by_match) and by_match[-1] > by_match[0]


def test_equal_choices_are_accepted_with_the_next_one() -> None:
    assert accepted([], [4]) == [4]
    assert accepted([4, 5], [4, 5, 6]) == [4, 5, 6]
    assert accepted([4, 5], [4, 9, 6]) == [4, 9]
    assert accepted([4, 5], [8, 5, 6]) == [8]


def looping(count: int = 12) -> list[list[int]]:
    """Prompts that repeat themselves, so that there are drafts from the start."""
    return [prompt * 2 + prompt[:2] for prompt in prompts(count)]


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.3, "seed": 1},
                                      {"temperature": 0.6, "top_k": 4, "top_p": 0.9}])
@pytest.mark.parametrize("batch_size", [1, 5, 11])           # 11: sequences in three groups
def test_same_tokens_with_and_without_drafts(settings: dict, batch_size: int, monkeypatch) -> None:
    monkeypatch.setattr("sdft.generation.cache.GROUP", 4)
    model, tokenizer, sampling = models()[1], NumberTokenizer(), Sampling(max_new_tokens=40, **settings)
    requests = [Request(str(i), prompt) for i, prompt in enumerate(looping())]
    drafted, plain = Report(), Report()
    with_drafts = {o.id: o for o in stream(model, tokenizer, requests, sampling, batch_size, report=drafted)}
    without = {o.id: o for o in stream(model, tokenizer, requests, sampling, batch_size, False, report=plain)}
    assert with_drafts == without
    assert drafted.drafted > drafted.accepted > 0           # some drafted tokens were accepted, some rejected
    assert plain.drafted == 0 and drafted.written == plain.written
    assert drafted.steps < plain.steps if batch_size == 1 else drafted.steps <= plain.steps  # waits for the slowest


def test_greedy_with_drafts_is_transformers() -> None:
    hf, model = models()
    outputs = generate(model, NumberTokenizer(), looping(6), max_new_tokens=40, batch_size=2)
    assert [(o.tokens, o.finish) for o in outputs] == [theirs(hf, prompt, 40) for prompt in looping(6)]


def test_accepted_draws_follow_the_model_exactly() -> None:
    """Pairs of tokens chosen by the rule of drafts, over a vocabulary of 3, follow p(a)·p(b|a) whatever is drafted."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(3, generator=generator)             # logits of the first token,
    second = torch.randn(3, 3, generator=generator)         # and of the second after each first
    sampling, count, draft = Sampling(temperature=1.0), 30_000, 1
    uniforms = torch.rand(count, 2, generator=generator)
    choices = torch.stack((choose(first.expand(count, -1), sampling, uniforms[:, 0]),
                           choose(second[draft].expand(count, -1), sampling, uniforms[:, 1])), 1).tolist()
    observed = torch.zeros(3, 3, dtype=torch.float64)
    for pair, numbers in zip(choices, uniforms, strict=True):
        kept = accepted([draft], pair)
        if len(kept) == 1:                                  # rejected: the next step chooses in the right context
            kept = [*kept, int(choose(second[kept[0]].unsqueeze(0), sampling, numbers[1:]))]
        observed[kept[0], kept[1]] += 1
    expected = count * first.double().softmax(0).unsqueeze(1) * second.double().softmax(1)
    chi_square = ((observed - expected).square() / expected).sum()
    assert chi_square < 26.1                                # 8 degrees of freedom: passed once in a thousand seeds


def test_a_draft_ends_at_its_first_stop_token() -> None:
    """After it the prompt continues with another turn, which the response does not contain."""
    class Stopping(NumberTokenizer):
        stop_ids = (9,)

    engine = Engine(models()[1], Stopping(), [Request("a", [1, 2, 9, 4, 1, 2])], Sampling(max_new_tokens=9))
    engine.share()
    engine.admit()
    engine.responses[0].ngrams = NgramIndex([1, 2, 9, 4, 5, 1, 2])
    assert engine.responses[0].ngrams.draft(1, 9) == [9, 4]
    seen = []
    engine.verify = seen.append
    engine.advance()
    assert seen == [[[9]]]
