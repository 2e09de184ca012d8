"""The pages of the repository are true: their code runs, their links lead to files, their tables hold the data."""
import inspect
import json
import math
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from sdft.method import self_distill

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "benchmarks/profiles.md",
         "benchmarks/LOG.md", "benchmarks/studies/README.md"]


def _blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_readme_shows_the_method_as_it_is():
    assert inspect.getsource(self_distill) in README


def test_readme_has_at_most_150_lines():
    assert len(README.splitlines()) <= 150


def test_readme_s_script_runs_the_method_on_the_real_model(tmp_path):
    """It prints gap, drift and shift; rewriting lowers the gap, and training moves outputs and weights."""
    script, = (block for block in _blocks("python") if "import sdft" in block)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed = dict(line.split(":", 1) for line in done.stdout.splitlines())
    accepted, records = map(int, re.findall(r"\d+", printed["accepted rewrites"]))
    before, after = _numbers(printed["gap, nats per target token"])
    drift, = _numbers(printed["drift, KL in nats per token"])
    total, relative = _numbers(printed["shift, Frobenius norm"])
    assert 0 < accepted <= records == 16
    assert 0 < after < before and drift > 0 and total > relative > 0
    assert all(map(math.isfinite, (before, after, drift, total, relative)))
    assert (tmp_path / "adapter" / "adapter_config.json").exists()


def _numbers(text):
    return [float(number) for number in re.findall(r"\d+\.?\d*(?:e-?\d+)?", text)]


def test_ci_runs_exactly_readme_s_test_command():
    command, = (line for block in _blocks("sh") for line in block.splitlines() if "pytest" in line)
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_readme_s_table_is_that_of_the_built_in_run():
    run = json.loads((ROOT / "benchmarks" / "builtin-run.json").read_text(encoding="utf-8"))
    for arm, values in run["table"].items():
        cells, = ([cell.strip() for cell in line.split("|")[1:-1]] for line in README.splitlines()
                  if line.startswith(f"| {arm} |"))
        shown, counts = [cell.split()[0] for cell in cells[1:]], run["counts"][arm]
        assert float(shown[0]) == round(100 * values["passages"], 1)
        assert [int(cell) for cell in shown[1:4]] == [counts[name] for name in ("lost", "gained", "long_answers_kept")]
        assert float(shown[4]) == round(values["kl8"] or 0, 3) and float(shown[5]) == round(values["kl"], 3)
        assert shown[6] == ("–" if values["shift"] is None else f"{values['shift']:.2f}")
        solved, long = counts["solved_by_base"], counts["long_answers_of_base"]
        head = f"instructions lost, of {solved} | instructions new, of {240 - solved} | long answers kept, of {long}"
        assert head in README


def test_readme_s_layout_and_measures_name_files_that_exist():
    layout = README.split("## Layout")[1].split("```")[1].strip().splitlines()
    for line in layout:
        room, names = line.split(maxsplit=1)
        folder = (ROOT / room).parent if room.endswith(".py") else ROOT / room
        files = re.findall(r"(?<![\w/])(?:[\w/]+/)?\w+\.py", names)
        assert (ROOT / room).exists(), line
        assert all((folder / file).exists() or (ROOT / file).exists() for file in files), line
    rooms = {line.split("/")[1].split()[0] for line in layout[1:]}
    assert rooms == {path.name for path in (ROOT / "sdft").iterdir()
                     if (path / "__init__.py").exists() and not path.is_symlink()} | {"method.py"}
    for line in README.split("## Measures")[1].split("## ")[0].splitlines():
        if line.endswith(".py |"):
            assert (ROOT / "sdft" / "measure" / line.split("|")[-2].strip()).exists(), line


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_to_a_file(page):
    path = ROOT / page
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)|src=\"([^\"]+)\"", path.read_text(encoding="utf-8"))
    for target in (a or b for a, b in targets):
        assert target.startswith("https://") or (path.parent / target).exists(), f"{page}: {target}"


def test_the_benchmark_page_holds_the_table_of_its_json():
    """`python benchmarks/table.py` prints the table."""
    results = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    table = runpy.run_path(str(ROOT / "benchmarks" / "table.py"))["table"]
    assert table(results) in (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
