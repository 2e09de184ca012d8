"""Reading data sets: JSON, JSONL and CSV (each also .gz) in the shapes in which people publish them, as `Record`s.

    instruction, input, output, history    Alpaca, Dolly, LIMA          question, answer          GSM8K
    problem, solution                      MagiCoder                    goal, target              AdvBench
    prompt, response | completion          many                         messages | conversations  OpenAI, ShareGPT

A record's id is the data's own where a column of unique ids is there, else a hash of the content: the same record has
the same id in every file, and in every order of it.
"""
from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdft.errors import SdftError, nearest

FIELDS = ("instruction", "input", "response", "system", "history", "id")
INSTRUCTIONS = ("instruction", "question", "problem", "prompt", "goal", "query")
RESPONSES = ("response", "output", "answer", "solution", "completion", "target", "chosen")
IDS = ("id", "key", "task_id", "uuid")
CONVERSATIONS = {"messages": ("role", "content"), "conversations": ("from", "value"), "conversation": ("from", "value")}
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
         "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
csv.field_size_limit(1 << 30)


@dataclass(frozen=True)
class Record:
    """One example of a data set: an instruction x with its reference answer y, and what came before it."""

    id: str
    instruction: str                                          # the user's last turn
    response: str                                             # the reference answer, "" where there is none
    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()                 # earlier (user, assistant) turns, oldest first
    extra: Mapping[str, Any] = field(default_factory=dict)    # the other columns of the data


def read_records(path: Path | str, columns: Mapping[str, str] | None = None, limit: int | None = None) -> list[Record]:
    """Read the (first `limit`) records of a .json, .jsonl or .csv file, or a .gz of one.

    columns: our names (instruction, input, response, system, history, id) to the file's, where they cannot be told from
    the file's own names. Raises SdftError, naming file and line or record, for a missing, empty or malformed file, unknown
    columns, values of a wrong type, and ids that occur twice with different contents.
    """
    path, columns = Path(path), dict(columns or {})
    for ours in columns:
        if ours not in FIELDS:
            raise SdftError(f"--columns: {ours!r} is no column of ours{nearest(ours, FIELDS)}; expected "
                            f"{', '.join(FIELDS)} = the file's name of it")
    records: dict[str, Record] = {}
    copies: dict[str, int] = {}
    for where, row in _rows(path):
        if limit is not None and len(records) >= limit:
            break
        record = _record(row, columns, where)
        if record.id in records:
            if _own_id(row, columns):
                raise SdftError(f"{where}: the id {record.id!r} occurs twice; ids have to be unique")
            copies[record.id] = copies.get(record.id, 1) + 1      # the same content once more: still a record of its own
            record = Record(f"{record.id}-{copies[record.id]}", record.instruction, record.response, record.system,
                            record.history, record.extra)
        records[record.id] = record
    if not records:
        raise SdftError(f"{path}: expected records, found none; the file is empty")
    return list(records.values())


def content_id(*parts: Any) -> str:
    """16 hex digits that depend on the content alone."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:16]


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, row): "file, line 3" or "file, record 3" for messages, and the row's columns."""
    text = _read(path)
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind == ".csv":
        yield from _csv_rows(path, text)
        return
    if kind not in (".json", ".jsonl", ".ndjson"):
        raise SdftError(f"{path}: expected a .json, .jsonl or .csv file, or a .gz of one")
    if kind == ".json" and text.lstrip()[:1] == "[":
        rows: Iterator = ((f"{path}, record {number}", row) for number, row in enumerate(_parse(path, text, 0), 1))
    else:
        rows = ((f"{path}, line {number}", _parse(path, line, number - 1))
                for number, line in enumerate(text.split("\n"), 1) if line.strip())
    for where, row in rows:
        if not isinstance(row, dict):
            raise SdftError(f"{where}: expected an object with named columns, found {type(row).__name__}")
        yield where, row


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise SdftError(f"{where}: expected {len(reader.fieldnames or ())} columns as in the first line")
            yield where, row
    except csv.Error as error:
        raise SdftError(f"{path}, line {reader.line_num}: malformed CSV ({error})") from error


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise SdftError(f"{path}, line {line}: expected UTF-8 text; save the file as UTF-8") from error
    except (OSError, EOFError) as error:
        raise SdftError(f"{path}: cannot read this file: {getattr(error, 'strerror', None) or error}") from error


