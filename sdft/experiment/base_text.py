"""Text that the seed wrote by itself, without any data: dialogues to replay, and to take the Fisher information on.

    empty user header of the chat format ─sample─→ a user's turn ─answer, greedily─→ dialogue        (arXiv 2406.08464)

What the seed would ask and say stands in for the data that it was made with and that nobody has. To rehearse on text of
the model's own is arXiv 2403.01244, which asks for it with examples, and refines and selects it; here it is taken as it
comes. A turn that is also a general prompt is left out: drift is measured on those, so none may be trained on.
"""
from __future__ import annotations

from sdft.data.chat import Example, common_prefix, encode_example, encode_prompt, get_chat_format
from sdft.data.records import Record
from sdft.data.templates import get_template
from sdft.distill.rewriting import Rewrite, rewrite, write_answers
from sdft.errors import SdftError
from sdft.experiment.context import Context
from sdft.generation import Request, Sampling
from sdft.tokenizers.tokenizer import Tokenizer

TURN_TOKENS = 128           # a longer user's turn is cut
SPARE = 8                   # turns sampled beyond those asked for, since some are empty or occur twice


def base_dialogues(context: Context, count: int) -> list[Example]:
    """`count` dialogues of one turn each, the answers their targets: exactly the tokens that the seed chose.

    An answer that was cut at `rewrite_tokens` is learned without an end. The texts are journals of the run folder,
    base-turns.jsonl and base-answers.jsonl; a run that was killed goes on. Raises SdftError where the seed writes no
    usable turn.
    """
    base, tokenizer = context.base, context.tokenizer
    with context.timed("base text"):
        sampling = Sampling(max_new_tokens=TURN_TOKENS, temperature=1.0, seed=context.sampling.seed)
        header = user_header(tokenizer, context.chat)
        requests = [Request(f"seed-text-{index}", header) for index in range(count + count // 4 + SPARE)]
        turns = write_answers(base, tokenizer, requests, sampling, context.folder / "base-turns.jsonl",
                              {"chat": context.chat or tokenizer.chat}, context.rows, "base text, turns")
        seen = {item.messages[-1]["content"] for item in context.general.items} | {""}
        records = []
        for turn in turns:
            text = user_text(tokenizer, turn, context.chat)
            if text not in seen and len(records) < count:
                records.append(Record(turn.id, text, ""))
            seen.add(text)
        if not records:
            raise SdftError(f"the seed wrote no user's turn of its own in {len(requests)} samples: leave out the arms "
                            "replay and ewc")
        greedy = Sampling(max_new_tokens=context.sampling.max_new_tokens)
        answers = rewrite(base, tokenizer, records, "plain", greedy, context.rows, context.chat,
                          context.folder / "base-answers.jsonl")
    prompts = {record.id: encode_prompt(tokenizer, get_template("plain").messages(record), chat=context.chat)
               for record in records}
    end = end_of_answer(tokenizer, context.chat)
    return [answered(answer.id, prompts[answer.id], answer.tokens, end if answer.finish == "stop" else None)
            for answer in answers]


def user_header(tokenizer: Tokenizer, chat: str | None) -> list[int]:
    """What every conversation of one turn begins with, up to where the user writes."""
    prompts = [encode_prompt(tokenizer, [{"role": "user", "content": text}], chat=chat) for text in ("A", "7", "(")]
    return prompts[0][: common_prefix(prompts)]


def user_text(tokenizer: Tokenizer, turn: Rewrite, chat: str | None) -> str:
    """A sampled turn up to where its chat format ends it; not every format does so by a token that stops generation."""
    mark = get_chat_format(chat or tokenizer.chat).user[1].strip()
    tokens, end = turn.tokens, tokenizer.special.get(mark)
    if end in tokens:
        tokens = tokens[: tokens.index(end)]
    text = tokenizer.decode(tokens)
    return (text.partition(mark)[0] if mark else text).strip()


def end_of_answer(tokenizer: Tokenizer, chat: str | None) -> int:
    """The token that ends an assistant's turn."""
    messages = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "A"}]
    return encode_example(tokenizer, messages, chat=chat).tokens[-1]


def answered(id: str, prompt: list[int], answer: list[int], end: int | None) -> Example:
    """A prompt with its answer as targets, and its end where it has one."""
    answer = answer if end is None else [*answer, end]
    return Example(id, [*prompt, *answer], [False] * len(prompt) + [True] * len(answer))
