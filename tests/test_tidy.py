"""The rules of the source that no linter knows: who imports whom, who prints, how long things are.

A rule is a function (path, source) -> faults. `test_rule_finds` breaks each one on purpose: a rule that cannot fail is
no rule.
"""

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("peer", "proto", "topology", "kernels")
FOLDERS = (*PACKAGES, "tests", "examples")

FILE_LINES_MAX = 450  # 400 is the wish
FUNCTION_LINES_MAX = 75  # 70 is the wish

# Import layers. What a layer may import of ours, beside itself.
BASE = frozenset({"errors", "config", "sections", "checks", "manifest", "toml"})
BELOW_LAB = BASE | {"topology", "proto", "kernels", "protocol", "build", "learning", "runtime"}
LAYERS: dict[str, frozenset[str]] = {
    "topology": frozenset(),
    "kernels": frozenset(),
    "proto": frozenset(),
    **dict.fromkeys(BASE, BASE),
    "protocol": frozenset({"topology"}),
    "build": BASE | {"protocol", "topology"},
    "learning": BASE | {"protocol", "build", "topology", "kernels"},
    "runtime": BASE | {"protocol", "build", "topology", "proto"},
    "lab": BELOW_LAB,
    "console": BELOW_LAB | {"lab"},
    "arguments": frozenset(),
    "cli": BELOW_LAB | {"lab", "console", "arguments"},
}

# Libraries that only these layers may import.
HOMES = {
    "torch": {"learning", "kernels"},
    "pytorch_optimizer": {"learning"},
    "numba": {"kernels"},
    "llvmlite": {"kernels"},
    "triton": {"kernels"},
    "grpc": {"runtime"},
    "asyncio": {"runtime"},
}
# The protocol gets time and randomness as arguments, and knows neither the world nor tensors.
IMPURE = {
    *("datetime", "time"),
    *("random", "secrets", "uuid"),
    *("asyncio", "os", "select", "signal", "socket", "subprocess", "sys", "threading"),
    *("numpy", "safetensors"),
}
# All of these run code that they find in a file; torch's load and save are refused by `pickles`.
PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}

Faults = Iterator[tuple[int, str]]


@dataclass(frozen=True)
class Import:
    """One imported name: `from .a import b` is (line, ".a", "b"), `import a.b` is (line, "a.b", "")."""

    line: int
    module: str
    name: str

    @property
    def target(self) -> str:
        return f"{self.module}.{self.name}" if self.name else self.module

    @property
    def ours(self) -> str | None:
        """`a.b` of `murmurate.a.b`; None for what is not ours."""
        head, _, tail = self.target.partition(".")
        return tail if head == "murmurate" else None


def imports_of(source: str) -> Iterator[Import]:
    """All imports, those inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                for alias in node.names:
                    yield Import(node.lineno, alias.name, "")
            case ast.ImportFrom():
                module = "." * node.level + (node.module or "")
                for alias in node.names:
                    yield Import(node.lineno, module, alias.name)
            case _:
                pass


def calls_of(source: str) -> Iterator[tuple[ast.Call, str]]:
    """All calls of plain names, with what is called: `print`, `time.sleep`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield node, ast.unparse(node.func)


def layer_of(dotted: str) -> str:
    """`peer.runtime.link.Link` -> runtime; `topology` -> topology; "" when the table has no such layer."""
    parts = dotted.split(".")
    layer = parts[1] if parts[0] == "peer" and len(parts) > 1 else parts[0]
    return layer if layer in LAYERS else ""


def layer_of_file(path: PurePosixPath) -> str:
    return layer_of(".".join(path.with_suffix("").parts))


def in_packages(path: PurePosixPath) -> bool:
    return path.parts[0] in PACKAGES


# The rules -------------------------------------------------------------------------------------------


def layers(path: PurePosixPath, source: str) -> Faults:
    """Imports go one way."""
    if not in_packages(path) or path == PurePosixPath("peer/__init__.py"):
        return
    layer = layer_of_file(path)
    if not layer:
        yield 1, "this module has no place in LAYERS"
        return
    for imported in imports_of(source):
        if imported.ours is not None:
            target = layer_of(imported.ours)
            if target != layer and target not in LAYERS[layer]:
                yield imported.line, f"{layer} may not import {imported.target}"


