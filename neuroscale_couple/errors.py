"""Every error a user can meet: what happened, where, and what to do.

A message names the case, window, rank, field and value that it is about; tests assert the text.
"""


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


class RankError(NeuroscaleError):
    """Another rank failed; the message is that rank's first cause."""


class CheckpointError(NeuroscaleError):
    """A checkpoint is missing, damaged or belongs to another case."""
