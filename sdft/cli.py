"""The command line: `sdft COMMAND`, also `python -m sdft COMMAND`.

A command's module is imported when it is called, and torch when it computes, so that help is instant. Progress goes to
stderr, results to stdout or files. Exit status: 0 done, 1 a failure reported in one line, 2 wrong usage,
130 interrupted.
"""
from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from sdft.errors import Interrupted, SdftError, nearest

COMMANDS = {     # name → module of sdft.commands, what it does, an example
    "run": ("run", "run the whole experiment: distill, train, evaluate, measure, report",
            "sdft run --train_records=100"),
    "sweep": ("sweep", "run a study: many runs that share their common stages, and its page",
              "sdft sweep benchmarks/studies/1-first-experiments.toml"),
    "fetch": ("models", "download and convert a model", "sdft fetch smollm2-135m"),
    "plan": ("plan", "print what a run will need: memory, tokens, operations, time", "sdft plan --train_records=100"),
    "distill": ("distill", "let the base model rewrite reference answers, and choose among the rewrites",
                "sdft distill --data mine.jsonl --out runs/mine"),
    "train": ("train", "fine-tune on records or on distilled.jsonl",
              "sdft train --data runs/mine/distilled.jsonl --out runs/mine/sdft"),
    "eval": ("eval", "answer and score test suites", "sdft eval --adapter runs/mine/sdft --suite instructions"),
    "measure": ("measure", "print one measure: of weights, targets, outputs or activations",
                "sdft measure shift --adapter runs/mine/sdft"),
    "report": ("run", "write the report of a run or study folder again", "sdft report runs/passages-smollm2-135m"),
    "generate": ("talk", "answer prompts", 'sdft generate "Why is the sky blue?"'),
    "chat": ("talk", "chat with a model", "sdft chat --adapter runs/passages-smollm2-135m/sdft"),
    "prompt": ("prompt", "show a rendered prompt token by token, with its loss mask",
               'sdft prompt "Why?" --answer "Because."'),
    "merge": ("models", "merge an adapter into the weights, and save a Hugging Face checkpoint",
              "sdft merge runs/passages-smollm2-135m/sdft --out merged"),
}

OUT_OF_MEMORY = ("can't allocate memory", "out of memory")      # torch's words on the CPU, and on a GPU


class Help(argparse.RawDescriptionHelpFormatter):
    """Help that lists settings only in their groups, under their short names, and not in the usage line."""

    def add_usage(self, usage, actions, groups, prefix=None):
        options = [action for action in actions if "." not in action.dest]
        if len(options) < len(actions):
            options.append(argparse.Action(["--KEY"], "setting", metavar="VALUE"))
        super().add_usage(usage, options, groups, prefix)

    def _format_action_invocation(self, action):
        if "." not in action.dest:
            return super()._format_action_invocation(action)
        return f"{action.option_strings[0]} {self._format_args(action, action.metavar)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    try:
        status = _main(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()          # here, where a failure can still be reported
        return status
    except SdftError as error:
        print(f"sdft: {error}", file=sys.stderr)
        return 130 if isinstance(error, Interrupted) else 1
    except KeyboardInterrupt:
        print("\nsdft: interrupted; finished work is kept: run the same command again to resume", file=sys.stderr)
        return 130
    except BrokenPipeError:     # the reader of the output has gone, as with `| head`: nothing to report
        _close_stdout()
        return 0
    except OSError as error:    # other files report their own failures; no file name means the output
        if error.filename is None:
            _close_stdout()
            print(f"sdft: cannot write the output: {error.strerror or error}; free some space or write elsewhere",
                  file=sys.stderr)
        else:
            print(f"sdft: {str(error.filename)[:100]}: {error.strerror}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(text in str(error) for text in OUT_OF_MEMORY):
            raise
        print("sdft: out of memory; finished work is kept. Resume with a smaller --generation_batch_size, a smaller "
              "--micro_tokens or --gradient_checkpointing=true, or use another folder with a smaller --max_length or "
              "model", file=sys.stderr)
        return 1


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: sdft COMMAND [options]        sdft COMMAND --help for each\n\nSelf-distillation fine-tuning of "
              "chat models (arXiv 2402.13669), with measures of its effects.\n\ncommands:")
        print(*(f"  {name:<10}{text}" for name, (_, text, _) in COMMANDS.items()), sep="\n")
        print("\nexample:  sdft run      (built-in model and data; ends with a table and a report)")
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
    parser = argparse.ArgumentParser(prog=f"sdft {name}", description=f"{text[0].upper()}{text[1:]}.",
                                     epilog=f"example:  {example}", formatter_class=Help, allow_abbrev=False)
    command = import_module(f"sdft.commands.{module}")
    execute = getattr(command, name)(parser)
    if any("." in action.dest for action in parser._actions):
        parser.epilog = f"A setting may also be written with its section: --model.dtype.\n\nexample:  {example}"
    try:
        options, unknown = parser.parse_known_args([_underscores(argument) for argument in rest])
    except SystemExit:              # help, or wrong usage
        sys.stdout.flush()
        raise
    if unknown:
        first = unknown[0].partition("=")[0]
        if not first.startswith("--"):
            parser.error(f"unexpected argument {unknown[0]!r}")
        known = [option for action in parser._actions for option in action.option_strings]
        raise SdftError(f"unknown setting {first}{nearest(first, known)}; `{parser.prog} --help` lists them")
    execute(options)
    return 0


def _underscores(argument: str) -> str:
    """Accept hyphens: --max-new-tokens=8 is --max_new_tokens=8."""
    name, equals, value = argument.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if argument.startswith("--") else argument


def _close_stdout() -> None:
    """Discard the rest of the output, on which Python would fail again when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
