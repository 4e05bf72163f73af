"""What pyproject.toml says about the package against the tree: data files, extras, and who may import what."""

import ast
import fnmatch
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from megatron_alum import __version__
from megatron_alum.config.extras import EXTRAS, MissingExtraError, missing_extras, require

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "megatron_alum"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Modules imported under a name other than the distribution's.
DISTRIBUTIONS = {
    **{"yaml": "pyyaml", "sklearn": "scikit-learn", "megatron": "megatron-core"},
    **{"charset_normalizer": "charset-normalizer", "flash_attn": "flash-attn"},
}
# Optional: looked for with find_spec or inside try.
OPTIONAL = {"apex", "transformer_engine", "textattack", "triton"}


def names(requirements):
    """Distributions of requirement strings, the package's own extras opened."""
    found = set()
    for requirement in requirements:
        own = re.fullmatch(r"megatron_alum\[(.*)\]", requirement)
        if own:
            for extra in own[1].split(","):
                found |= names(PROJECT["project"]["optional-dependencies"][extra])
        else:
            found.add(re.split(r"[\s\[<>=@~!]", requirement)[0].lower())
    return found


def distribution(module):
    return DISTRIBUTIONS.get(module, module)


def test_every_data_file_is_in_the_wheel():
    """A file that is not Python reaches the wheel only by a pattern of package-data, relative to its package."""
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["*"]
    files = [
        path
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc", ".so") and "__pycache__" not in path.parts
    ]
    assert len(files) > 15
    for path in files:
        package = next(parent for parent in path.parents if (parent / "__init__.py").is_file())
        relative = path.relative_to(package).as_posix()
        assert any(fnmatch.fnmatch(relative, pattern) for pattern in patterns), f"{relative} of {package.name}"


def test_every_folder_with_modules_is_a_package():
    """setuptools finds packages by __init__.py: a folder without one would be left out silently."""
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


def test_the_table_of_extras_is_that_of_the_project():
    extras = PROJECT["project"]["optional-dependencies"]
    for extra, modules in EXTRAS.items():
        assert {distribution(module) for module in modules} <= names(extras[extra]), extra
    assert names(extras["all"]) == set().union(
        *(names(extras[name]) for name in ("data", "finetune", "report", "tensorboard"))
    )
    assert names(extras["all"]) <= names(extras["test"])
    core = names(PROJECT["project"]["dependencies"])
    assert not core & {distribution(module) for modules in EXTRAS.values() for module in modules}


def foreign_imports(tree):
    """(line, top module, enclosing function or None) of imports from outside, except those for type checkers."""

    def walk(node, function):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING":
                continue
            if isinstance(child, ast.Import | ast.ImportFrom):
                modules = (
                    [alias.name for alias in child.names] if isinstance(child, ast.Import) else [child.module or ""]
                )
                for module in modules if not getattr(child, "level", 0) else ():
                    top = "tensorboard" if module == "torch.utils.tensorboard" else module.partition(".")[0]
                    if top not in sys.stdlib_module_names and top != "megatron_alum":
                        yield child.lineno, top, function
            yield from walk(child, child if isinstance(child, ast.FunctionDef) else function)

    return walk(tree, None)


def requires(function, module):
    """Whether a function calls require with this module's name."""
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)] if function else []
    given = [call.args for call in calls if getattr(call.func, "id", "") == "require"]
    return any(getattr(argument, "value", None) == module for arguments in given for argument in arguments)


def faults_of(path):
    core = names(PROJECT["project"]["dependencies"])
    optional = {module for modules in EXTRAS.values() for module in modules}
    for line, module, function in foreign_imports(ast.parse(path.read_text())):
        if distribution(module) in core or module in OPTIONAL:
            continue
        if module not in optional:
            yield f"{path.name}:{line} imports {module}, which no list of the project names"
        elif not requires(function, module):
            yield f'{path.name}:{line} imports {module} without require("{module}") in the same function'


def test_what_is_not_a_dependency_is_required_by_its_extra():
    """No import of a library of an extra without the call that names the extra; nothing from outside all lists."""
    faults = [fault for path in PACKAGE.rglob("*.py") for fault in faults_of(path)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("import pyarrow", "without require"),
        ("def f():\n    import pyarrow", "without require"),
        ("def f():\n    require('nltk')\n    import pyarrow", "without require"),
        ("def f():\n    require('pyarrow')\n    from pyarrow import parquet", None),
        ("from torch.utils.tensorboard import SummaryWriter", "without require"),
        ("import pandas", "which no list"),
        ("if TYPE_CHECKING:\n    import pandas\nimport torch, json\nfrom megatron_alum import x", None),
    ],
)
def test_the_rule_sees_what_it_should(text, fault, tmp_path):
    (tmp_path / "a.py").write_text(text)
    found = list(faults_of(tmp_path / "a.py"))
    assert len(found) == (fault is not None) and all(fault in one for one in found)


def test_require(monkeypatch):
    require("jinja2", "matplotlib")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"^wandb must be installed .*'megatron_alum\[wandb\]'") as caught:
        require("jinja2", "wandb")
    assert isinstance(caught.value, ImportError) and caught.value.name == "wandb"
    assert "wandb" in missing_extras()["wandb"] and "report" not in missing_extras()


def test_what_the_package_says_of_itself():
    project = PROJECT["project"]
    assert (PACKAGE / "py.typed").is_file()
    assert project["authors"] == [{"name": "megatron_alum contributors"}]
    assert project["scripts"] == {"megatron-alum": "megatron_alum.cli.main:main"}
    assert {"keywords", "classifiers", "urls", "readme", "license"} <= set(project)
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    for name in ("CITATION.cff", "SECURITY.md", "LICENSE", "CHANGELOG.md"):
        assert (ROOT / name).is_file()
