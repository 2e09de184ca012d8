"""The cells of a study, one run folder each, one after the other; what two cells have in common is made once.

    runs/<study>/  study.toml   ratio=0,seed=42/ …a run folder…   ratio=0.5,seed=42/ …   cells.json   report.md  *.svg

A *piece* is what one stage of a run leaves in its folder: the rewrites, the gap, the seed's answers, an arm's training,
its answers, its measures. Its *key* is every setting that it depends on. A cell that begins takes over the pieces whose
key is that of a finished cell; `run` then finds them and goes on behind them, as it does after an interruption. All of
them say themselves how they were made (model, template, sampling, settings, data), and `run` refuses or replaces what is
foreign: a key that forgot a setting would not end in a wrong result. What the measures need of the seed (its view of
its own answers, its Fisher) stays in memory from cell to cell.

A study can move from one machine to another without its run folders: a cell that cells.json holds with the same
settings, data and model is finished, and only its numbers are carried on. No row of cells.json is lost: see collect.py.

    sdft sweep benchmarks/studies/2-mix-ratio.toml
"""
from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdft.errors import Interrupted, SdftError, nearest
from sdft.experiment.arms import DECODING, READS, SEED_TEXT, TRAINED_AS, settings_of
from sdft.experiment.context import Shared
from sdft.experiment.run import run
from sdft.experiment.run_folder import is_finished, is_new, make_folder, sources
from sdft.experiment.settings import SECTION_OF, Config, to_values
from sdft.files import is_temporary, read_json, read_text, write_bytes, write_json, write_text
from sdft.model.io.fetch import model_hash, resolve
from sdft.studies.collect import Row, cell_key, cell_row, collect, identity, rows_in, study_of
from sdft.studies.specification import Cell, Study, read_study
from sdft.studies.statistics import value

MEASURES_ONLY = ("n_probe_texts", "svd_layers")       # of the settings of evaluation: what no answer depends on


@dataclass(frozen=True)
class Piece:
    """What a stage leaves in a run folder: its files or folders, and as JSON the settings it depends on."""

    paths: tuple[str, ...]
    key: str


def pieces(config: Config, arms: Sequence[str]) -> dict[str, Piece]:
    """The pieces of a run that another may take over, by the name that their stage has in seconds.jsonl."""
    values = to_values(config)
    common = {name: values[name] for name in ("model", "task")}
    items = {name: value for name, value in values["eval"].items() if name not in ("train_template", *MEASURES_ONLY)}
    answers = {"generate": values["generate"], "eval": items}
    rewriting = {name: values["distill"][name] for name in ("template", "rewrite_tokens")}
    template = {"train_template": values["eval"]["train_template"]}
    chosen = {"seed": config.train.seed} if 0 < config.distill.mix_ratio < 1 else {}         # see `leave_out`
    found = {"rewrite": _piece(common, {"generate": values["generate"], "distill": rewriting},
                               "rewrites.jsonl", "rewrites.settings.json"),
             "gap": _piece(common, _read(config, READS["sdft"]) | template | chosen, "gap.json"),
             "eval base": _piece(common, answers, "eval/base")}
    for arm in arms:
        trained = TRAINED_AS.get(arm, arm)
        if trained == arm or trained not in arms:
            found[f"train {arm}"] = _piece(common, template | _training(config, trained), trained)
        own = template | _training(config, arm)
        found[f"eval {arm}"] = _piece(common, own | answers, f"eval/{arm}")
        found[f"measure {arm}"] = _piece(common, own | {**answers, "eval": values["eval"]}, f"measured/{arm}.json")
    return found | _base_text(config, arms, common, template)


def _training(config: Config, arm: str) -> dict[str, Any]:
    """What an arm is made with beside the data and the template of training."""
    return {"train": asdict(settings_of(arm, config.train)), "reads": _read(config, READS.get(arm, ()))}


def _read(config: Config, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(getattr(config, SECTION_OF[name]), name) for name in names}


