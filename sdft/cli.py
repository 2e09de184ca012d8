"""The command line: `sdft COMMAND`, also `python -m sdft COMMAND`.

Each command's module is imported when it is called, and torch when it computes, so that help comes at once. Progress goes
to stderr, results to stdout or files. Exit status: 0 done, 1 a failure told in one line, 2 wrong usage, 130 interrupted.
"""
from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from sdft.errors import SdftError, nearest

COMMANDS = {     # name → module of sdft.commands, what it does, an example
    "run": ("run", "the whole experiment: distil, train, evaluate, measure, report", "sdft run --train_records=100"),
    "fetch": ("models", "download and convert a model", "sdft fetch smollm2-135m"),
    "distill": ("distill", "let the seed rewrite reference answers, and choose among the rewrites",
                "sdft distill --data mine.jsonl --out runs/mine"),
    "train": ("train", "fine-tune on records or on distilled.jsonl", "sdft train --data runs/mine/distilled.jsonl --out runs/mine/sdft"),
    "eval": ("eval", "run the suites of a task", "sdft eval --adapter runs/mine/sdft --suite instructions"),
    "measure": ("measure", "shift of the weights, gap of the targets, drift of the outputs",
                "sdft measure shift --adapter runs/mine/sdft"),
    "report": ("run", "write the report of a run folder again", "sdft report runs/passages-smollm2-135m"),
    "generate": ("talk", "answer prompts", 'sdft generate "Why is the sky blue?"'),
    "chat": ("talk", "talk with a model", "sdft chat --adapter runs/passages-smollm2-135m/sdft"),
    "prompt": ("prompt", "show a rendered prompt token by token, with its loss mask", 'sdft prompt "Why?" --answer "Because."'),
    "merge": ("models", "merge an adapter into the weights, saved as a Hugging Face checkpoint",
              "sdft merge runs/passages-smollm2-135m/sdft --out merged"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    try:
        return _main(list(sys.argv[1:] if argv is None else argv))
    except SdftError as error:
        print(f"sdft: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsdft: interrupted; what is finished is kept: run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:     # the reader of our output has gone, as `| head` does: nothing to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0 if argv else 2
    if argv[0] == "--version":
        import sdft

        print(f"sdft {sdft.__version__}")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        print(f"sdft: unknown command {name!r}{nearest(name, COMMANDS)}; `sdft --help` lists them", file=sys.stderr)
        return 2
    module, text, example = COMMANDS[name]
    parser = argparse.ArgumentParser(prog=f"sdft {name}", description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False,
                                     epilog=f"example:  {example}", formatter_class=argparse.RawDescriptionHelpFormatter)
    command = import_module(f"sdft.commands.{module}")
    execute = getattr(command, name)(parser)
    options, unknown = parser.parse_known_args([_underscores(argument) for argument in rest])
    if unknown:
        _refuse(parser, unknown)
    execute(options)
    sys.stdout.flush()
    return 0


def _underscores(argument: str) -> str:
    """--max-new-tokens=8 is --max_new_tokens=8."""
    name, equals, value = argument.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if argument.startswith("--") else argument


def _overview() -> str:
    lines = ["usage: sdft COMMAND [options]        sdft COMMAND --help for each", "",
             "Self-distillation fine-tuning of chat models (arXiv 2402.13669), and what it does to them.", "", "commands:"]
    lines += [f"  {name:<10}{text}" for name, (_, text, _) in COMMANDS.items()]
    return "\n".join([*lines, "", "example:  sdft run        (built-in model and data; a report in about ten minutes)"])


def _refuse(parser: argparse.ArgumentParser, unknown: list[str]) -> None:
    """Tell of the first argument that this command does not know."""
    known = [option for action in parser._actions for option in action.option_strings]
    name = unknown[0].partition("=")[0]
    if not name.startswith("--"):
        parser.error(f"unexpected argument {unknown[0]!r}")
    raise SdftError(f"unknown setting {name}{nearest(name, known)}; `{parser.prog} --help` lists them")
