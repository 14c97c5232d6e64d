"""The layout of the package, read from its source: faces, directions, names, sizes, side effects.

A file of fewer than 120 lines that only one other file uses belongs into that file; a name that is
taken from a face counts as taken from the file that defines it. Where such a file stands alone all
the same, a comment (`# Apart from x.py because ...`) before its first import gives the reason.
"""

from __future__ import annotations

import ast
import collections
import functools
import importlib
import importlib.metadata
import itertools
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaxdnn"
MAX_FILES, MAX_LINES, SMALL = 136, 35_500, 120
# What somebody who only wants a diagnosis in a project of their own must not pay for.
HEAVY = {
    *("tensorflow_datasets", "array_record", "orbax", "PIL", "safetensors", "tensorboardX"),
    *("tyro", "matplotlib"),
}
# Calls of a module that tell JAX about a function or a class of that module, and nothing else.
REGISTERS = {"defvjp", "defjvp", "register_dataclass", "register_pytree_node"}


class Import(NamedTuple):
    """A name taken from a module; `name` is empty where the module itself is imported."""

    module: str
    name: str


def module_of(path: Path) -> str:
    """jaxdnn/data/decode.py -> jaxdnn.data.decode; a face has its folder's name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
FOLDERS = {module for module, path in FILES.items() if path.name == "__init__.py"}
OWN_FOLDERS = sorted(FOLDERS - {"jaxdnn"})
PROGRAMS = sorted((ROOT / "experiments").rglob("*.py"))


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports(path: Path) -> tuple[Import, ...]:
    """All imports of a file, those inside functions too."""
    package = module_of(path).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    found = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            found += [Import(module, alias.name) for alias in node.names]
    return tuple(found)


def target(taken: Import) -> str | None:
    """The file of the package that an import reads, None for what lies outside."""
    inside = f"{taken.module}.{taken.name}"
    if inside in FILES:
        return inside
    return taken.module if taken.module in FILES else None


def folder_of(module: str) -> str:
    """jaxdnn.data of whatever is in data/, folders in it too; jaxdnn of what is at the top."""
    top = ".".join(module.split(".")[:2])
    return top if top in FOLDERS else "jaxdnn"


@functools.cache
def exported(folder: str) -> tuple[str, ...]:
    """The names in the `__all__` of a folder's face; empty where there is none."""
    for node in parsed(FILES[folder]).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return tuple(ast.literal_eval(node.value))
    return ()


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """A circle of a directed graph, empty if there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for other in sorted(graph.get(node, ())):
            if found := visit(other, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := visit(node, []))), [])


def test_files_and_lines_are_few():
    assert len(FILES) <= MAX_FILES
    assert sum(len(path.read_text().splitlines()) for path in FILES.values()) < MAX_LINES


def test_no_two_files_share_a_name():
    names = collections.Counter(path.name for path in FILES.values())
    twice = {name for name, count in names.items() if count > 1}
    assert twice <= {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("folder", ["jaxdnn", *OWN_FOLDERS])
def test_a_folder_has_a_face_whose_names_exist(folder):
    face = importlib.import_module(folder)
    assert exported(folder)
    assert sorted(set(face.__all__)) == sorted(face.__all__)
    assert [name for name in face.__all__ if not hasattr(face, name)] == []


def outside_the_face() -> Iterator[str]:
    for path in [*FILES.values(), *PROGRAMS]:
        own = folder_of(module_of(path))
        for taken in imports(path):
            read = target(taken)
            folder = folder_of(read) if read else own
            if folder in (own, "jaxdnn"):
                continue
            if taken.module != folder or taken.name not in exported(folder):
                yield f"{path.relative_to(ROOT)}: {taken.module} {taken.name}"


def test_other_folders_import_from_the_face_alone():
    found = list(outside_the_face())
    assert not found, "\n".join(found)


def test_imports_run_one_way():
    files: dict[str, set[str]] = {}
    folders: dict[str, set[str]] = collections.defaultdict(set)
    for module, path in FILES.items():
        read = {found for taken in imports(path) if (found := target(taken))}
        files[module] = read
        # A file at the top is a node of its own.
        own, *others = (
            name if folder_of(name) == "jaxdnn" else folder_of(name) for name in (module, *read)
        )
        folders[own] |= set(others) - {own}
    assert circle(files) == []
    assert circle(folders) == []


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []


def definer(folder: str, name: str) -> str:
    """The file from which a face takes a name, through the faces of folders within."""
    for taken in imports(FILES[folder]):
        if taken.name == name and (read := target(taken)) not in (None, folder):
            return definer(str(read), name) if read in FOLDERS else str(read)
    return folder


def has_reason(path: Path) -> bool:
    """Whether a comment stands before the first import."""
    lines = path.read_text().splitlines()
    first = next((i for i, line in enumerate(lines) if re.match(r"(from|import) ", line)), 0)
    return any(line.startswith("# ") for line in lines[:first])


def test_a_small_file_has_more_than_one_user_or_says_why():
    users: dict[str, set[Path]] = collections.defaultdict(set)
    for path in [*FILES.values(), *PROGRAMS]:
        if path.name == "__init__.py":
            continue  # A face uses nothing: it offers.
        for taken in imports(path):
            if read := target(taken):
                read = definer(read, taken.name) if read in FOLDERS else read
                users[read].add(path)
    lonely = [
        f"{module} ({next(iter(users[module])).relative_to(ROOT)})"
        for module, path in FILES.items()
        if len(users[module]) == 1 and users[module] <= set(FILES.values())
        if len(path.read_text().splitlines()) < SMALL and not has_reason(path)
        if path.name not in ("__init__.py", "__main__.py")
    ]
    assert not lonely, "\n".join(lonely)


def normal(name: str) -> str:
    """A distribution's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_package_that_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {normal(re.split(r"[^\w.-]", line)[0]) for line in project["dependencies"]}
    distributions = importlib.metadata.packages_distributions()
    for path in FILES.values():
        for root in {taken.module.partition(".")[0] for taken in imports(path)}:
            if root == "jaxdnn" or root in sys.stdlib_module_names:
                continue
            # Neither experiments nor tests are installed.
            assert declared & set(map(normal, distributions.get(root, []))), (path, root)


