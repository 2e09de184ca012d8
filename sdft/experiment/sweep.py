"""The cells of a study, one run folder each, one after the other; what two cells have in common is made once.

    runs/<study>/  study.toml   ratio=0,seed=42/ …a run folder…   ratio=0.5,seed=42/ …   cells.json   report.md  *.svg

A *piece* is what one stage of a run leaves in its folder: the rewrites, the gap, the seed's answers, an arm's training,
its answers, its measures. Its *key* is every setting that it depends on. A cell that begins takes over the pieces whose
key is that of a finished cell; `run` then finds them and goes on behind them, as it does after an interruption. All of
them say themselves how they were made (model, template, sampling, settings, data), and `run` refuses or replaces what is
foreign: a key that forgot a setting would not end in a wrong result. What the measures need of the seed (its view of
its own answers, its Fisher) stays in memory from cell to cell.

A study can move from one machine to another without its run folders: a cell that cells.json holds with the same settings
is finished, and only its numbers are carried on.

    sdft sweep benchmarks/studies/2-mix-ratio.toml
"""
from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdft.errors import Interrupted, SdftError, nearest
from sdft.experiment.arms import ON_ORIGINALS
from sdft.experiment.collect import cell_key, cell_row, collect
from sdft.experiment.config import Config, to_values
from sdft.experiment.folder import is_new, make_folder
from sdft.experiment.lab import Shared
from sdft.experiment.run import run
from sdft.experiment.study import Cell, Study, read_study
from sdft.experiment.study_statistics import value
from sdft.files import is_temporary, read_json, read_text, write_bytes, write_json, write_text
from sdft.model.fetch import model_hash, resolve

@dataclass(frozen=True)
class Piece:
    """What a stage leaves in a run folder: its files or folders, and as JSON the settings it depends on."""

    paths: tuple[str, ...]
    key: str


def pieces(config: Config, arms: Sequence[str]) -> dict[str, Piece]:
    """The pieces of a run that another may take over, by the name that their stage has in seconds.jsonl."""
    values = to_values(config)
    common = {name: values[name] for name in ("model", "task")}
    items = {name: value for name, value in values["eval"].items() if name not in ("train_template", "probes")}
    answers = {"generate": values["generate"], "eval": items}
    rewriting = {name: values["distill"][name] for name in ("template", "rewrite_tokens")}
    distilled = {"distill": values["distill"], "generate": values["generate"]}
    template = {"template": values["eval"]["train_template"]}
    chosen = {"seed": config.train.seed} if 0 < config.distill.ratio < 1 else {}         # see `leave_out`
    found = {"rewrite": _piece(common, {"generate": values["generate"], "distill": rewriting},
                               "rewrites.jsonl", "rewrites.settings.json"),
             "gap": _piece(common, distilled | template | chosen, "gap.json"),
             "eval seed": _piece(common, answers, "eval/seed")}
    for arm in arms:
        targets = {"train": values["train"], **template}
        if arm not in ON_ORIGINALS:
            targets |= distilled | {"arms": {name: value for name, value in values["arms"].items() if name != "arms"}}
        found[f"train {arm}"] = _piece(common, targets, arm)
        found[f"eval {arm}"] = _piece(common, targets | answers, f"eval/{arm}")
        found[f"measure {arm}"] = _piece(common, targets | {**answers, "eval": values["eval"]}, f"measured/{arm}.json")
    return found | _seed_text(config, arms, common | template | {"generate": values["generate"], "eval": items,
                                                                 "rewrite_tokens": rewriting["rewrite_tokens"]})


def _seed_text(config: Config, arms: Sequence[str], key: dict[str, Any]) -> dict[str, Piece]:
    """What the seed writes for single arms, whatever they make of it; where the arm itself is taken over, it has it."""
    found = {}
    if "self-output" in arms:
        found["answer self-output"] = _piece(key, {}, "self-output/answers.jsonl", "self-output/answers.settings.json")
    if {"replay", "ewc"} & set(arms):
        count = {"ewc": "ewc" in arms, "replay": config.arms.replay if "replay" in arms else None}
        found["seed text"] = _piece(key, count,
                                    *(f"seed-{what}.{kind}" for what in ("turns", "answers")
                                      for kind in ("jsonl", "settings.json")))
    return found


def _piece(common: dict[str, Any], own: dict[str, Any], *paths: str) -> Piece:
    return Piece(paths, json.dumps(common | own, sort_keys=True))


def arms_of(config: Config) -> tuple[str, ...]:
    """The arms that a run trains."""
    return tuple(dict.fromkeys(config.arms.arms))


def sweep(study: Study, cells: Sequence[Cell], folder: Path) -> dict[str, str]:
    """Run every cell that is not finished, in `folder`; return cell → reason for those that failed.

    cells.json is written anew after every cell. Raises SdftError where `folder` holds another study; Interrupted,
    when the user stops it, passes through.
    """
    claim(study, folder)
    rows = carried(cells, folder)
    done: list[Cell] = []
    failed: dict[str, str] = {}
    shared: Shared = {}
    in_turn = sorted((cell for cell in cells if cell.name not in rows),
                     key=lambda cell: not _summary(folder, cell).exists())              # the others may take from them
    if not in_turn:
        write_json(folder / "cells.json", collect(study, [rows[cell.name] for cell in cells], failed))
    for number, cell in enumerate(in_turn, start=len(rows) + 1):
        print(f"cell {number} of {len(cells)}: {cell.name}", file=sys.stderr)
        try:
            _run_cell(cell, done, folder, shared)
            done.append(cell)
            rows[cell.name] = cell_row(cell, folder / cell.name)
        except Interrupted:
            raise
        except SdftError as error:
            failed[cell.name] = str(error)
            print(f"cell {cell.name} failed: {error}", file=sys.stderr)
        write_json(folder / "cells.json", collect(study, [rows[cell.name] for cell in cells if cell.name in rows], failed))
        if cell.name in rows:
            _check_column(study, rows[cell.name])
    return failed


