"""The rules of the source tree, read from the syntax trees: import arrows, sizes, docstrings, no machine paths.

Each rule is a function from a source root to the list of its violations. It is asserted twice: the project's own tree
must give an empty list, and a small tree with a planted violation must give exactly that one (no rule can go blind).
Nothing is imported here; a file is seen as soon as it lies in the tree, committed or not.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "megatron_alum"
# Lowest first. Packages of one row are siblings: they never import each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("config",),
    ("compat",),
    ("reference",),
    ("ops",),
    ("alum", "parallel"),
    ("models", "data"),
    ("checkpoint",),
    ("convert",),
    ("objective",),
    ("planning",),
    ("finetune", "training"),
    ("report",),
    ("cli",),
    ("study",),
    ("benchmarks", "tools", "examples", "entry"),
)
# Within a package, by the same rule: sampling and preprocessing never meet, methods know no benchmark.
ROOMS: dict[str, tuple[tuple[str, ...], ...]] = {
    "data": (("tokenizers", "shards"), ("preprocessing", "sampling")),
    "finetune": (("methods",), ("benchmarks",), ("runs",)),
}
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}
# What alum may import of ours (the paper's code stands on torch, its own configuration and the ops' torch reference).
ALUM_MAY_IMPORT = {"alum", "config", "reference"}
MEGATRON_PACKAGES = {"compat", "models", "parallel", "checkpoint", "objective", "training"}
MEGATRON_FILES = {"megatron_alum/data/shards/files.py"}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_LINES_OF = {"setup.py": 150, "pretrain_bert_alum.py": 60}
SOURCE_FOLDERS = (PACKAGE, "tools", "examples", "tests", "csrc", "benchmarks", "docs")
NATIVE_SUFFIXES = {".cpp", ".cu", ".cuh", ".h"}
# Folders of one machine or one user; a Path built from parts or a command-line example never needs them.
MACHINE_PATH = re.compile(r"(?<![\w.\-*])/(?:home|root|work|Users|mnt|data)/[\w.\-]")


def source_files(root: Path, suffixes: set[str]) -> Iterator[Path]:
    """The project's own files with one of `suffixes`, in a stable order."""
    found = [path for path in root.glob("*") if path.suffix in suffixes and path.is_file()]
    for folder in SOURCE_FOLDERS:
        found += [path for path in (root / folder).rglob("*") if path.suffix in suffixes and path.is_file()]
    return iter(sorted(found))


def area_of(path: str) -> str | None:
    """The layer name of a repository path: a package of megatron_alum, tools, examples or entry; None elsewhere."""
    parts = Path(path).parts
    if parts[0] == PACKAGE:
        fronts = ("pretrain.py", "__main__.py")
        return parts[1] if len(parts) > 2 else "entry" if parts[1] in fronts else None
    if len(parts) == 1:
        return "entry" if parts[0] not in {"setup.py"} else None
    return parts[0] if parts[0] in RANK else None


def imported_modules(path: Path, root: Path) -> list[tuple[int, str]]:
    """(line, dotted name) of every import anywhere in the file, relative ones resolved, `from a import b` as a.b."""
    relative = path.relative_to(root).with_suffix("")
    package = relative.parts[:-1]
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            names += [(node.lineno, f"{prefix}.{alias.name}") for alias in node.names]
    return names


def own_area(module: str) -> str | None:
    """The megatron_alum package (or `tools`/`examples`/`entry`) that a dotted import names, if any."""
    parts = module.split(".")
    if parts[0] == PACKAGE:
        return parts[1] if len(parts) > 1 and parts[1] in RANK else None
    if parts[0] == "pretrain_bert_alum":
        return "entry"
    return parts[0] if parts[0] in {"benchmarks", "tools", "examples"} else None


def rooms_keep_their_order(root: Path) -> list[str]:
    """A room imports only rooms of lower rows of its package; every file of such a package lies in a room."""
    found = []
    for package, rows in ROOMS.items():
        rank = {room: number for number, row in enumerate(rows) for room in row}
        for path in sorted((root / PACKAGE / package).rglob("*.py")):
            relative = path.relative_to(root)
            room = relative.parts[2]
            if room == "__init__.py":
                continue
            if room not in rank:
                found.append(f"{relative.as_posix()} lies in no room of {package}")
                continue
            for line, module in imported_modules(path, root):
                target = module.removeprefix(f"{PACKAGE}.{package}.").split(".")[0]
                if module.startswith(f"{PACKAGE}.{package}.") and target != room and rank[target] >= rank[room]:
                    found.append(f"{relative.as_posix()}:{line} ({room}) imports {module}")
    return found


