"""The committed generated code is what the compiler makes of the schemas."""

import subprocess
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMPILER = "grpcio-tools==1.76.0"
"""Writes code for protobuf 6.31, which works with that major and the next."""

SCHEMAS = ["link", "control"]


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("proto")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", COMPILER], check=True)
    (folder / "out").mkdir()
    # The virtual path makes the generated code importable as murmurate.proto.*; with --python_out=.src the same
    # command, from the root of the checkout, renews the committed files.
    command = [python, "-m", "grpc_tools.protoc", "-I", "murmurate/proto=proto/murmurate"]
    outputs = [f"--python_out={folder / 'out'}", f"--pyi_out={folder / 'out'}"]
    subprocess.run([*command, *outputs, *(f"murmurate/proto/{name}.proto" for name in SCHEMAS)], check=True, cwd=ROOT)
    return folder / "out" / "murmurate" / "proto"


@pytest.mark.parametrize("name", [f"{schema}_pb2{ending}" for schema in SCHEMAS for ending in (".py", ".pyi")])
def test_the_committed_code_is_up_to_date(generated: Path, name: str) -> None:
    assert (ROOT / "proto" / name).read_text() == (generated / name).read_text(), "see tests/test_proto.py: protoc"


def test_every_schema_is_checked() -> None:
    assert {path.stem for path in (ROOT / "proto" / "murmurate").glob("*.proto")} == set(SCHEMAS)
