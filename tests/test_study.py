"""Study files: their runs, the files of this repository, and a wrong file is refused in one line."""
import json
from pathlib import Path

import pytest
from test_sweep import HEAD

from sdft.errors import SdftError
from sdft.studies.specification import planned_runs, read_study

STUDIES = Path(__file__).parent.parent / "benchmarks" / "studies"


@pytest.mark.parametrize(("text", "message"), [
    ("nam = 1", "unknown key 'nam' (did you mean name?)"),
    ('name = "a"', "expected 'question'"),
    ('name = 3', "name: expected a text, got 3"),
    ('name = "a"\nquestion = "b"', "expected 'primary', which says by which column"),
    (HEAD.replace('arm = "sdft"\n', ""), "[primary]: expected column, arm, against, but arm is missing"),
    (HEAD.replace("column", "colum"), "unknown key 'primary.colum' (did you mean column?)"),
    (HEAD + "[grid]\nratioo = [1]", "unknown setting 'ratioo' (did you mean mix_ratio?)"),
    (HEAD + "[grid]\nmix_ratio = 1", "grid.mix_ratio: expected a list of values, got 1"),
    (HEAD + "[grid]\nmix_ratio = [1, 1.0]", "grid.mix_ratio: expected different values"),
    (HEAD + '[grid]\nmix_ratio = ["x"]', "distill.mix_ratio: expected a number, got 'x'"),
    (HEAD + "[settings]\nlr = 1\n[grid]\ntrain.lr = [1]", "lr is set twice"),
    (HEAD + "[settings]\nlr = 1\n[[runs]]\nlr = 2", "lr is set twice"),
    (HEAD.replace('"sft"', "{mix_ratio = 2}") + "[grid]\nmix_ratio = [0, 1]",
     "primary.against: expected settings of a run"),
    ("plots = [[1]]\n" + HEAD, "plots: expected pairs of columns"),
    ('plots = [["kl", ["x"]]]\n' + HEAD, "plots: expected pairs of columns"),
    ('matched = [1]\n' + HEAD, "matched: expected a list of texts, got [1]"),
    ('reads = [3]\nname = "a"\nquestion = "b"\n[predict]\nmeasures = ["a"]\noutcomes = ["b"]',
     "reads: expected a list"),
    ('reads = ["c"]\nname = "a"\nquestion = "b"\n[predict]\nmeasures = "kl"\noutcomes = ["b"]',
     "predict.measures: expected a list of texts, got 'kl'"),
    ("x = [", "malformed TOML"),
])
def test_a_wrong_study_file_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(SdftError) as error:
        read_study(path)
    assert message in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_studies_of_this_repository_can_be_run(path):
    study = read_study(path)
    if path.stem.startswith("5"):           # its runs need the files of the paper's data sets
        assert len(study.runs) == 8
    elif study.reads:
        assert all((STUDIES / f"{name}.toml").is_file() for name in study.reads)
    else:
        assert len(planned_runs(study)) == len(study.runs) > 0


def test_each_of_the_runs_is_crossed_with_the_grid(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for part in ("train", "test"):
        rows = [{"instruction": f"Call {index}.", "output": f"f({index})"} for index in range(4)]
        (data / f"openfunction_{part}.json").write_text(json.dumps(rows))
    path = tmp_path / "study.toml"
    path.write_text(HEAD + '[settings]\nlora_rank = 2\n[grid]\nseed = [1, 2]\n[[runs]]\ntask = "passages"\n'
                    '[[runs]]\nname = "the calls"\ntask = "openfunctions"\nepochs = 3\n')
    runs = planned_runs(read_study(path), str(data))
    assert [run.name for run in runs] == ["task=passages,seed=1", "task=passages,seed=2",
                                             "run=the_calls,seed=1", "run=the_calls,seed=2"]
    assert runs[2].values == {"run": "the calls", "seed": 1}
    assert [run.config.train.epochs for run in runs] == [2, 2, 3, 3]
    assert [run.config.task.data for run in runs] == [None, None, str(data), str(data)]
    assert runs[3].config.distill.template == "refer" and Path(runs[3].config.task.data).is_absolute()
