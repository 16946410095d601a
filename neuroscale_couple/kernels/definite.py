"""Positive definiteness of many small matrices at once, by closed-form leading minors (Sylvester)."""

from __future__ import annotations

import numpy as np

from neuroscale_couple.values import F64, Bool


@np.errstate(invalid="ignore", over="ignore")
def positive_definite(matrix: F64) -> Bool:
    r"""Whether the symmetric part of each matrix is positive definite; NaN counts as no.

    S = (M + M^T)/2 is positive definite if and only if all leading minors are positive:
    S_00 > 0, S_00 S_11 - S_01^2 > 0, det S > 0.

    matrix: float64 [m, d, d]; returns bool [m]. d <= 3 in closed form, larger d by eigenvalues.
    """
    m, d = matrix.shape[0], matrix.shape[1]
    if d > 3:
        finite = np.asarray(np.isfinite(matrix).all(axis=(1, 2)))
        safe = np.where(finite[:, None, None], matrix, -np.eye(d))
        return np.asarray(np.linalg.eigvalsh(0.5 * (safe + safe.transpose(0, 2, 1)))[:, 0] > 0.0)
    entry = np.ascontiguousarray(matrix.reshape(m, d * d).T)
    a = entry[0]
    if d == 1:
        return np.asarray(a > 0.0)
    b = entry[d + 1]
    p = 0.5 * (entry[1] + entry[d])
    minor = a * b
    minor -= p * p
    definite = a > 0.0
    definite &= minor > 0.0
    if d == 2:
        return np.asarray(definite)
    c = entry[8]
    q = 0.5 * (entry[2] + entry[6])
    r = 0.5 * (entry[5] + entry[7])
    minor *= c
    minor += 2.0 * p * q * r
    minor -= a * r * r
    minor -= b * q * q
    definite &= minor > 0.0
    return np.asarray(definite)