def libraries(path: PurePosixPath, source: str) -> Faults:
    """torch in learning and kernels, grpc and asyncio in runtime, nothing impure in protocol."""
    if not in_packages(path):
        return
    layer = layer_of_file(path)
    for imported in imports_of(source):
        if imported.ours is not None or imported.module.startswith("."):
            continue
        parts = imported.target.split(".")
        for library, homes in HOMES.items():
            if library in parts and layer not in homes:
                yield imported.line, f"{library} is imported only in {' and '.join(sorted(homes))}"
        if layer == "protocol" and parts[0] in IMPURE:
            yield imported.line, f"protocol is pure: not {parts[0]}"


def import_style(path: PurePosixPath, source: str) -> Faults:
    """Siblings relatively with one dot, other packages absolutely: a type checker knows a class by its file's path."""
    own = "murmurate." + ".".join(path.parent.parts)
    for imported in imports_of(source):
        head, sibling = imported.module.split(".")[0], imported.module[1:] or imported.name
        if head in PACKAGES:
            yield imported.line, f"murmurate.{imported.module}, not {imported.module}"
        elif imported.module.startswith(".."):
            yield imported.line, "parent-relative: write murmurate...."
        elif imported.module.startswith("."):
            if path.parent == PurePosixPath("peer"):
                yield imported.line, "modules directly in peer import absolutely"
            elif "." in sibling or (ROOT / path.parent / sibling).is_dir():
                yield imported.line, "a subpackage is another package: import it absolutely"
        elif own != "murmurate.peer" and imported.target.startswith(f"{own}."):
            first = imported.target.removeprefix(f"{own}.").partition(".")[0]
            if not (ROOT / path.parent / first).is_dir():
                yield imported.line, "a sibling: import it relatively, with one dot"


def printing(path: PurePosixPath, source: str) -> Faults:
    """Only the command line prints."""
    if path == PurePosixPath("peer/cli.py") or path.parts[0] == "examples":
        return
    for call, name in calls_of(source):
        if name == "print":
            yield call.lineno, "print outside peer/cli.py"


def sleeping(path: PurePosixPath, source: str) -> Faults:
    """Tests wait for what they need, never for time to pass."""
    if path.parts[0] != "tests":
        return
    for call, name in calls_of(source):
        if name in ("time.sleep", "sleep") or (name == "asyncio.sleep" and ast.unparse(call.args[0]) != "0"):
            yield call.lineno, f"{name} in a test"
    for imported in imports_of(source):
        if imported.target == "time.sleep":
            yield imported.line, "time.sleep in a test"


def pickles(_path: PurePosixPath, source: str) -> Faults:
    """No pickle, from the wire or from anywhere else: tensors are safetensors."""
    for imported in imports_of(source):
        if imported.module.split(".")[0] in PICKLES:
            yield imported.line, f"{imported.module} runs code it finds in files"
    for call, name in calls_of(source):
        allowed = any(word.arg == "allow_pickle" and ast.unparse(word.value) != "False" for word in call.keywords)
        if name in ("torch.load", "torch.save") or allowed:
            yield call.lineno, f"{name} with pickle"


def sizes(_path: PurePosixPath, source: str) -> Faults:
    """Files and functions stay short."""
    lines = len(source.splitlines())
    if lines > FILE_LINES_MAX:
        yield FILE_LINES_MAX, f"{lines} lines: at most {FILE_LINES_MAX}"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield node.lineno, f"{node.name} has {lines} lines: at most {FUNCTION_LINES_MAX}"


def docstrings(_path: PurePosixPath, source: str) -> Faults:
    """Every module says what it is."""
    if " " not in (ast.get_docstring(ast.parse(source)) or ""):
        yield 1, "no module docstring"


MUTE = re.compile(r"#\s*(?:type:\s*ignore|pyright:\s*(?:ignore|\w+\s*=)|noqa)(.*)", re.DOTALL)
CODES = re.compile(r"\s*(?:\[[^\]]*\]|:?\s*[A-Z]+[0-9]+(?:\s*,\s*[A-Z]+[0-9]+)*|\w+\s*$)")


def mutes(_path: PurePosixPath, source: str) -> Faults:
    """Who silences a checker says why, behind it in the same comment (of a whole file: in the comment above)."""
    before = ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            if token.type not in (tokenize.NL, tokenize.NEWLINE):
                before = ""
            continue
        if found := MUTE.search(token.string):
            whole_file = "=" in found[0] and token.line.lstrip().startswith("#")
            reason = before if whole_file else CODES.sub("", found[1], count=1)
            if not re.search(r"[a-z]{3}", reason):
                yield token.start[0], f"{token.string}: why?"
        before = token.string


