"""Read data sets as `Record`s: JSON, JSONL and CSV (each also .gz), with the column names of published data sets.

    instruction, input, output, history    Alpaca, Dolly, LIMA          question, answer          GSM8K
    problem, solution                      MagiCoder                    goal, target              AdvBench
    prompt, response | completion          many                         messages | conversations  OpenAI, ShareGPT, LIMA
    prompt                                 IFEval: no response          prompt, canonical_solution   HumanEval

A record's id is the data's own if it has an id column, else a hash of the content: the same record has the same id in
every file, and in every order of it.
"""
from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdft.errors import SdftError, nearest

# Our name of a column → the names that data sets have for it, the most likely first.
KNOWN = {
    "instruction": ("instruction", "question", "problem", "prompt", "goal", "query", "input"),
    "input": ("input", "context"),
    "response": ("response", "output", "answer", "solution", "canonical_solution", "completion", "target", "chosen"),
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "id": ("id", "key", "task_id", "uuid"),
}
CONVERSATIONS = {"messages": ("role", "content"), "conversations": ("from", "value"), "conversation": ("from", "value")}
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
         "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
csv.field_size_limit(1 << 30)


@dataclass(frozen=True)
class Record:
    """One example of a data set: an instruction x, its reference answer y, and the earlier turns of the dialogue."""

    id: str
    instruction: str                                          # the user's last turn
    response: str                                             # the reference answer, "" if there is none
    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()                 # earlier (user, assistant) turns, oldest first
    extra: Mapping[str, Any] = field(default_factory=dict)    # the other columns of the data


