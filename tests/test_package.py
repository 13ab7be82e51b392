"""What people install: a wheel made from the sdist works beside other people's `proto` and `kernels`.

Those two names belong to proto-plus and to Hugging Face kernels. A package that installed folders of these names would
overwrite theirs, and remove them when it is uninstalled; pip does not notice either.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

THEIRS = ("proto-plus==1.29.0", "kernels==0.17.2")
# What our command line needs to start. The rest (torch above all) must be needed only by commands that use it.
LIGHT = ("pydantic", "rich", "shtab")

THEIRS_WORK = """
import proto
from kernels import get_kernel
assert callable(get_kernel) and proto.Message.__module__.startswith("proto.")
"""
OURS_WORK = """
from importlib.util import find_spec
import murmurate.peer.cli, murmurate.peer.errors, murmurate.proto.link_pb2
assert find_spec("murmurate.kernels") and find_spec("murmurate.topology")
assert not find_spec("torch")
"""


REGISTRY = "This test installs from the package registry: can it be reached from here? `pip config list` shows which.\n"


def run(*command: str | Path, cwd: Path, advice: str = "") -> str:
    """Run without the checkout in sight. When it fails, so does the test, with the last lines of its output."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PYTHONSAFEPATH": "1"}
    words = [*map(str, command)]
    done = subprocess.run(
        words, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        pytest.fail(f"{advice}{' '.join(words)}\nfailed:\n{done.stdout[-3000:]}", pytrace=False)
    return done.stdout


def build(folder: Path) -> Path:
    """The wheel, made from the sdist."""
    # Without --wheel, `build` makes the sdist and then the wheel out of the sdist.
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder, advice=REGISTRY)
    [wheel] = folder.glob("*.whl")
    assert len(list(folder.glob("*.tar.gz"))) == 1
    return wheel


def check_contents(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"murmurate"}
    packages = {name.split("/")[1] for name in names if name.startswith("murmurate/")}
    assert packages == {"peer", "proto", "topology", "kernels"}
    wanted = [f"murmurate/{package}/py.typed" for package in packages]
    folder = ROOT / "proto"
    wanted += [f"murmurate/proto/{path.relative_to(folder)}" for path in folder.rglob("*") if path.suffix == ".proto"]
    wanted += [f"murmurate/{path.relative_to(ROOT)}" for path in (ROOT / "peer").rglob("*.py")]
    assert not set(wanted) - set(names)
    assert any(name.endswith(".proto") for name in wanted)
    metadata = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("entry_points.txt")))
    assert b"murmurate = murmurate.peer.cli:main" in metadata
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.timeout(600)  # downloads: about 40 s here, however long elsewhere
def test_wheel_lives_beside_proto_plus_and_kernels(tmp_path: Path) -> None:
    wheel = build(tmp_path)
    check_contents(wheel)

    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    bin = tmp_path / "venv" / "bin"
    pip = (bin / "python", "-m", "pip")
    run(*pip, "install", "--no-compile", "-c", ROOT / "constraints.txt", *THEIRS, *LIGHT, cwd=tmp_path, advice=REGISTRY)
    run(bin / "python", "-W", "ignore", "-c", THEIRS_WORK, cwd=tmp_path)

    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    run(bin / "python", "-c", OURS_WORK, cwd=tmp_path)
    run(bin / "python", "-W", "ignore", "-c", THEIRS_WORK, cwd=tmp_path)
    assert run(bin / "murmurate", "--version", cwd=tmp_path).startswith("murmurate ")

    run(*pip, "uninstall", "--yes", "murmurate", cwd=tmp_path)
    run(bin / "python", "-W", "ignore", "-c", THEIRS_WORK, cwd=tmp_path)
    left = [path for path in (tmp_path / "venv").rglob("*murmurate*/**/*") if path.is_file()]
    assert not left