RULES: dict[str, Callable[[PurePosixPath, str], Faults]] = {
    rule.__name__: rule
    for rule in (layers, libraries, import_style, printing, sleeping, pickles, sizes, docstrings, mutes)
}


# The tree is tidy --------------------------------------------------------------------------------------


def sources() -> list[PurePosixPath]:
    """All Python files but generated ones."""
    found = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    written = (path for path in found if not path.stem.endswith(("_pb2", "_pb2_grpc")))
    return sorted(PurePosixPath(path.relative_to(ROOT)) for path in written)


@pytest.mark.parametrize("name", RULES)
def test_source_keeps(name: str) -> None:
    found = dict.fromkeys(
        f"{path}:{line}: {text}"
        for path in sources()
        for line, text in RULES[name](path, (ROOT / path).read_text(encoding="utf-8"))
    )
    assert not found, "\n".join([f"{RULES[name].__doc__}", *found])


def test_sources_are_found() -> None:
    assert {path.parts[0] for path in sources()} >= {*PACKAGES, "tests"}


# Each rule can fail ------------------------------------------------------------------------------------

BROKEN = [
    ("layers", "topology/x.py", "from murmurate.peer.errors import ConfigError"),
    ("layers", "kernels/x.py", "import murmurate.topology"),
    ("layers", "proto/__init__.py", "from murmurate.peer import errors"),
    ("layers", "peer/protocol/x.py", "from murmurate.peer.errors import RemoteError"),
    ("layers", "peer/protocol/x.py", "def f():\n    from murmurate.peer.runtime import daemon"),
    ("layers", "peer/learning/tasks/x.py", "from murmurate.peer.runtime.link import Link"),
    ("layers", "peer/runtime/x.py", "from murmurate.peer.learning import trainer"),
    ("layers", "peer/runtime/x.py", "from murmurate.peer.lab.cohort import Cohort"),
    ("layers", "peer/lab/x.py", "from murmurate.peer import cli"),
    ("layers", "peer/config.py", "from murmurate.peer.build import build_core"),
    ("layers", "peer/build.py", "from murmurate.peer.runtime.store import Store"),
    ("layers", "peer/new_module.py", ""),
    ("libraries", "peer/lab/x.py", "def f():\n    import torch.nn.functional as F"),
    ("libraries", "peer/runtime/x.py", "from safetensors.torch import save_file"),
    ("libraries", "peer/runtime/x.py", "from safetensors import torch"),
    ("libraries", "kernels/x.py", "from pytorch_optimizer import Lion"),
    ("libraries", "peer/cli.py", "import grpc"),
    ("libraries", "peer/lab/x.py", "import asyncio"),
    ("libraries", "peer/protocol/x.py", "import time"),
    ("libraries", "peer/protocol/x.py", "from random import Random"),
    ("import_style", "peer/runtime/x.py", "from ..errors import LocalError"),
    ("import_style", "peer/runtime/x.py", "from murmurate.peer.runtime.link import Link"),
    ("import_style", "topology/x.py", "from murmurate.topology import Topology"),
    ("import_style", "peer/learning/x.py", "from .exchange.models import Models"),
    ("import_style", "peer/learning/x.py", "from .exchange import Models"),
    ("import_style", "peer/learning/x.py", "from . import exchange"),
    ("import_style", "peer/x.py", "from .errors import LocalError"),
    ("import_style", "tests/x.py", "from peer.errors import LocalError"),
    ("printing", "peer/console.py", "def f():\n    print(1)"),
    ("printing", "tests/x.py", "print()"),
    ("sleeping", "tests/x.py", "import time\ntime.sleep(1)"),
    ("sleeping", "tests/x.py", "from time import sleep as nap"),
    ("sleeping", "tests/x.py", "import asyncio\nasync def f():\n    await asyncio.sleep(0.1)"),
    ("pickles", "tests/x.py", "import pickle"),
    ("pickles", "peer/runtime/x.py", "from cloudpickle import loads"),
    ("pickles", "peer/learning/x.py", "import torch\ntorch.load('x', weights_only=True)"),
    ("pickles", "peer/learning/x.py", "import numpy as np\nnp.load('x', allow_pickle=True)"),
    ("sizes", "peer/x.py", "\n" * (FILE_LINES_MAX + 1)),
    ("sizes", "peer/x.py", "async def f():" + "\n    pass" * FUNCTION_LINES_MAX),
    ("docstrings", "peer/__init__.py", ""),
    ("docstrings", "peer/__init__.py", '"""."""'),
    ("mutes", "peer/x.py", "x = 1  # type: ignore"),
    ("mutes", "peer/x.py", "x = 1  # type: ignore[assignment]"),
    ("mutes", "peer/x.py", "x = 1  # pyright: ignore[reportMissingImports]: "),
    ("mutes", "peer/x.py", "x = 1  # noqa"),
    ("mutes", "peer/x.py", "x = 1  # noqa: E501, S101"),
    ("mutes", "peer/x.py", "# pyright: reportPrivateUsage=false"),
]
FINE = [
    ("layers", "peer/cli.py", "from murmurate.peer import console as view, errors"),
    ("layers", "peer/protocol/x.py", "from murmurate.topology import Topology\nfrom .events import Event"),
    ("layers", "peer/lab/x.py", "from murmurate.peer.learning.trainer import TorchTrainer"),
    ("libraries", "kernels/x.py", "import torch"),
    ("libraries", "peer/runtime/x.py", "import asyncio\nimport grpc.aio"),
    ("import_style", "peer/learning/x.py", "from murmurate.peer.learning.exchange import Models\nfrom .y import z"),
    ("import_style", "peer/learning/x.py", "from murmurate.peer.learning.exchange.models import Models"),
    ("import_style", "peer/learning/x.py", "from murmurate.peer.learning import exchange"),
    ("import_style", "peer/build.py", "from murmurate.peer.errors import LocalError"),
    ("printing", "peer/cli.py", "print(1)"),
    ("sleeping", "tests/x.py", "import asyncio\nasync def f():\n    await asyncio.sleep(0)"),
    ("sizes", "peer/x.py", "\n" * FILE_LINES_MAX),
    ("sizes", "peer/x.py", "def f():" + "\n    pass" * (FUNCTION_LINES_MAX - 1)),
    ("mutes", "peer/x.py", "x = 1  # type: ignore[assignment]  # the stub is older than the library"),
    ("mutes", "peer/x.py", "x = 1  # pyright: ignore[reportMissingImports]: optional"),
    ("mutes", "peer/x.py", "x = 1  # noqa: S104 we mean every interface"),
    ("mutes", "peer/x.py", "# These tests look inside.\n# pyright: reportPrivateUsage=false"),
]


