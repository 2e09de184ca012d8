"""`sdft prompt`: the rendered prompt, token by token, with its loss mask."""
from __future__ import annotations

import argparse
import sys

from sdft.commands import Execute, add_settings, records_of, settings
from sdft.errors import SdftError


def prompt(parser: argparse.ArgumentParser) -> Execute:
    """Print the tokens of a prompt or of a record, with the target tokens marked."""
    parser.add_argument("instruction", nargs="?", metavar="TEXT",
                        help="User turn (default: the first record of the task).")
    parser.add_argument("--answer", metavar="TEXT", help="Assistant turn; it makes the prompt a training example.")
    parser.add_argument("--system", metavar="TEXT", help="System text.")
    parser.add_argument("--id", metavar="ID", help="Id of a record of the task or of --data.")
    parser.add_argument("--template", default="plain", metavar="NAME",
                        help="Template: plain, alpaca, using, refer, gsm8k, gsm8k_distill, … (default: plain).")
    parser.add_argument("--ids", action="store_true", help="Print one token per line, with its id.")
    add_settings(parser, {"model": ("model", "chat"), "task": ()})

    def execute(options: argparse.Namespace) -> None:
        config, _ = settings(options)
        from sdft.data.chat import Example, encode_example, encode_prompt
        from sdft.data.records import Record
        from sdft.data.show import show
        from sdft.data.templates import get_template
        from sdft.model import tokenizer_at
        from sdft.model.io.fetch import resolve

        if options.instruction is not None and (config.task.data or options.id):
            raise SdftError("prompt: expected TEXT or a record of --data or --id, got both; leave one out")
        records = ([Record("prompt", options.instruction, options.answer or "", options.system)]
                   if options.instruction is not None else
                   [record for record in records_of(config) if options.id in (None, record.id)])
        if not records:
            raise SdftError(f"--id: no record is called {options.id!r}")
        record = records[0]
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
