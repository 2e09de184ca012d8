"""The names that `import sdft` offers."""
import subprocess
import sys

import pytest
from small_run import save_tiny_model

import sdft


def test_a_model_is_loaded_asked_and_adapted_through_the_top_level(tmp_path):
    model, tokenizer = sdft.load(save_tiny_model(tmp_path / "tiny"), dtype="float32")
    first, second = (sdft.generate(model, tokenizer, ["Why?"], max_new_tokens=3) for _ in range(2))
    assert first[0].tokens == second[0].tokens              # called twice: a module has the function's name
    assert first[0].finish in ("stop", "length")
    assert sdft.add_lora(model, rank=2, targets=("q_proj",))


def test_importing_sdft_imports_no_torch():
    code = "import sys, sdft; sdft.SdftError; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="sdft"):
        _ = sdft.no_such_name


@pytest.mark.parametrize("name", sdft.__all__)
def test_every_public_name_is_importable_and_has_a_docstring(name):
    docstring = getattr(sdft, name).__doc__
    assert docstring and not docstring.startswith(f"{name}(")           # a dataclass without one gets its signature