def imports_point_down(root: Path) -> list[str]:
    """A package imports only packages of lower layers, never a sibling or a higher one."""
    found = []
    for path in source_files(root, {".py"}):
        relative = path.relative_to(root).as_posix()
        area = area_of(relative)
        for line, module in imported_modules(path, root):
            target = own_area(module)
            if area not in RANK or target is None or target == area:
                continue
            if RANK[target] >= RANK[area]:
                found.append(f"{relative}:{line} ({area}) imports {module}")
    return found


def alum_stands_alone(root: Path) -> list[str]:
    """`alum` imports neither megatron-core nor any of our packages but config and reference."""
    found = []
    for path in source_files(root, {".py"}):
        relative = path.relative_to(root).as_posix()
        for line, module in imported_modules(path, root) if area_of(relative) == "alum" else []:
            foreign = module.split(".")[0] in {"megatron", "transformers"}
            if foreign or (own_area(module) or "alum") not in ALUM_MAY_IMPORT:
                found.append(f"{relative}:{line} imports {module}")
    return found


def megatron_stays_inside(root: Path) -> list[str]:
    """Only compat, models, parallel, data/shards/files.py, checkpoint, objective and training import megatron-core."""
    found = []
    for path in source_files(root, {".py"}):
        relative = path.relative_to(root).as_posix()
        allowed = area_of(relative) in MEGATRON_PACKAGES or relative in MEGATRON_FILES
        if not relative.startswith(PACKAGE) or allowed:
            continue
        lines = [(line, name) for line, name in imported_modules(path, root) if name.split(".")[0] == "megatron"]
        found += [f"{relative}:{line} imports {module}" for line, module in lines]
    return found


def modules_form_no_cycle(root: Path) -> list[str]:
    """No module reaches itself through its imports, lazy ones included (package __init__ files are not followed)."""
    files = {".".join(p.relative_to(root).with_suffix("").parts): p for p in source_files(root / "", {".py"})}
    files = {name: path for name, path in files.items() if name.startswith(PACKAGE)}
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        targets = {module for _, module in imported_modules(path, root)}
        targets |= {module.rsplit(".", 1)[0] for module in targets}
        graph[name] = {target for target in targets if target in files and target != name}
    found = []
    for start in sorted(graph):
        seen: set[str] = set()
        stack = [start]
        while stack:
            for target in graph[stack.pop()] - seen:
                seen.add(target)
                stack.append(target)
        if start in seen:
            found.append(f"{start} reaches itself")
    return found


def modules_have_docstrings(root: Path) -> list[str]:
    """Every Python file with code opens with a docstring; every native file opens with a comment."""
    found = []
    for path in source_files(root, {".py"}):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if tree.body and not ast.get_docstring(tree):
            found.append(f"{path.relative_to(root).as_posix()} has no module docstring")
    for path in source_files(root, NATIVE_SUFFIXES):
        if not path.read_text(encoding="utf-8").lstrip().startswith(("//", "/*")):
            found.append(f"{path.relative_to(root).as_posix()} does not open with a comment")
    return found


def files_are_short(root: Path) -> list[str]:
    """Files have at most 400 lines; setup.py 150, the entry script 60."""
    found = []
    for path in source_files(root, {".py", *NATIVE_SUFFIXES}):
        relative = path.relative_to(root).as_posix()
        limit = MAX_LINES_OF.get(relative, MAX_FILE_LINES)
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > limit:
            found.append(f"{relative} has {lines} lines, at most {limit}")
    return found


def functions_are_short(root: Path) -> list[str]:
    """Functions, decorators left out, have at most 60 lines."""
    found = []
    for path in source_files(root, {".py"}):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                found.append(f"{path.relative_to(root).as_posix()}:{node.lineno} {node.name} has {lines} lines")
    return found


def no_machine_paths(root: Path) -> list[str]:
    """No absolute path of one machine in code, documents, recipes or stored results."""
    found = []
    for path in source_files(root, {".py", ".md", ".yaml", ".yml", ".toml", ".sh", ".json", ".csv", *NATIVE_SUFFIXES}):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if MACHINE_PATH.search(line) and path.name != Path(__file__).name:
                found.append(f"{path.relative_to(root).as_posix()}:{number} names {line.strip()[:80]!r}")
    return found