def _parse(path: Path, text: str, offset: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise SdftError(f"{path}, line {error.lineno + offset}: malformed JSON ({error.msg}); mend or remove it") from error


def _record(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> Record:
    for ours, theirs in columns.items():
        if theirs not in row:
            raise SdftError(f"{where}: --columns maps {ours} to {theirs!r}, which is not there"
                            f"{nearest(theirs, row)}; found {', '.join(row)}")
    talk = next((name for name in CONVERSATIONS if name in row), None)
    if talk is not None and "instruction" not in columns:
        return _from_conversation(row, talk, columns, where)
    names = {ours: columns.get(ours) or _first(row, known) for ours, known in
             (("instruction", INSTRUCTIONS), ("response", RESPONSES))}
    if names["instruction"] is None or names["response"] is None:
        missing = " and ".join(ours for ours, name in names.items() if name is None)
        raise SdftError(f"{where}: found the columns {', '.join(row)}, and none of them is known as {missing}; map them with "
                        "--columns instruction=NAME,response=NAME")
    instruction, response = (_text(row, name, where) for name in names.values())
    added = _text(row, columns.get("input", "input"), where, optional=True)
    if added.strip():
        instruction = f"{instruction}\n{added}"
    system = _text(row, columns.get("system", "system"), where, optional=True) or None
    history = _history(row.get(columns.get("history", "history")), where)
    used = {*names.values(), *columns.values(), "input", "system", "history"}
    return _finish(row, columns, where, instruction, response, system, history, used)


def _from_conversation(row: Mapping[str, Any], talk: str, columns: Mapping[str, str], where: str) -> Record:
    """A record from messages: the last user turn is its instruction, the answer to it its response."""
    role_key, text_key = CONVERSATIONS[talk]
    turns = []
    for message in row[talk] if isinstance(row[talk], list) else ():
        role = ROLES.get(str(message.get(role_key, message.get("role")))) if isinstance(message, dict) else None
        text = message.get(text_key, message.get("content")) if role else None
        if role is None or not isinstance(text, str):
            raise SdftError(f"{where}: {talk} is expected to be a list of {{{role_key!r}: 'user' or 'assistant', "
                            f"{text_key!r}: text}}, found {str(message)[:80]}")
        turns.append((role, text))
    system = None
    if turns and turns[0][0] == "system":
        system, turns = turns[0][1], turns[1:]
    if turns and turns[-1][0] == "user":
        turns.append(("assistant", ""))
    roles = [role for role, _ in turns]
    if not turns or roles != ["user", "assistant"] * (len(turns) // 2):
        raise SdftError(f"{where}: the turns of {talk} are expected to alternate, user first; found {', '.join(roles) or 'none'}")
    pairs = tuple((turns[index][1], turns[index + 1][1]) for index in range(0, len(turns), 2))
    return _finish(row, columns, where, *pairs[-1], system, pairs[:-1], {talk})


def _finish(row: Mapping[str, Any], columns: Mapping[str, str], where: str, instruction: str, response: str,
            system: str | None, history: tuple[tuple[str, str], ...], used: set[str]) -> Record:
    if not instruction.strip():
        raise SdftError(f"{where}: the instruction is empty; fill it or remove the record")
    id = _own_id(row, columns) or content_id(system, history, instruction, response)
    return Record(id, instruction, response, system, history, {name: row[name] for name in row if name not in used})


def _own_id(row: Mapping[str, Any], columns: Mapping[str, str]) -> str | None:
    name = columns.get("id") or _first(row, IDS)
    return str(row[name]) if name and isinstance(row[name], (str, int)) and str(row[name]) else None


def _first(row: Mapping[str, Any], known: tuple[str, ...]) -> str | None:
    """The first known name among the row's columns, whatever its case."""
    lower = {name.strip().lower(): name for name in row}
    return next((lower[name] for name in known if name in lower), None)


def _text(row: Mapping[str, Any], name: str, where: str, optional: bool = False) -> str:
    value = row.get(name)
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
