"""Any two checkpoint folders, tensor by tensor: what lies between them, whoever trained them.

    A/*.safetensors ─┐  one tensor of each at a time, so that the peak is two tensors and not two models
                     ├→ norm, relative shift, share of values that differ; where asked, the spectra
    B/*.safetensors ─┘

A is taken for the seed. In bf16 most values may be equal although training moved their fp32 masters (arXiv 2505.11711):
the share tells what is visible.

    sdft measure weights A B
"""
from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from sdft.errors import SdftError
from sdft.measure.spectrum import compare_spectra
from sdft.measure.weights import distance, module_shift, summed_up
from sdft.model.loading import open_tensors, weight_files
from sdft.progress import progress


def compare_checkpoints(first: Path, second: Path, spectra: Sequence[str] = ()) -> dict[str, Any]:
    """The shift from the weights in folder `first` to those in `second`, as `sdft.measure.weights.shift` gives it.

    Every module has `changed` beside it, the share of stored values that differ. Of matrices whose name (without
    .weight) or kind matches a pattern in `spectra` ("q_proj", "model.layers.0.*") also the measures of
    `compare_spectra`: that takes two singular value decompositions each. unmatched: tensors that one folder only has.

    Raises SdftError where a folder has no weights, no tensor is in both, or one has another shape.
    """
    files = weight_files(Path(first)), weight_files(Path(second))
    names = [name for name in files[0] if name in files[1]]
    if not names:
        raise SdftError(f"{first} and {second} have no tensor in common; expected two checkpoints of one architecture")
    rows = []
    with ExitStack() as stack:
        opened = {path: stack.enter_context(open_tensors(path)) for path in {*files[0].values(), *files[1].values()}}
        for name in progress(names, desc="weights", unit="tensor"):
            before, after = (opened[each[name]].get_tensor(name) for each in files)
            if before.shape != after.shape:
                raise SdftError(f"{name} is {tuple(before.shape)} in {first} and {tuple(after.shape)} in {second}; "
                                "expected two checkpoints of one architecture")
            norm, base, changed = distance(before, after)
            row = {**module_shift(name, norm, base), "changed": changed}
            if before.dim() == 2 and any(fnmatch(row["name"], each) or row["kind"] == each for each in spectra):
                row |= compare_spectra(before, after)
            rows.append(row)
    return {**summed_up(rows), "unmatched": sorted(files[0].keys() ^ files[1].keys())}
