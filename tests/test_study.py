"""Study files: those of this repository can be run, and one that says nothing sensible is one line."""
from pathlib import Path

import pytest
from test_sweep import HEAD

from sdft.errors import SdftError
from sdft.experiment.study import cells_of, read_study

STUDIES = Path(__file__).parent.parent / "benchmarks" / "studies"


@pytest.mark.parametrize(("text", "message"), [
    ("nam = 1", "unknown key 'nam' (did you mean name?)"),
    ('name = "a"', "expected 'question'"),
    ('name = 3', "name: expected a text, got 3"),
    ('name = "a"\nquestion = "b"', "expected 'primary', which says by which column"),
    (HEAD.replace('arm = "sdft"\n', ""), "[primary]: expected column, arm, against, but arm is missing"),
    (HEAD.replace("column", "colum"), "unknown key 'primary.colum' (did you mean column?)"),
    (HEAD + "[grid]\nratioo = [1]", "unknown setting 'ratioo' (did you mean ratio?)"),
    (HEAD + "[grid]\nratio = 1", "grid.ratio: expected a list of values, got 1"),
    (HEAD + "[grid]\nratio = [1, 1.0]", "grid.ratio: expected different values"),
    (HEAD + '[grid]\nratio = ["x"]', "distill.ratio: expected a number, got 'x'"),
    (HEAD + "[settings]\nlr = 1\n[grid]\ntrain.lr = [1]", "lr is set twice"),
    (HEAD + "[settings]\nlr = 1\n[[cells]]\nlr = 2", "lr is set twice"),
    (HEAD.replace('"sft"', "{ratio = 2}") + "[grid]\nratio = [0, 1]", "primary.against: expected settings of a cell"),
    ("plots = [[1]]\n" + HEAD, "plots: expected pairs of columns"),
    ('plots = [["kl", ["x"]]]\n' + HEAD, "plots: expected pairs of columns"),
    ('matched = [1]\n' + HEAD, "matched: expected a list of texts, got [1]"),
    ('reads = [3]\nname = "a"\nquestion = "b"\n[predict]\nmeasures = ["a"]\noutcomes = ["b"]', "reads: expected a list"),
    ('reads = ["c"]\nname = "a"\nquestion = "b"\n[predict]\nmeasures = "kl"\noutcomes = ["b"]',
     "predict.measures: expected a list of texts, got 'kl'"),
    ("x = [", "malformed TOML"),
])
def test_a_study_that_says_nothing_sensible_is_one_line(tmp_path, text, message):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(SdftError) as error:
        read_study(path)
    assert message in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_studies_of_this_repository_can_be_run(path):
    study = read_study(path)
    if path.stem.startswith("5"):           # its cells need the files of the paper's data sets
        assert len(study.cells) == 8
    elif study.reads:
        assert all((STUDIES / f"{name}.toml").is_file() for name in study.reads)
    else:
        assert len(cells_of(study)) == len(study.cells) > 0
