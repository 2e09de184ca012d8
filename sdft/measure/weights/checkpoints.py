"""Any two checkpoint folders, tensor by tensor: what lies between them, whoever trained them.

    A/*.safetensors ─┐  one tensor of each at a time, so that the peak is two tensors and not two models
                     ├→ norm, relative shift, what bf16 shows of it; where asked, the spectra
    B/*.safetensors ─┘

A is taken for the seed. The folders may be sharded in any way, and hold bf16, fp16 or fp32, each its own: values are
compared in fp64, some at a time. The files are mapped, so what has been read of them is memory that the system may take
back. Of two 7B models the largest matrix has 131M values; its spectra are the peak, 7 arrays of it in fp32, 4 GB.

    sdft measure weights A B
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from sdft.errors import SdftError
from sdft.measure.weights.modules import together, weights_row
from sdft.measure.weights.shift import Row, summed_up
from sdft.measure.weights.spectrum import named_by
from sdft.model.io.loading import open_checkpoint
from sdft.progress import progress


def compare_checkpoints(first: Path, second: Path, spectra: Sequence[str] = ()) -> Row:
    """The shift from the weights in folder `first` to those in `second`, as `module_measures` gives it.

    Of the matrices that `spectra` names ("q_proj", "model.layers.0.*") also stable and effective rank of the difference
    and the measures of `compare_spectra`: three singular value decompositions each. unmatched: tensors that one folder
    only has.

    Raises SdftError where a folder has no weights, no tensor is in both, one has another shape, is not of floating
    point or not finite, and where `spectra` names nothing.
    """
    with open_checkpoint(first) as (names, read), open_checkpoint(second) as (others, read_other):
        common = [name for name in names if name in others]
        if not common:
            raise SdftError(f"{first} and {second} have no tensor in common; expected two checkpoints of one "
                            "architecture")
        chosen = named_by(spectra, [name.removesuffix(".weight") for name in common])
        rows = [_row(name, (first, read(name)), (second, read_other(name)), name.removesuffix(".weight") in chosen)
                for name in progress(common, desc="weights", unit="tensor")]
        return {**summed_up(rows, together), "unmatched": sorted(set(names) ^ set(others))}


def _row(name: str, first: tuple[Path, Tensor], second: tuple[Path, Tensor], spectra: bool) -> Row:
    (_, before), (_, after) = first, second
    if before.shape != after.shape:
        raise SdftError(f"{name} is {tuple(before.shape)} in {first[0]} and {tuple(after.shape)} in {second[0]}; "
                        "expected two checkpoints of one architecture")
    for folder, weight in (first, second):
        if not weight.is_floating_point():
            raise SdftError(f"{folder}: {name} holds {str(weight.dtype).removeprefix('torch.')}; expected "
                            "floating-point weights, so bring a quantised checkpoint back to them first")
    return weights_row(name, before, after, spectra)
