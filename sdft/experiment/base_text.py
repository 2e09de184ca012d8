"""Text that the base model writes by itself, without any data: dialogues for replay and for the Fisher information.

    empty user header of the chat format ─sample─→ a user's turn ─answer greedily─→ dialogue          (arXiv 2406.08464)

It stands in for the base model's training data, which nobody has. Rehearsal on the model's own text is from
arXiv 2403.01244; that method prompts with examples, and refines and selects, while these dialogues are taken as they
come. A turn that equals a general prompt is skipped: drift is measured on those, so none may be trained on.
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
SPARE = 8                   # additional turns, since some are empty or occur twice


def base_dialogues(context: Context, count: int) -> list[Example]:
    """`count` dialogues of one turn each; the targets are exactly the answer tokens that the base model chose.

    An answer that was cut at `rewrite_tokens` has no end as a target. The texts are journals of the run folder,
    base-turns.jsonl and base-answers.jsonl, so an interrupted run resumes. Raises SdftError where the base model writes
    no usable turn.
    """
    base, tokenizer = context.base, context.tokenizer
    with context.timed("base text"):
        sampling = Sampling(max_new_tokens=TURN_TOKENS, temperature=1.0, seed=context.sampling.seed)
        header = user_header(tokenizer, context.chat)
        # Sampling is seeded by the id: another name would draw other turns.
        requests = [Request(f"seed-text-{index}", header) for index in range(count + count // 4 + SPARE)]
        turns = write_answers(base, tokenizer, requests, sampling, context.folder / "base-turns.jsonl",
                              {"chat": context.chat or tokenizer.chat}, context.batch_size, "base text, turns")
        seen = {item.messages[-1]["content"] for item in context.general.items} | {""}
        records: list[Record] = []
        for turn in turns:
            text = user_text(tokenizer, turn, context.chat)
            if text not in seen and len(records) < count:
                records.append(Record(turn.id, text, ""))
            seen.add(text)
        if not records:
            raise SdftError(f"the base model wrote no usable user's turn in {len(requests)} samples: leave out the "
                            "arms replay and ewc")
        greedy = Sampling(max_new_tokens=context.sampling.max_new_tokens)
        answers = rewrite(base, tokenizer, records, "plain", greedy, context.batch_size, context.chat,
                          context.folder / "base-answers.jsonl")
    prompts = {record.id: encode_prompt(tokenizer, get_template("plain").messages(record), chat=context.chat)
               for record in records}
    end = end_of_answer(tokenizer, context.chat)
    return [answered(answer.id, prompts[answer.id], answer.tokens, end if answer.finish == "stop" else None)
            for answer in answers]


def user_header(tokenizer: Tokenizer, chat: str | None) -> list[int]:
    """The tokens of a conversation up to where the user's text begins."""
    prompts = [encode_prompt(tokenizer, [{"role": "user", "content": text}], chat=chat) for text in ("A", "7", "(")]
    return prompts[0][: common_prefix(prompts)]


def user_text(tokenizer: Tokenizer, turn: Rewrite, chat: str | None) -> str:
    """A sampled turn up to the chat format's end of a turn, which is not a stop token in every format."""
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
    """A prompt with its answer as targets, followed by the token `end` where there is one."""
    answer = answer if end is None else [*answer, end]
    return Example(id, [*prompt, *answer], [False] * len(prompt) + [True] * len(answer))
