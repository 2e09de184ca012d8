"""`sdft prompt`: what the model really sees."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from sdft.commands import add_settings, settings
from sdft.errors import SdftError


def prompt(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    """Print the tokens of a prompt or of a record, those that are learned set apart."""
    parser.add_argument("instruction", nargs="?", metavar="TEXT",
                        help="the user's turn (default: the first record of the task)")
    parser.add_argument("--answer", metavar="TEXT", help="the assistant's turn: the prompt becomes a training example")
    parser.add_argument("--system", metavar="TEXT", help="system text")
    parser.add_argument("--id", metavar="ID", help="the record of the task or of --data with this id")
    parser.add_argument("--template", default="plain", metavar="NAME",
                        help="plain, alpaca, using, refer, gsm8k, gsm8k_distill, gsm8k_infer (default: plain)")
    parser.add_argument("--ids", action="store_true", help="one token a line, with its id")
    add_settings(parser, {"model": ("model", "chat"), "task": ()})

    def execute(options: argparse.Namespace) -> None:
        config, _ = settings(options)
        from sdft.data.chat import Example, encode_example, encode_prompt
        from sdft.data.show import show
        from sdft.data.templates import get_template
        from sdft.model import tokenizer_at
        from sdft.model.io.fetch import resolve

        record = _record(config, options)
        template = get_template(options.template)
        tokenizer = tokenizer_at(resolve(config.model.model))
        messages = template.messages(record, record.response)
        if record.response and not template.needs_reference:
            answer = {"role": "assistant", "content": record.response}
            example = encode_example(tokenizer, [*messages, answer], record.id, config.model.chat)
        else:
            tokens = encode_prompt(tokenizer, messages, template.prefix, config.model.chat)
            example = Example(record.id, tokens, [False] * len(tokens))
        print(show(tokenizer, example, colour=sys.stdout.isatty(), lines=options.ids))

    return execute


def _record(config, options: argparse.Namespace):
    from sdft.commands import records_of
    from sdft.data.records import Record

    if options.instruction is not None and (config.task.data or options.id):
        raise SdftError("prompt: expected TEXT or a record of --data or --id, got both; leave one out")
    if options.instruction is not None:
        return Record("prompt", options.instruction, options.answer or "", options.system)
    for record in records_of(config):
        if options.id is None or record.id == options.id:
            return record
    raise SdftError(f"--id: no record is called {options.id!r}")
