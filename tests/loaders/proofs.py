"""What the matrix says of a loader, proved in new processes."""

from __future__ import annotations

from typing import Any

from matrix import IS_SHORT, Row

INSIDE = 2  # batches of a pass before it is cut inside
_READ = {"position": 0, "state": 1, "replay": INSIDE}
_MODE = {"position": "SEEK", "state": "STATEFUL", "replay": "REPLAY"}
_SAYS = "is another batch now"


def check_resumes(cells: Any, row: Row, workers: int) -> None:
    """Cuts inside a pass, at its end and twice in the next pass, each resume continuing from the one before."""
    whole = cells.uninterrupted(row.name, workers)
    assert whole["mode"] == _MODE[row.read_by]
    hashes = whole["hashes"]
    cuts = _cuts(row, whole["places"])
    if not row.exact:
        _check_that_it_differs(cells, row, workers, hashes, cuts)
        return
    for number, cut in enumerate(cuts[:1] if IS_SHORT else cuts):
        resumed = cells.resumed(row.name, workers, cut, len(hashes), from_resumed=number > 0)
        where = f"cut before {whole['places'][cut]}"
        assert "error" not in resumed, f"{where}: {resumed.get('traceback', resumed['error'])}"
        assert resumed["hashes"] == hashes[cut:], where
        assert not any(_SAYS in text for text in resumed["said"]), where
        if whole["places"][cut][1] == INSIDE:
            assert resumed["read"] == _READ[row.read_by], where


def _cuts(row: Row, places: list[list[int]]) -> list[int]:
    if not row.ends:
        return [INSIDE, 10, 20]
    end = places.index([1, 0])
    return [INSIDE, end, end + 1, end + INSIDE]


def _check_that_it_differs(cells: Any, row: Row, workers: int, hashes: list[str], cuts: list[int]) -> None:
    """Other batches follow, and the run says so."""
    seen = []
    for cut in (cuts[0], cuts[-1]):
        resumed = cells.resumed(row.name, workers, cut, len(hashes))
        differs = resumed.get("hashes") != hashes[cut:]
        seen.append(differs and ("error" in resumed or any(_SAYS in text for text in resumed["said"])))
    assert any(seen)


def check_that_tools_agree(cells: Any, row: Row, workers: int) -> None:
    """``check_source``, ``assert_resumes_exactly`` and ``verify_recent_batches`` say what the matrix says."""
    whole = cells.uninterrupted(row.name, workers)
    checked = cells.second("checked", row.name, workers)
    assert "error" not in checked, checked.get("traceback", checked["error"])
    assert checked["ok"] is row.exact, checked["text"]
    if not row.is_slow:
        asserted = cells.second("asserted", row.name, workers)
        assert ("error" not in asserted) is row.exact, asserted
    verified = [
        "error" not in cells.second("verified", row.name, workers, cut=cut)
        for cut in (INSIDE, len(whole["hashes"]) - 1)
    ]
    assert all(verified) if row.exact else not all(verified)