def carried(cells: Sequence[Cell], folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of cells.json, by name, of cells of the same settings, data and model whose run folders are not here."""
    path = folder / "cells.json"
    rows = {row["name"]: row for row in read_json(path)["cells"]} if path.exists() else {}
    known = [cell for cell in cells if not (folder / cell.name).exists()
             and rows.get(cell.name, {}).get("key") == cell_key(cell)]
    hashes = {name: model_hash(resolve(name)) for name in {cell.config.model.model for cell in known}}
    return {cell.name: rows[cell.name] for cell in known
            if rows[cell.name]["model_sha256"] == hashes[cell.config.model.model]}


def _check_column(study: Study, row: Mapping[str, Any]) -> None:
    """Stop at the first cell where it has no such end point (SdftError): the others would have none either."""
    arm, column = study.primary["arm"], study.primary["column"]
    if arm in row["arms"] and value(row, arm, column) is None:
        known = [*row["arms"][arm], *row["measures"]]
        raise SdftError(f"{study.path}: primary.column: {arm} has no {column!r}{nearest(column, known)}; cells.json "
                        "lists its columns")


def remaining(cells: Sequence[Cell], folder: Path) -> tuple[float, int] | None:
    """How long the cells that are not finished will take: seconds, and the number of cells that this is taken from.

    From the seconds of finished cells, stage by stage: the largest, which is what the stage takes where nothing was
    taken over; for a stage that none of them had, the largest of its kind (all "train …"). A piece that an earlier cell
    has or will have made costs nothing. None where no cell is finished.
    """
    finished = [cell for cell in cells if _summary(folder, cell).exists()]
    if not finished:
        return None
    costs: dict[str, float] = {}
    for cell in finished:
        for stage, seconds in read_json(_summary(folder, cell))["seconds"].items():
            for name in (stage, stage.partition(" ")[0]):
                costs[name] = max(costs.get(name, 0.0), seconds)
    total = sum(costs.get(stage, costs.get(stage.partition(" ")[0], 0.0))
                for _, stages in to_make(cells, folder) for stage in stages)
    return total, len(finished)


def to_make(cells: Sequence[Cell], folder: Path) -> list[tuple[Cell, list[str]]]:
    """Every cell that is not finished, with the stages whose pieces no cell before it has or will have made."""
    keys = {(stage, piece.key) for cell in cells if _summary(folder, cell).exists()
            for stage, piece in pieces(cell.config, arms_of(cell.config)).items()}
    found, elsewhere = [], carried(cells, folder)
    for cell in cells:
        if cell.name not in elsewhere and not _summary(folder, cell).exists():
            own = {(stage, piece.key) for stage, piece in pieces(cell.config, arms_of(cell.config)).items()}
            found.append((cell, sorted(stage for stage, _ in own - keys)))
            keys |= own
    return found


def _run_cell(cell: Cell, done: Sequence[Cell], folder: Path, shared: Shared) -> None:
    """Run a cell, with the pieces of those before it; where it fails before any work, leave no folder behind."""
    own = folder / cell.name
    new = is_new(own)
    if new:
        make_folder(own, cell.config, model_hash(resolve(cell.config.model.model)))
    if not (own / "summary.json").exists():
        take_over(cell, done, folder)
    try:
        run(cell.config, cell.given, own, shared)
    except SdftError:
        if new and not (own / "seconds.jsonl").exists():        # settings that no run takes: better ones may follow
            shutil.rmtree(own)
        raise


def take_over(cell: Cell, done: Sequence[Cell], folder: Path) -> list[str]:
    """Give `cell` the pieces that a finished cell has made with the same key; return their stages.

    A piece of which the cell has any file is left as it is: the cell was at work on it, or was stopped just here.
    """
    taken = []
    for stage, piece in pieces(cell.config, arms_of(cell.config)).items():
        target = folder / cell.name
        source = next((folder / other.name for other in done
                       if pieces(other.config, arms_of(other.config)).get(stage) == piece), None)
        if source is None or any((target / path).exists() for path in piece.paths):
            continue
        files = [file for path in piece.paths for file in _files(source / path)]
        # Settings before their journal, a log before its state: what is there after a kill can be gone on with.
        for file in sorted(files, key=lambda file: (file.suffix, file.name)):
            _carry(file, target / file.relative_to(source))
        taken += [stage] if files else []
    return taken


def _files(path: Path) -> list[Path]:
    files = [path] if path.is_file() else path.rglob("*")
    return [file for file in files if file.is_file() and not is_temporary(file)]


def _carry(source: Path, target: Path) -> None:
    """A journal grows in place, so it is copied; every other file is only ever replaced, so one copy serves both."""
    if source.suffix != ".jsonl":
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, target)
            return
        except OSError:                     # a file system without links
            pass
    write_bytes(target, source.read_bytes())


def claim(study: Study, folder: Path) -> None:
    """Note the study in its folder (SdftError where there is another one's, or something else)."""
    path = folder / "study.toml"
    if path.exists():
        other = read_study(path).name
        if other != study.name:
            raise SdftError(f"{folder} holds the study {other!r}, not {study.name!r}; name another folder with --out")
    elif folder.exists() and any(not is_temporary(file) and file.name != "cells.json" for file in folder.iterdir()):
        raise SdftError(f"{folder}: expected the folder of a study or an empty one; name another with --out")
    write_text(path, read_text(study.path))


def _summary(folder: Path, cell: Cell) -> Path:
    return folder / cell.name / "summary.json"
