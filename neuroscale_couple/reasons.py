"""Who answered a point, and why the surrogate was not allowed to."""

from enum import IntEnum


class Source(IntEnum):
    """Who answered a point (stored as uint8)."""

    SURROGATE_COARSE = 0
    SURROGATE_FINE = 1
    FINE = 2


class Reason(IntEnum):
    """Why a point was refused (stored as uint8); 0 means that nobody refused it."""

    ACCEPTED = 0
    NO_MODEL = 1
    GATE_CLOSED = 2
    HELD = 3
    OUT_OF_DOMAIN = 4
    UNCERTAIN = 5
    NOT_FINITE = 6
    OUT_OF_BOUNDS = 7
    NOT_POSITIVE_DEFINITE = 8
    NOT_CONVERGED = 9
    LEADER = 10
    SLOW = 11

    @property
    def sentence(self) -> str:
        """The reason as a sentence for reports and messages."""
        return _SENTENCES[self]


_SENTENCES = {
    Reason.ACCEPTED: "the surrogate's answer was accepted",
    Reason.NO_MODEL: "no surrogate is loaded yet",
    Reason.GATE_CLOSED: "the gate is closed (by the config, or because audits found too many bad answers)",
    Reason.HELD: "the point was already answered by the fine solver in this window",
    Reason.OUT_OF_DOMAIN: "the input lies outside what the surrogate was trained on",
    Reason.UNCERTAIN: "the error estimate exceeds the tolerance",
    Reason.NOT_FINITE: "the surrogate's answer was not finite",
    Reason.OUT_OF_BOUNDS: "the surrogate's answer violates the theoretical bounds",
    Reason.NOT_POSITIVE_DEFINITE: "the surrogate's tangent is not positive definite",
    Reason.NOT_CONVERGED: "the fine solver did not converge; the surrogate's answer was kept and flagged",
    Reason.LEADER: "the point leads: its fine answer is what the surrogate answers others from",
    Reason.SLOW: "the window has taken too many iterations (gate.iterations), so that all points are solved",
}
