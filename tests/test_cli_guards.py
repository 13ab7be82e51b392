"""What the command line refuses lest something be lost, and its words for news about records."""

from __future__ import annotations

from pathlib import Path

import pytest

from murmurate.peer import console

from .test_cli import Capture, complaint, config_file


def test_an_export_replaces_no_configuration(capsys: Capture, here: Path) -> None:
    before = (here / config_file(here)).read_text()
    words = "swarm.toml: is a configuration's name; the file to write comes last"
    assert complaint(capsys, 2, "export", "swarm.toml") == words
    assert complaint(capsys, 2, "export", "swarm.toml", "swarm.toml") == words
    assert (here / "swarm.toml").read_text() == before


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_a_demo_without_a_place_says_so(capsys: Capture, here: Path, out: str) -> None:
    (here / "file").write_text("mine")
    assert complaint(capsys, 2, "demo", "--out", out).startswith(f"{out}/swarm: could not be made: ")


def test_a_toy_takes_no_task(capsys: Capture) -> None:
    words = "--task digits: with --exchange seeds a toy is trained, and no task"
    assert complaint(capsys, 2, "sim", "--exchange", "seeds", "--task", "digits").endswith(words)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"kind": "crowded_out", "peer": "b"}, "b has too many lives"),
        ({"kind": "voided", "peer": "b", "forked": True, "from_seq": 7}, "b signed two histories: its records from 7"),
        ({"kind": "unreached", "peer": "b", "from_seq": 7}, "b's records from 7 on are void; only a neighbour"),
        ({"kind": "diverged", "peer": "b"}, "b holds the same records and has other weights"),
        (
            {"kind": "took", "batches": 9, "bytes": 80, "sources": ["b", "c"]},
            "took the state of 9 batches (80 bytes) instead of their log from b, c",
        ),
    ],
)
def test_news_about_records_have_words(row: dict[str, object], text: str) -> None:
    assert console.run_line(row).plain.startswith(text)
