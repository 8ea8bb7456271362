"""Progress: bars with rate and time left on a terminal, lines elsewhere, silence where only data is wanted."""

from __future__ import annotations

import subprocess

import pytest
from command_line import PROGRAM, on_terminal

from reviver.cli.output import Output
from reviver.cli.progress import done_text, left_text, rate_text
from reviver.progress import NullProgress


def test_a_bar_on_a_terminal() -> None:
    shown = on_terminal(["work"]).stdout
    assert "reading" in shown
    assert " of 4 files" in shown
    assert "files/s" in shown
    assert "left" in shown
    assert "half of it" in shown


@pytest.mark.parametrize("option", ["-q", "--json", "--no-progress"])
def test_no_bar_where_it_is_not_wanted(option: str) -> None:
    shown = on_terminal(["work", option]).stdout
    assert "reading" not in shown
    assert ("half of it" in shown) is (option == "--no-progress")


def test_notes_alone_in_a_log() -> None:
    done = subprocess.run([*PROGRAM, "work"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "half of it\n")


def test_silence_is_the_library_s_own_null() -> None:
    assert type(Output(mode="json").progress()) is NullProgress


def test_words() -> None:
    assert rate_text(None, "facts") == ""
    assert rate_text(12.34, "facts") == "12.3 facts/s"
    assert rate_text(0.125, "rounds") == "8.0 s/round"
    assert rate_text(1536, "bytes") == "1.5 KiB/s"
    assert left_text(None) == ""
    assert left_text(200) == "3 min 20 s left"
    assert done_text(1536, 3072, "bytes") == "1.5 KiB of 3.0 KiB"
    assert done_text(12, None, "facts") == "12 facts"
    assert done_text(1200, 20000, "") == "1,200 of 20,000"
