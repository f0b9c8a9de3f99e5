"""The limits of the figures of `make keeping`."""

import pytest

from bench import keeping


@pytest.mark.parametrize(("busy_ms", "verdict", "status"), [(20.0, "met", 0), (20.1, "OVER", 1)])
def test_a_p99_above_twice_the_quiet_one_is_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], busy_ms: float, verdict: str, status: int
) -> None:
    monkeypatch.setattr(keeping, "_rows", [])
    keeping._show("backup of 10 MB", [10.0] * 50, [busy_ms] * 100, [10.0] * 50)
    assert keeping._end() == status
    line, last = capsys.readouterr().out.splitlines()[-2:]
    assert (line.startswith("backup of 10 MB: p99 of appends  2.0"), line.split()[-1]) == (True, verdict)
    assert last == f"{status} over their limits, 0 failed"
