"""Ranks that fail, wait and leave together.

`comm` is an mpi4py communicator, or `SerialComm` where the macro solver gave none: serial runs never import
mpi4py. Only this module and `transport/` import it.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from neuroscale_couple import guest
from neuroscale_couple.errors import DifferentCallsError, NeuroscaleError, PeerError, RankError, TransportError
from neuroscale_couple.serial import SerialComm

T = TypeVar("T")
SPIN = 20e-6
"""Seconds of polling before a wait starts to sleep."""
LONGEST_SLEEP = 1e-3
"""Seconds between two polls of a long wait."""
GRACE = 5.0
"""Seconds that a rank with a second-hand error leaves to the rank that knows the first cause."""
DRAIN = 0.3
"""Seconds that the launcher gets to forward the last message: some drop what they have not read at an abort."""
_LAUNCHED_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "MV2_COMM_WORLD_RANK", "MPI_LOCALRANKID")
_WORLD_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "MPIEXEC_SIZE")


def rank(comm: Any) -> int:
    """Rank of this process in `comm`; 0 without one."""
    return 0 if comm is None else int(comm.Get_rank())


def size(comm: Any) -> int:
    """Number of ranks of `comm`; 1 without one."""
    return 1 if comm is None else int(comm.Get_size())


def barrier(comm: Any) -> None:
    """Wait for all ranks without burning a core. Collective: yes."""
    if size(comm) > 1 and not idle_wait(request := comm.Ibarrier(), guest.longest_wait()):
        _nobody_came(request, None, "a barrier")


def communicator(comm: Any = None) -> Any:
    """The communicator to work with: `comm`, or the serial stand-in where it is None.

    Raises: TransportError if the launcher started several ranks that do not see each other.
    Collective: no
    """
    if comm is not None:
        if not isinstance(comm, SerialComm):
            check_world(comm)
        return comm
    if launched_size() > 1:
        raise TransportError(
            f"this process is one of {launched_size()} started by mpirun, but connect() got no communicator: "
            "pass comm=MPI.COMM_WORLD (or MPI.COMM_SELF if the processes are independent runs)"
        )
    return SerialComm()


def launched_size() -> int:
    """Number of ranks that the launcher's environment speaks of; 1 without a launcher."""
    sizes = [int(text) for name in _WORLD_SIZE_VARIABLES if (text := os.environ.get(name, "")).isdigit()]
    return max(sizes, default=1)


def launched() -> bool:
    """Whether an MPI launcher started this process, or it has started MPI itself."""
    return "mpi4py.MPI" in sys.modules or any(name in os.environ for name in _LAUNCHED_VARIABLES)


def check_world(comm: Any = None) -> None:
    """Refuse the singletons that come from an mpirun of another MPI than mpi4py's; let one rank's error end all.

    Raises: TransportError
    Collective: no
    """
    from mpi4py import MPI

    install_excepthook()
    if launched_size() > 1 and MPI.COMM_WORLD.Get_size() == 1:
        raise TransportError(
            f"mpirun started {launched_size()} processes, but mpi4py sees only itself: that mpirun belongs to another "
            f"MPI than mpi4py's ({MPI.Get_library_version().splitlines()[0].strip()}); use the mpirun installed with it"
        )


# -- waiting


def idle_until(done: Callable[[], bool], seconds: float | None = None) -> bool:
    """Poll `done` without burning a core: spin for 20 µs, then sleep a tenth of the time waited, 1 ms at most.

    seconds: give up after that time. Returns whether `done` came true.
    """
    if done():
        return True
    start = time.perf_counter()
    while not done():
        waited = time.perf_counter() - start
        if seconds is not None and waited > seconds:
            return False
        if waited > SPIN:
            time.sleep(min(LONGEST_SLEEP, 0.1 * waited))
    return True


def idle_wait(request: Any, seconds: float | None = None) -> bool:
    """Wait for an MPI request without burning a core; False if `seconds` passed first."""
    return idle_until(request.Test, seconds)


def idle_wait_all(requests: list[Any], seconds: float | None = None) -> bool:
    """Wait for several MPI requests without burning a core; False if `seconds` passed first."""
    if not requests:
        return True
    testall = type(requests[0]).Testall
    return idle_until(lambda: bool(testall(requests)), seconds)