def sources_are_ascii(root: Path) -> list[str]:
    """Source files are plain ASCII: text samples with other characters are written as escapes."""
    found = []
    for path in source_files(root, {".py", *NATIVE_SUFFIXES}):
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            if not line.isascii():
                found.append(f"{path.relative_to(root).as_posix()}:{number} is not ASCII")
    return found


RULES: tuple[Callable[[Path], list[str]], ...] = (
    imports_point_down,
    rooms_keep_their_order,
    alum_stands_alone,
    megatron_stays_inside,
    modules_form_no_cycle,
    modules_have_docstrings,
    files_are_short,
    functions_are_short,
    no_machine_paths,
    sources_are_ascii,
)

# One planted violation a rule: {file: text}; the rule must report exactly one line, and name the file.
PLANTED: dict[str, dict[str, str]] = {
    "imports_point_down": {
        "megatron_alum/data/a.py": '"""d."""\nfrom megatron_alum.config import x\nfrom ..models import bert\n'
    },
    "rooms_keep_their_order": {
        "megatron_alum/data/sampling/a.py": '"""d."""\nfrom megatron_alum.data.shards import files\n',
        "megatron_alum/data/preprocessing/a.py": '"""d."""\nfrom megatron_alum.data.sampling import pairs\n',
        "megatron_alum/finetune/methods/a.py": '"""d."""\nfrom megatron_alum.finetune.benchmarks.tasks import TASKS\n',
        "megatron_alum/finetune/a.py": '"""d."""\n',
    },
    "alum_stands_alone": {"megatron_alum/alum/a.py": '"""d."""\nfrom megatron_alum import config, ops\n'},
    "megatron_stays_inside": {
        "megatron_alum/convert/a.py": '"""d."""\ndef f():\n    import megatron.core\n',
        "megatron_alum/data/shards/files.py": '"""d."""\nimport megatron.core\n',
    },
    "modules_form_no_cycle": {
        "megatron_alum/data/a.py": '"""d."""\nfrom .b import x\nfrom .c import y\n',
        "megatron_alum/data/b.py": '"""d."""\nfrom megatron_alum.data import b\n',
        "megatron_alum/data/c.py": '"""d."""\nfrom megatron_alum.data.c import c\nimport megatron_alum.data.b\n',
    },
    "modules_have_docstrings": {"megatron_alum/data/a.py": "x = 1\n", "megatron_alum/data/__init__.py": ""},
    "files_are_short": {"csrc/ops/a.cu": "//\n" * 401, "csrc/ops/b.cu": "//\n" * 400},
    "functions_are_short": {"tools/a.py": '"""d."""\ndef f():\n' + "    x = 1\n" * 60},
    "no_machine_paths": {"examples/a.yaml": "load: /home/someone/run\nsave: out/home/x\n"},
    "sources_are_ascii": {"tools/a.py": '"""d\u00e9."""\n', "tools/b.py": '"""d."""\n'},
}
REPORTED = {"modules_form_no_cycle": 0, "rooms_keep_their_order": 3}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_tree_obeys(rule):
    violations = rule(ROOT)
    assert not violations, f"{rule.__doc__.splitlines()[0]}\n" + "\n".join(violations)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rule_sees_a_planted_violation(rule, tmp_path):
    for name, text in PLANTED[rule.__name__].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert len(rule(tmp_path)) == REPORTED.get(rule.__name__, 1), rule(tmp_path)


def test_a_planted_cycle_is_seen(tmp_path):
    (tmp_path / PACKAGE / "data").mkdir(parents=True)
    (tmp_path / PACKAGE / "data" / "a.py").write_text('"""d."""\nfrom .b import x\n')
    (tmp_path / PACKAGE / "data" / "b.py").write_text('"""d."""\nimport megatron_alum.data.a\n')
    assert len(modules_form_no_cycle(tmp_path)) == 2


@pytest.mark.parametrize("module", [PACKAGE, f"{PACKAGE}.ops", f"{PACKAGE}.reference", f"{PACKAGE}.alum"])
def test_imports_need_neither_megatron_core_nor_an_extension(module):
    """The machine with a GPU has no megatron-core, a fresh clone no built extension: these imports work there too."""
    absent = ("megatron", f"{PACKAGE}._C", f"{PACKAGE}._data", "transformer_engine", "apex")
    code = f"import sys\nfor name in {absent}: sys.modules[name] = None\nimport {module}\n"
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
