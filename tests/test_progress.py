"""Progress: a bar on a terminal, and where there is none a plain line now and then."""

import io
import time

import pytest
import tqdm.std

from jaxdnn import progress
from jaxdnn.progress import progress_bar, write_line


def test_a_tenth_of_the_work_is_a_line_whatever_the_size_of_its_pieces(capsys):
    for pieces in (5, 1000):
        with progress_bar(total=1000, desc="training", unit=" images") as bar:
            for _ in range(pieces):
                bar.update(1000 // pieces)
                bar.refresh()
        said = capsys.readouterr().err
        lines = said.splitlines()
        assert "\r" not in said
        assert len(lines) == min(pieces, 10)
        assert lines[0].startswith("training:  20% 200" if pieces == 5 else "training:  10% 100")
        assert lines[-1].startswith("training: 100% 1.00k/1.00k images")


def test_slow_work_is_told_every_so_many_seconds(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with progress_bar(total=1000, desc="labels", initial=10) as bar:
        for _ in range(3):
            bar.update(1)
            bar.refresh()
    assert len(capsys.readouterr().err.splitlines()) == 3


@pytest.mark.parametrize("options", [{"disable": True}, {"delay": 100.0}])
def test_what_is_not_to_be_seen_or_soon_done_is_not_told(options, capsys):
    with progress_bar(total=2, desc="reading", **options) as bar:
        bar.update(2)
    assert capsys.readouterr().err == ""


def test_a_line_does_not_disturb_the_others(capsys):
    with progress_bar(total=2, desc="training") as bar:
        bar.update(1)
        bar.refresh()
        write_line("warning: low on fuel")
        bar.update(1)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["training:", "warning:", "training:"]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("jump", [-36e3, 36e3])
def test_a_bar_moves_on_and_counts_seconds_whatever_happens_to_the_clock(jump, monkeypatch):
    jumps, passed = [0.0], [0.0]
    monkeypatch.setattr(progress.sys, "stderr", _Terminal())
    monkeypatch.setattr(time, "monotonic", lambda: passed[0])
    monkeypatch.setattr(tqdm.std, "time", lambda: 1e9 + passed[0] + jumps[0])
    with progress_bar(total=4, desc="training") as bar:
        for number in range(1, 4):
            jumps[0] += jump
            passed[0] += 1.0
            bar.update(1)
            assert f"{number}/4 [00:0{number}<" in bar.fp.getvalue().rpartition("\r")[2]