def read_records(path: Path | str, columns: Mapping[str, str] | None = None,
                 max_records: int | None = None) -> list[Record]:
    """Read the (first `max_records`) records of a .json, .jsonl or .csv file, or a .gz of one.

    columns: our names (instruction, input, response, system, history, id) → the file's, for names that are not
    recognised. Raises SdftError with file and line or record for a missing, empty or malformed file, unknown columns,
    values of a wrong type, and an id in the data that occurs twice.
    """
    path, columns = Path(path), dict(columns or {})
    for ours in columns:
        if ours not in KNOWN:
            raise SdftError(f"--columns: {ours!r} is not a column name here{nearest(ours, KNOWN)}; expected "
                            f"{', '.join(KNOWN)} = the file's name of it")
    if max_records is not None and max_records < 1:
        raise SdftError(f"max_records: expected at least 1, got {max_records}")
    records: dict[str, Record] = {}
    copies: dict[str, int] = {}
    for where, row in _rows(path):
        record, own_id = _record(row, columns, where)
        if record.id in records:
            if own_id:
                raise SdftError(f"{where}: the id {record.id!r} occurs twice; make ids unique, rename their column, or "
                                "name another with --columns id=NAME")
            copies[record.id] = copies.get(record.id, 1) + 1    # the same content again: another record
            record = replace(record, id=f"{record.id}-{copies[record.id]}")
        records[record.id] = record
        if len(records) == max_records:
            break
    if not records:
        raise SdftError(f"{path}: expected records, found none; the file is empty")
    return list(records.values())


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, row): the place for messages, "file, line 3" or "file, record 3", and the row's columns."""
    kind = (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()
    if kind not in (".json", ".jsonl", ".ndjson", ".csv"):
        raise SdftError(f"{path}: expected a .json, .jsonl or .csv file, or a .gz of one")
    text = _read(path)
    if kind == ".csv":
        yield from _csv_rows(path, text)
        return
    first = text.lstrip().partition("\n")[0].rstrip()       # of a .json file with one object per line: an object
    if kind == ".json" and first and not (first[0] == "{" and first[-1] == "}"):
        value = _parse(path, text, 0)
        rows: Iterator = ((f"{path}, record {number}", row)
                          for number, row in enumerate(value if isinstance(value, list) else [value], 1))
    else:
        rows = ((f"{path}, line {number}", _parse(path, line, number - 1))
                for number, line in enumerate(text.split("\n"), 1) if line.strip())
    for where, row in rows:
        if not isinstance(row, dict):
            raise SdftError(f"{where}: expected an object with named columns, found {type(row).__name__}")
        yield where, row


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    names: list[str] = []
    line = 1                                # of the beginning of the next row: quoted cells may hold line ends
    try:
        for cells in reader:
            where, line = f"{path}, line {line}", reader.line_num + 1
            if cells and not names:
                names = cells
                twice = next((name for name in names if names.count(name) > 1), None)
                if twice is not None:
                    raise SdftError(f"{where}: the column {twice!r} occurs twice; rename one")
            elif cells:
                if len(cells) != len(names):
                    raise SdftError(f"{where}: expected {len(names)} columns as in the header, found {len(cells)}")
                yield where, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise SdftError(f"{path}, line {line}: malformed CSV ({error}); correct the row that begins here") from error


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix.lower() == ".gz" else data).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise SdftError(f"{path}, line {line}: expected UTF-8 text; save the file as UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise SdftError(f"{path}: cannot read this file: {getattr(error, 'strerror', None) or error}") from error


def _parse(path: Path, text: str, offset: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise SdftError(f"{path}, line {error.lineno + offset}: malformed JSON ({error.msg}); correct or "
                        "remove it") from error
    except (ValueError, RecursionError) as error:       # a number of thousands of digits, brackets thousands deep
        raise SdftError(f"{path}, line {1 + offset}: malformed JSON ({error})") from error


def _record(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> tuple[Record, bool]:
    """Return the record of a row, and whether its id comes from the data."""
    for ours, theirs in columns.items():
        if theirs not in row:
            raise SdftError(f"{where}: --columns maps {ours} to {theirs!r}, which is not there"
                            f"{nearest(theirs, row)}; found {', '.join(row)}")
    names = {ours: columns.get(ours) or _first(row, known) for ours, known in KNOWN.items()}
    talk = None if columns.keys() - {"system", "id"} else _first(row, tuple(CONVERSATIONS))
    system = _text(row, names["system"], where, optional=True) or None
    if talk is not None:
        own, turns = _conversation(row[talk], *CONVERSATIONS[talk.strip().lower()], f"{where}: {talk}")
        (instruction, response), history = turns[-1], turns[:-1]
        system, used = own or system, {talk, names["system"], names["id"]}
    else:
        _refuse_unknown(row, names, where)
        instruction, response = _text(row, names["instruction"], where), ""
        if names["response"]:
            response = _text(row, names["response"], where)
        if names["input"] != names["instruction"]:
            added = _text(row, names["input"], where, optional=True)
            instruction += f"\n{added}" if added.strip() else ""
        history, used = _history(_value(row, names["history"]), where), set(names.values())
    if not instruction.strip():
        raise SdftError(f"{where}: the instruction is empty; fill it or remove the record")
    try:
        content = json.dumps((system, history, instruction, response), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise SdftError(f"{where}: {error.object[error.start]!a} is half a character (a surrogate without its other "
                        "half); correct or remove the record") from error
    id = _value(row, names["id"])
    own_id = isinstance(id, (str, int)) and str(id) != ""
    extra = {name: row[name] for name in row if name not in used}
    hashed = hashlib.sha256(content).hexdigest()[:16]
    return Record(str(id) if own_id else hashed, instruction, response, system, history, extra), own_id


def _refuse_unknown(row: Mapping[str, Any], names: Mapping[str, str | None], where: str) -> None:
    """Refuse a row whose instruction or response is in no known column. A row without further text has no response."""
    missing = [] if names["instruction"] else ["instruction"]
    if not names["response"] and any(isinstance(row[name], str) for name in row if name not in names.values()):
        missing.append("response")
    if missing:
        expected = "; ".join(f"for {ours} one of {', '.join(KNOWN[ours])}" for ours in missing)
        mapping = ",".join(f"{ours}=NAME" for ours in missing)
        raise SdftError(f"{where}: found the columns {', '.join(row)}; expected {expected}; name it with "
                        f"--columns {mapping}")


def _conversation(value: Any, role_key: str, text_key: str,
                  where: str) -> tuple[str | None, tuple[tuple[str, str], ...]]:
    """Return the system text and the (user, assistant) turns of a list of messages; a missing last answer is "".

    A list of texts, as LIMA has it, alternates between user and assistant.
    """
    messages = value if isinstance(value, list) else [value]
    if isinstance(value, list) and all(isinstance(message, str) for message in value):
        messages = [{role_key: ("user", "assistant")[index % 2], text_key: text} for index, text in enumerate(messages)]
    turns = []
    for message in messages:
        known = isinstance(message, dict)
        role = ROLES.get(str(message.get(role_key, message.get("role"))).lower()) if known else None
        text = message.get(text_key, message.get("content")) if known else None
        if role is None or not isinstance(text, str):
            raise SdftError(f"{where} is expected to be a list of texts or of {{{role_key!r}: 'user' or "
                            f"'assistant', {text_key!r}: text}}, found {str(message)[:80]}")
        turns.append((role, text))
    system = None
    if turns and turns[0][0] == "system":
        system, turns = turns[0][1], turns[1:]
    if turns and turns[-1][0] == "user":
        turns.append(("assistant", ""))
    roles = [role for role, _ in turns]
    if not turns or roles != ["user", "assistant"] * (len(turns) // 2):
        raise SdftError(f"{where} is expected to alternate, user first; found {', '.join(roles) or 'no turn'}")
    return system, tuple((user, answer) for (_, user), (_, answer) in zip(turns[::2], turns[1::2], strict=True))


def _first(row: Mapping[str, Any], known: tuple[str, ...]) -> str | None:
    """The first known name among the row's columns, in any case."""
    lower = {name.strip().lower(): name for name in row}
    return next((lower[name] for name in known if name in lower), None)


def _value(row: Mapping[str, Any], name: str | None) -> Any:
    return None if name is None else row.get(name)


def _text(row: Mapping[str, Any], name: str | None, where: str, optional: bool = False) -> str:
    value = _value(row, name)
    if value is None and optional:
        return ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise SdftError(f"{where}: column {name!r} is expected to hold text, found {type(value).__name__}")
    return value


def _history(value: Any, where: str) -> tuple[tuple[str, str], ...]:
    if not value:
        return ()
    if not isinstance(value, list) or not all(isinstance(turn, list) and len(turn) == 2 and all(
            isinstance(text, str) for text in turn) for turn in value):
        raise SdftError(f"{where}: history is expected to be a list of [user, assistant] turns")
    return tuple((user, assistant) for user, assistant in value)
