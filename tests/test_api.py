"""The names that `import sdft` offers."""
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import save_tiny_model

import sdft
from sdft.experiment.compare import compare


def test_a_model_is_loaded_asked_and_adapted_through_the_top_level(tmp_path):
    model, tokenizer = sdft.load(save_tiny_model(tmp_path / "tiny"), dtype="float32")
    first, second = (sdft.generate(model, tokenizer, ["Why?"], max_new_tokens=3) for _ in range(2))
    assert first[0].tokens == second[0].tokens and first[0].finish in ("stop", "length")    # 2nd: a package has its name
    assert sdft.add_lora(model, rank=2, targets=("q_proj",))


def test_importing_sdft_imports_no_torch():
    code = "import sys, sdft; sdft.SdftError; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="sdft"):
        sdft.no_such_name


def test_readme_shows_the_method_as_it_is():
    assert inspect.getsource(compare) in (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