def effects(path: Path) -> Iterator[str]:
    """What a file does when it is imported, besides defining names of its own."""
    body = list(parsed(path).body)
    blocks = (node for node in body if isinstance(node, ast.If))
    inside = (block.body for block in blocks if "__main__" not in ast.unparse(block.test))
    for node in itertools.chain(body, *inside):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            called = node.value.func
            if not (isinstance(called, ast.Attribute) and called.attr in REGISTERS):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}"
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(each, ast.Attribute | ast.Subscript) for each in targets):
            yield f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}"


def test_importing_a_file_only_defines_names():
    found = [effect for path in FILES.values() for effect in effects(path)]
    assert not found, "\n".join(found)


# Of the environment: where programs, packages and compiled code are, and how code is compiled.
KEPT = ("PATH", "HOME", "PYTHONPATH", "SYSTEMROOT", "JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS")
STATE = """
import json, logging, os, sys, threading, warnings
import jax

def state():
    loggers = logging.root.manager.loggerDict.items()
    return {
        "environment": dict(os.environ),
        "logging": {name: log.level for name, log in loggers if isinstance(log, logging.Logger)},
        "root logger": [logging.root.level, *map(repr, logging.root.handlers)],
        "hooks": [repr(sys.excepthook), repr(threading.excepthook), repr(sys.displayhook)],
        "warnings": [repr(entry) for entry in warnings.filters],
        "jax": {name: repr(value) for name, value in jax.config.values.items()},
    }
"""
DIAGNOSE = """
import json, sys
import jaxdnn
first = sorted(sys.modules)
import jax
from flax import nnx
layers = [nnx.Linear(4, 4, rngs=nnx.Rngs(n)) for n in range(3)]
network = nnx.Sequential(layers[0], jax.nn.sigmoid, layers[1], jax.nn.sigmoid, layers[2])
inputs = jax.random.normal(jax.random.key(0), (8, 4))
jaxdnn.diagnose(network, inputs, jax.numpy.arange(8) % 4, progress=False)
print(json.dumps([first, sorted(sys.modules)]))
"""


def fresh(script: str, *args: str) -> list:
    """What a script prints as JSON in a process of its own, which inherits nothing of ours."""
    command = [sys.executable, "-c", script, *args]
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=kept)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def loaded() -> list[list[str]]:
    """The modules that `import jaxdnn` loads, and those after a diagnosis."""
    return fresh(DIAGNOSE)


def test_a_diagnosis_loads_nothing_heavy(loaded):
    for modules in loaded:
        assert HEAVY & {module.partition(".")[0] for module in modules} == set()


def test_importing_the_package_leaves_the_process_as_it_was(loaded):
    # What others do when they are imported is not ours: they come first.
    others = [name for name in loaded[0] if name.partition(".")[0] != "jaxdnn"]
    script = f"""{STATE}
import importlib
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
    except Exception:
        pass
before = state()
import jaxdnn
after = state()
print(json.dumps([key for key in before if before[key] != after[key]]))
"""
    assert fresh(script, json.dumps(others)) == []


def test_the_package_offers_what_it_says():
    import jaxdnn

    assert sorted(jaxdnn.__all__) == [
        "Diagnosis",
        "InputError",
        "__version__",
        "assert_trainable",
        "diagnose",
        "gradient_flow",
    ]
    assert (PACKAGE / "py.typed").is_file()