# -- agreement


def agree(comm: Any, error: BaseException | None, where: str, same: str = "", patience: float | None = None) -> None:
    """All ranks go on, or all raise: the failing rank its own error, the others RankError with the first cause.

    where: what was being done, for the message
    same: a text that must be equal on all ranks (the call and its common arguments)
    patience: seconds that a failing rank waits for the others before it ends the job; None: for ever.
        Needed where the others may be stuck in a collective that this rank will never enter.
    Raises: error, RankError, DifferentCallsError, TransportError (a guest, see `guest`, has waited long enough)
    Collective: yes, one reduction of three integers
    """
    if size(comm) == 1:
        if error is not None:
            raise error
        return
    from mpi4py import MPI

    key = zlib.crc32(same.encode())
    mine = np.array([error is not None, key, -key], dtype=np.int64)
    worst = np.empty_like(mine)
    request = comm.Iallreduce(mine, worst, op=MPI.MAX)
    limit = guest.longest_wait() if error is None or patience is None else patience
    if not idle_wait(request, limit):
        _nobody_came(request, error, where)
    if worst[0] != 0:
        _raise_first_cause(comm, error, where)
    if worst[1] != -worst[2]:
        calls = comm.allgather(same)
        other = next(i for i, call in enumerate(calls) if call != calls[0])
        raise DifferentCallsError(
            f"the ranks do not do the same: rank 0 {calls[0]}, rank {other} {calls[other]}; "
            "every call is collective and its time, step and totals must be equal on all ranks",
            calls,
        )


def together(comm: Any, where: str, action: Callable[[], T], same: str = "", patience: float | None = None) -> T:
    """Do something on this rank; all ranks go on with their results, or all raise. See `agree` for the rest.

    Collective: yes
    """
    result: list[T] = []
    error: Exception | None = None
    try:
        result.append(action())
    except Exception as found:
        error = found
    agree(comm, error, where, same, patience)
    return result[0]


def _raise_first_cause(comm: Any, error: BaseException | None, where: str) -> None:
    cause = None if error is None else (is_second_hand(error), type(error).__name__, str(error))
    causes = [(found, i) for i, found in enumerate(_all_causes(comm, cause, where)) if found is not None]
    if error is not None:
        raise error
    (_, kind, message), first = min(causes, key=lambda item: (item[0][0], item[1]))
    raise RankError(f"rank {first} failed ({where}): {kind}: {message}", kind, message)


def _all_causes(comm: Any, cause: guest.Cause | None, where: str) -> list[guest.Cause | None]:
    if guest.longest_wait() is None:
        return list(comm.allgather(cause))
    rooms = np.empty((size(comm), guest.ROOM), dtype=np.uint8)
    if not idle_wait(request := comm.Iallgather(guest.packed(cause), rooms), guest.TELLING):
        _nobody_came(request, None, f"{where}, where one has failed,")
    return [guest.unpacked(room) for room in rooms]


def _nobody_came(request: Any, error: BaseException | None, where: str) -> NoReturn:
    """End the wait for other ranks: in a job of our own end that, in the solver's raise."""
    if error is not None and guest.longest_wait() is None:
        end_job(error)
    late = guest.too_late(where, request)
    raise error or late


def is_second_hand(error: BaseException) -> bool:
    """Whether another rank knows the first cause of this error."""
    return isinstance(error, RankError | PeerError)


def sum_over(comm: Any, values: npt.ArrayLike) -> npt.NDArray[Any]:
    """Sum of an array [...] over all ranks, of the same shape on each. Collective: yes."""
    return _reduce(comm, values, "SUM")


def max_over(comm: Any, values: npt.ArrayLike) -> npt.NDArray[Any]:
    """Element-wise maximum of an array [...] over all ranks, of the same shape on each. Collective: yes."""
    return _reduce(comm, values, "MAX")


def _reduce(comm: Any, values: npt.ArrayLike, operation: str) -> npt.NDArray[Any]:
    mine = np.array(values)
    if size(comm) == 1:
        return mine
    from mpi4py import MPI

    result = np.empty_like(mine)
    comm.Allreduce(mine, result, op=getattr(MPI, operation))
    return result


