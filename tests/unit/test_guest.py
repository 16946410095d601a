"""A guest in a solver's job: causes go through a fixed room, waits end with an error, the job is not ended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroscale_couple import guest, parallel
from neuroscale_couple.errors import InputError, TransportError
from neuroscale_couple.transport.ranked import Meeting


@given(second_hand=st.booleans(), kind=st.text(max_size=40).filter(lambda text: text.isidentifier()), text=st.text())
def test_a_cause_comes_out_of_its_room_as_it_went_in(second_hand: bool, kind: str, text: str) -> None:
    told = guest.unpacked(guest.packed((second_hand, kind, text)))
    assert told == (second_hand, kind, text.encode(errors="replace").decode())


@pytest.mark.parametrize("letter", ["x", "\x01", "é", "\n", '"', "\U0001f600"])
def test_a_cause_that_is_too_long_is_cut(letter: str) -> None:
    room = guest.packed((False, "InputError", 5000 * letter))
    assert room.shape == (guest.ROOM,)
    told = guest.unpacked(room)
    assert told is not None
    assert len(told[2]) > 200 and set(told[2]) == {letter}


def test_a_rank_without_an_error_says_so() -> None:
    assert guest.unpacked(guest.packed(None)) is None


class Never:
    """A request, and a communicator of two ranks whose other rank does not come."""

    def Get_size(self) -> int:
        return 2

    def Test(self) -> bool:
        return False

    def Ibarrier(self) -> Never:
        return self

    def Iallreduce(self, mine: Any, worst: np.ndarray[Any, Any], op: Any) -> Never:
        return self


@pytest.fixture
def as_guest(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A guest that waits for a tenth of a second."""
    monkeypatch.setattr(guest, "_longest_wait", 0.1)
    monkeypatch.setattr(parallel, "end_job", lambda error: pytest.fail("the job was ended"))
    yield


def test_a_guest_does_not_wait_for_ever(as_guest: None) -> None:
    pytest.importorskip("mpi4py")
    with pytest.raises(TransportError, match="not all ranks have come to a barrier in time"):
        parallel.barrier(Never())
    with pytest.raises(TransportError, match="not all ranks have come to window 3 in time"):
        parallel.agree(Never(), None, "window 3")


@pytest.mark.parametrize("patience", [None, 0.1])
def test_a_guest_that_failed_raises_its_own_error_and_leaves_the_job_alone(
    as_guest: None, patience: float | None
) -> None:
    pytest.importorskip("mpi4py")
    with pytest.raises(InputError, match="x is not finite"):
        parallel.agree(Never(), InputError("x is not finite"), "window 3", patience=patience)


def test_one_rank_meets_nobody() -> None:
    meeting = Meeting(None)
    error = InputError("x is not finite")
    assert meeting.tell(error) is error
    assert meeting.together("starting", lambda: 3) == 3
