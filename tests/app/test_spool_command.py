"""The ``spool`` command: what an operator sees of a spool, and may do to it."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO, cast

import pytest

from serviceradar_poller.app.output import Output, OutputError
from serviceradar_poller.app.spool_command import spool
from serviceradar_poller.cli import main
from serviceradar_poller.env import SystemClock
from serviceradar_poller.reporting.spool import NewCall, NewReport, SpoolSettings
from serviceradar_poller.reporting.spool.engine import Engine
from serviceradar_poller.reporting.spool.files import DATABASE, FOLDER
from serviceradar_poller.wire.codec import encode_poller_status_chunk, encode_poller_status_request
from serviceradar_poller.wire.messages import PollerStatusChunk, PollerStatusRequest, ServiceStatus


def engine_of(directory: Path) -> Engine:
    engine = Engine(SpoolSettings(directory=directory), wall=lambda: 1_700_000_000.0, monotonic=lambda: 0.0)
    engine.open()
    return engine


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """Return a state directory with two reports that wait and one that was set aside."""
    engine = engine_of(tmp_path)
    status = ServiceStatus(service_name="ping\x1b[31m", service_type="icmp", agent_id="edge-01", available=True)
    unary = encode_poller_status_request(PollerStatusRequest(services=(status,)))
    chunks = tuple(encode_poller_status_chunk(PollerStatusChunk(services=(status,))) for _ in range(2))
    for kind, calls in (
        ("cycle", (NewCall(kind="unary", parts=(unary,), status_count=1),)),
        ("result", (NewCall(kind="stream", parts=chunks, status_count=1),)),
        ("early", (NewCall(kind="unary", parts=(b"\xff" * 5,), status_count=1),)),
    ):
        engine.seal(
            NewReport(
                kind=kind, timestamp=1_700_000_000, change=kind == "early", fresh=1, calls=calls,
                positions=(("edge-01", "sync", "s7"),),
            )
        )  # fmt: skip
    engine.set_aside(3, "INVALID_ARGUMENT")
    engine.close()
    return tmp_path


def test_list_is_the_default_and_has_every_report(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line a report, oldest first, those set aside last with the reason, and the sums."""
    assert main(["spool", str(state_dir)]) == 0
    default = capsys.readouterr().out
    assert main(["spool", str(state_dir), "list"]) == 0
    assert capsys.readouterr().out == default
    lines = default.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["1", "2", "3"]
    assert "2023-11-14T22:13:20Z" in lines[1]
    assert lines[3].endswith("set aside: INVALID_ARGUMENT")
    assert lines[-1].startswith("2 reports wait with 2 statuses")


def test_list_says_how_fast_it_grows_and_how_long_the_disk_lasts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From what was sealed in the last ten minutes; of an old spool nothing is said."""
    now_s = SystemClock().wall()
    times = [now_s - 400.0, now_s - 300.0, now_s - 200.0, now_s - 100.0]
    engine = Engine(SpoolSettings(directory=tmp_path), wall=lambda: times.pop(0), monotonic=lambda: 0.0)
    engine.open()
    for _ in range(4):
        call = NewCall(kind="unary", parts=(b"x" * 100_000,), status_count=1)
        engine.seal(NewReport(kind="cycle", timestamp=int(now_s), change=False, fresh=1, calls=(call,)))
    engine.close()
    assert main(["spool", str(tmp_path)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    per_h = int(last.split()[0].replace(",", ""))
    assert 2_600_000 < per_h <= 2_700_000 and "the disk has" in last


@pytest.mark.parametrize("report_id", [1, 2])
def test_show_prints_a_reports_statuses(state_dir: Path, capsys: pytest.CaptureFixture[str], report_id: int) -> None:
    """Of unary calls and of streams, with nothing that a terminal would obey."""
    assert main(["spool", str(state_dir), "show", str(report_id)]) == 0
    out = capsys.readouterr().out
    assert "position of edge-01 sync: s7" in out
    assert out.count("(icmp): available") == report_id
    assert "\x1b" not in out


def test_show_of_what_can_not_be_read_and_of_what_is_not_there(
    state_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A report whose bytes are no statuses is shown without; an unknown one is an error."""
    assert main(["spool", str(state_dir), "show", "3"]) == 0
    assert "set aside: INVALID_ARGUMENT" in capsys.readouterr().out
    assert main(["spool", str(state_dir), "show", "4"]) == 1
    assert "there is no report 4" in capsys.readouterr().err


def test_drop_deletes_what_is_named(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Waiting or set aside; an unknown id changes nothing at all."""
    assert main(["spool", str(state_dir), "drop", "1", "9"]) == 1
    assert main(["spool", str(state_dir), "drop", "1", "3"]) == 0
    capsys.readouterr()
    assert main(["spool", str(state_dir)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["2"]
    assert main(["spool", str(state_dir), "verify"]) == 0


def test_a_poller_that_runs_is_read_and_not_disturbed(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """List and verify work beside it; drop says who uses it."""
    engine = engine_of(state_dir)
    try:
        assert main(["spool", str(state_dir)]) == 0
        assert main(["spool", str(state_dir), "verify"]) == 0
        assert main(["spool", str(state_dir), "drop", "1"]) == 1
        assert "in use by process" in capsys.readouterr().err
    finally:
        engine.close()


def test_verify_names_the_damage(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A flipped byte of a part is found, and the exit code says so."""
    path = state_dir / FOLDER / DATABASE
    content = path.read_bytes()
    assert content.count(b"\xff" * 5) == 1
    path.write_bytes(content.replace(b"\xff" * 5, b"\xfe" * 5))
    assert main(["spool", str(state_dir), "verify"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "report 3: part 0.0 is damaged\n"
    assert "1 problems found" in captured.err


def test_no_spool_is_a_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The path that was looked at is named; a file of another kind is no spool."""
    assert main(["spool", str(tmp_path)]) == 1
    assert str(tmp_path / FOLDER / DATABASE) in capsys.readouterr().err
    other = tmp_path / "other"
    other.write_bytes(b"no database at all " * 100)
    assert main(["spool", str(other), "list"]) == 1
    assert "corrupt" in capsys.readouterr().err


def test_a_full_disk_under_the_output_is_not_blamed_on_the_spool(state_dir: Path) -> None:
    """It is the output that can't be written, in the middle of the reading."""
    with open("/dev/full", "w", encoding="ascii", buffering=1) as full:
        with pytest.raises(OutputError, match="can't write the output: No space left on device"):
            spool(state_dir, "list", [], out=cast("TextIO", Output(full)))
        with pytest.raises(OSError, match="No space"):
            full.close()
