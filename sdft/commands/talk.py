"""`sdft generate` and `sdft chat`."""
from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

from sdft.commands import Execute, add_settings, load_with_adapter, settings
from sdft.errors import SdftError

if TYPE_CHECKING:
    from sdft.generation import Output, Sampling
    from sdft.model.llama import Llama
    from sdft.tokenizers.tokenizer import Tokenizer


def generate(parser: argparse.ArgumentParser) -> Execute:
    """Print the answers, in the order of the prompts."""
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="User turns; without any, one per line of stdin.")
    parser.add_argument("--json", action="store_true", help="Print one JSON line per answer: id, text, tokens, finish.")
    _common(parser)

    def execute(options: argparse.Namespace) -> None:
        config, prompts = settings(options)[0], options.prompts
        if prompts in ([], ["-"]):
            if sys.stdin.isatty():
                print("one prompt per line; end with Ctrl-D", file=sys.stderr)
            prompts = [line.rstrip("\n") for line in sys.stdin if line.strip()]
        if not prompts:
            raise SdftError("expected at least one prompt, as an argument or on stdin; got none")
        from sdft.data.chat import encode_prompt
        from sdft.experiment.context import sampling
        from sdft.generation import Request, stream

        model, tokenizer = load_with_adapter(config, options.adapter)
        turns = ([{"role": "user", "content": prompt}] for prompt in prompts)
        requests = [Request(str(index), encode_prompt(tokenizer, messages, chat=config.model.chat))
                    for index, messages in enumerate(turns)]
        waiting: dict[int, Output] = {}         # answers come as they finish, and are printed in the prompts' order
        following = 0
        for answer in stream(model, tokenizer, requests, sampling(config, options.max_new_tokens),
                             config.generate.generation_batch_size):
            waiting[int(answer.id)] = answer
            while following in waiting:
                following, answer = following + 1, waiting.pop(following)
                if options.json:
                    print(json.dumps(asdict(answer), ensure_ascii=False), flush=True)
                else:
                    print(answer.text, end="\n\n" if len(prompts) > 1 else "\n", flush=True)

    return execute


def chat(parser: argparse.ArgumentParser) -> Execute:
    """Chat; an answer is printed token by token. Ctrl-C stops an answer, Ctrl-D ends the chat."""
    parser.add_argument("--system", metavar="TEXT", help="System text.")
    _common(parser)

    def execute(options: argparse.Namespace) -> None:
        config, _ = settings(options)
        from sdft.experiment.context import sampling

        model, tokenizer = load_with_adapter(config, options.adapter)
        messages = [{"role": "system", "content": options.system}] if options.system else []
        print("/new starts a new conversation, Ctrl-C stops an answer, Ctrl-D ends", file=sys.stderr)
        while True:
            try:
                text = input("> " if sys.stdin.isatty() else "").strip()
            except EOFError:
                return
            if not text:
                continue
            if text == "/new":
                messages = messages[:1] if options.system else []
                continue
            messages.append({"role": "user", "content": text})
            answer = _answer(model, tokenizer, messages, sampling(config, options.max_new_tokens), config.model.chat)
            messages.append({"role": "assistant", "content": answer})

    return execute


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", metavar="DIR", help="Adapter to load onto the model.")
    parser.add_argument("--max_new_tokens", type=int, default=256, metavar="N",
                        help="Maximum tokens of an answer (default: 256).")
    add_settings(parser, {"model": (), "generate": ()})


def _answer(model: Llama, tokenizer: Tokenizer, messages: list[dict[str, str]], sampling: Sampling,
            chat_format: str | None) -> str:
    """Print an answer token by token, and return it."""
    from sdft.data.chat import encode_prompt
    from sdft.generation import stream_tokens

    tokens: list[int] = []
    shown = ""
    with suppress(KeyboardInterrupt):                 # keep the answer so far
        for token in stream_tokens(model, tokenizer, encode_prompt(tokenizer, messages, chat=chat_format), sampling):
            tokens.append(token)
            text = tokenizer.decode(tokens)
            if not text.endswith("\ufffd"):          # a character that is not complete yet
                print(text[len(shown) :], end="", flush=True)
                shown = text
    text = tokenizer.decode(tokens)
    print(text[len(shown) :])
    return text
