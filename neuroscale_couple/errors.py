"""Every error a user can meet: what happened, where, and what to do.

A message names the case, window, rank, field and value that it is about; tests assert the text.
"""

from collections.abc import Sequence


class NeuroscaleError(Exception):
    """Base of all errors that a user can act on."""


class ConfigError(NeuroscaleError):
    """The configuration is wrong; said before the run starts."""


class ArtifactError(NeuroscaleError):
    """A surrogate artifact is missing, damaged or does not fit the configuration."""


class InputError(NeuroscaleError):
    """The macro solver sent values of a wrong shape, unit or kind (NaN, Inf)."""


class MicrostructureError(NeuroscaleError):
    """A micro structure cannot be used: not two-phase, not finite or of an unsupported size."""


class FineSolverError(NeuroscaleError):
    """A fine solve did not converge; the message holds point, load and residual history."""


class TransportError(NeuroscaleError):
    """The other side went away, timed out or sent something unexpected."""


class PeerError(TransportError):
    """The other side of an MPI job failed; the message is its first cause."""


class DifferentCallsError(TransportError):
    """The ranks do not do the same. calls: what each of them does"""

    def __init__(self, message: str, calls: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.calls = tuple(calls)


class RankError(NeuroscaleError):
    """Another rank failed; the message is that rank's first cause. kind, cause: its error and what that said"""

    def __init__(self, message: str, kind: str = "", cause: str = "") -> None:
        super().__init__(message)
        self.kind, self.cause = kind, cause


class CheckpointError(NeuroscaleError):
    """A checkpoint is missing, damaged or belongs to another case."""