def _base_text(config: Config, arms: Sequence[str], common: dict[str, Any],
               template: dict[str, Any]) -> dict[str, Piece]:
    """What the seed writes for single arms, whatever they make of it; where the arm itself is taken over, it has it."""
    found = {}
    if "self-output" in arms:
        found["answer self-output"] = _piece(common | template, _read(config, ("rewrite_tokens", *DECODING)),
                                             "self-output/answers.jsonl", "self-output/answers.settings.json")
    if {"replay", "ewc"} & set(arms):
        count = {"ewc": "ewc" in arms, "replay": config.arms.replay_fraction if "replay" in arms else None}
        found["base text"] = _piece(common, _read(config, SEED_TEXT) | count,
                                    *(f"base-{what}.{kind}" for what in ("turns", "answers")
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
    before, rows = rows_in(folder), carried(cells, folder)
    _tell_earlier(before, cells)
    done: list[Cell] = []
    failed: dict[str, str] = {}
    shared: Shared = {}

    def write() -> None:
        found = [rows[cell.name] for cell in cells if cell.name in rows]
        write_json(folder / "cells.json", collect(study, found, failed, before))

    in_turn = sorted((cell for cell in cells if cell.name not in rows),
                     key=lambda cell: not is_finished(folder / cell.name))              # the others may take from them
    if not in_turn:
        write()
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
        write()
        if cell.name in rows:
            _check_column(study, rows[cell.name])
    return failed


def carried(cells: Sequence[Cell], folder: Path) -> dict[str, Row]:
    """The rows of cells.json, by name, of cells of the same settings, data and model that are not finished in a folder.

    What a folder here has begun of such a cell is left as it is.
    """
    rows = {identity(row): row for row in rows_in(folder)}
    known = {(name, key) for name, key, _ in rows}
    open_cells = [(cell, key) for cell in cells if not is_finished(folder / cell.name)
                  and (cell.name, key := cell_key(cell)) in known]
    hashes = {name: model_hash(resolve(name)) for name in {cell.config.model.model for cell, _ in open_cells}}
    wanted = {cell.name: (cell.name, key, hashes[cell.config.model.model]) for cell, key in open_cells}
    return {name: rows[row] for name, row in wanted.items() if row in rows}


def _tell_earlier(rows: Sequence[Row], cells: Sequence[Cell]) -> None:
    """Say which rows are of no cell as it is now."""
    now = {(cell.name, cell_key(cell)) for cell in cells}
    names = [row["name"] for row in rows if identity(row)[:2] not in now]
    if names:
        more = f", … ({len(names)} in all)" if len(names) > 4 else ""
        print("cells.json: kept under \"earlier\", since no cell has their settings, data and measures: "
              f"{', '.join(names[:4])}{more}", file=sys.stderr)


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
    """Every cell that is not finished, with the stages whose pieces no cell before it has or will have made.

    One that was finished by an older version has all but the measures.
    """
    known = {piece for cell in cells if is_finished(folder / cell.name) for piece in _pieces(cell).values()}
    found, elsewhere = [], carried(cells, folder)
    for cell in cells:
        if cell.name not in elsewhere and not is_finished(folder / cell.name):
            again = _summary(folder, cell).exists()
            found.append((cell, sorted(stage for stage, piece in _pieces(cell).items() if piece not in known
                                       and (not again or stage.startswith(("gap", "measure "))))))
            known |= set(_pieces(cell).values())
    return found


def _pieces(cell: Cell) -> dict[str, Piece]:
    return pieces(cell.config, arms_of(cell.config))


def _run_cell(cell: Cell, done: Sequence[Cell], folder: Path, shared: Shared) -> None:
    """Run a cell, with the pieces of those before it; where it fails before any work, leave no folder behind."""
    own = folder / cell.name
    new = is_new(own)
    if new:
        make_folder(own, cell.config, sources(resolve(cell.config.model.model), cell.data))
    if not is_finished(own):
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
    for stage, piece in _pieces(cell).items():
        target = folder / cell.name
        source = next((folder / other.name for other in done if piece in _pieces(other).values()), None)
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
    path, cells = folder / "study.toml", folder / "cells.json"
    owners = [read_study(path).name] if path.exists() else []
    if cells.exists():
        owners.append(study_of(cells))
    for other in owners:
        if other != study.name:
            raise SdftError(f"{folder} holds the study {other!r}, not {study.name!r}; name another folder with --out")
    if not path.exists() and folder.exists() and any(not is_temporary(file) and file != cells
                                                     for file in folder.iterdir()):
        raise SdftError(f"{folder}: expected the folder of a study or an empty one; name another with --out")
    write_text(path, read_text(study.path))


def _summary(folder: Path, cell: Cell) -> Path:
    return folder / cell.name / "summary.json"