def faults(case: tuple[str, str, str]) -> list[tuple[int, str]]:
    name, path, source = case
    return list(RULES[name](PurePosixPath(path), source))


@pytest.mark.parametrize("case", BROKEN, ids=str)
def test_rule_finds(case: tuple[str, str, str]) -> None:
    assert faults(case)


@pytest.mark.parametrize("case", FINE, ids=str)
def test_rule_allows(case: tuple[str, str, str]) -> None:
    assert not faults(case)


def test_every_rule_is_broken_once() -> None:
    assert {name for name, *_ in BROKEN} == set(RULES)


# README --------------------------------------------------------------------------------------------------


def tree_paths(readme: str) -> list[str]:
    """The paths of the fenced block behind `<!-- tree -->`.

    A line is an indented name, or several with one space between them, then two spaces or more, then what it is.
    A folder ends in a slash; what is indented deeper lies in it.
    """
    block = re.search(r"<!-- tree -->\s*```\w*\n(.*?)```", readme, re.DOTALL)
    if block is None:
        return []
    folders: list[tuple[int, str]] = []
    paths: list[str] = []
    for line in block[1].splitlines():
        names = re.split(r" {2,}", line.strip())[0].split()
        indent = len(line) - len(line.lstrip())
        if names:
            folders = [folder for folder in folders if folder[0] < indent]
        above = folders[-1][1] if folders else ""
        paths += [above + name for name in names]
        folders += [(indent, above + name) for name in names if name.endswith("/")]
    return paths


def test_tree_is_read() -> None:
    tree = "peer/\n  cli.py config.py  y: z\n  lab/\n    sim.py\nkernels/  x\n"
    readme = f"# x\n<!-- tree -->\n```text\n{tree}```\n"
    assert tree_paths(readme) == ["peer/", "peer/cli.py", "peer/config.py", "peer/lab/", "peer/lab/sim.py", "kernels/"]
    assert not tree_paths("```\npeer/\n```")


def test_readme_tree_names_what_exists() -> None:
    paths = tree_paths((ROOT / "README.md").read_text(encoding="utf-8"))
    assert paths, "README.md has no fenced block behind <!-- tree -->"
    assert {f"{package}/" for package in PACKAGES} <= set(paths)
    lost = [path for path in paths if not (ROOT / path).exists() or path.endswith("/") != (ROOT / path).is_dir()]
    assert not lost, f"README.md names what does not exist: {', '.join(lost)}"