# -- who is where


def threads_of(comm: Any) -> int:
    """Threads that this rank should use: cores of its node / ranks of `comm` on it, at least 1.

    OMP_NUM_THREADS is obeyed where it is set.
    Collective: yes
    """
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    own = os.sched_getaffinity(0)
    cores, ranks = set(own), 1
    if size(comm) > 1:
        from mpi4py import MPI

        node = comm.Split_type(MPI.COMM_TYPE_SHARED)
        cores, ranks = set().union(*node.allgather(own)), node.Get_size()
        node.Free()
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return max(1, min(len(own), len(cores) // ranks))


def set_threads(comm: Any) -> int:
    """Give torch its share of the node's cores; returns the number of threads. Collective: yes."""
    threads = threads_of(comm)
    import torch

    torch.set_num_threads(threads)
    return threads


# -- leaving

_farewells: list[Callable[[BaseException | None], None]] = []


def add_farewell(tell: Callable[[BaseException | None], None]) -> None:
    """Register what is to be told to the other side before this process ends the job."""
    _farewells.append(tell)


def end_job(error: BaseException, code: int = 1) -> None:
    """Print the error, tell the other side and end all ranks with a non-zero status; returns in serial only.

    A rank with a second-hand error waits a moment first, so that the first cause is printed, and only that.
    Collective: no
    """
    if not _is_parallel():
        return
    if not is_second_hand(error):
        print_error(error)
    for tell in _farewells:
        tell(error)
    if is_second_hand(error):
        time.sleep(GRACE)
        print_error(error)
    _abort(code)


def _is_parallel() -> bool:
    if "mpi4py.MPI" not in sys.modules:
        return False
    from mpi4py import MPI

    return bool(MPI.Is_initialized() and not MPI.Is_finalized() and MPI.COMM_WORLD.Get_size() > 1)


_printed = False


def print_error(error: BaseException) -> None:
    """Print what ends the job; only the first error of this process is printed."""
    global _printed
    if _printed:
        return
    _printed = True
    head = f"neuroscale-couple: {_whoami()} failed; all ranks end:\n"
    sys.stdout.flush()
    told = f"{error}\n" if isinstance(error, NeuroscaleError) else "".join(traceback.format_exception(error))
    sys.stderr.write(head + told)
    sys.stderr.flush()


def _whoami() -> str:
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    return f"rank {world.Get_rank()} of {world.Get_size()}{_role}"


_role = ""


def name_role(role: str) -> None:
    """Say in messages what this rank is, e.g. `service rank 0`."""
    global _role
    _role = f" ({role})"


def _abort(code: int) -> None:
    from mpi4py import MPI

    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(DRAIN)
    MPI.COMM_WORLD.Abort(code or 1)
    os._exit(code or 1)  # some MPIs return from Abort and end the process a moment later


_hooked = False


def install_excepthook() -> None:
    """Make an uncaught exception of this rank end the whole job, non-zero on every rank; serial runs keep theirs."""
    global _hooked
    if _hooked or not _is_parallel():
        return
    _hooked = True
    former = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        end_job(error)
        former(kind, error, trace)

    sys.excepthook = hook


def guard_exit(unfinished: Callable[[], str | None]) -> None:
    """Install the exception hook, and end the job if this rank leaves early (sys.exit, a forgotten close).

    unfinished: called at exit; a sentence if the other ranks would wait for this one, else None
    """
    install_excepthook()

    def leave() -> None:
        sentence = unfinished()
        if sentence is None or not _is_parallel():
            return
        sys.stderr.write(f"neuroscale-couple: {_whoami()} {sentence}; all ranks end\n")
        for tell in _farewells:
            tell(None)
        _abort(1)

    atexit.register(leave)


@contextmanager
def abort_on_error() -> Iterator[None]:
    """Run a program's body: any error, and any exit with a non-zero code, ends all ranks. Serial: changes nothing."""
    try:
        yield
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        if code != 0 and _is_parallel():
            if isinstance(leaving.code, str):
                sys.stderr.write(leaving.code + "\n")
            _abort(code)
        raise
    except BaseException as error:
        end_job(error)
        raise
