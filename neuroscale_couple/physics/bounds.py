r"""Voigt and Reuss bounds of the two-phase composite with a power-law matrix, from the inclusion share alone.

In plane strain a strain splits into its in-plane hydrostatic part h = (e_xx + e_yy)/sqrt2 and its in-plane deviator g
(two components); an isotropic linear phase has the moduli 2 kappa + 2/3 mu for h and 2 mu for g.

Energy. For a convex potential, uniform strain gives an upper bound and Jensen's inequality per phase a lower one:

    min { f w_i(e_i) + (1-f) w_m(e_m) : f e_i + (1-f) e_m = E }  <=  W(E)  <=  f w_i(E) + (1-f) w_m(E)

and (1+m) w <= s : e <= 2 w holds in each phase, hence (1+m) W <= Sigma : E <= 2 W.

Tangent. T is the effective tensor of the linear medium with the local moduli C(x), so <C^-1>^-1 <= T <= <C>. The
matrix is stiffest unstrained, which bounds <C>. Its softest shear modulus falls with the local strain without limit,
but the mean of its inverse does not: with Q = 1 + q,

    1/mu_t = Q^(2-p) / (1-m+mQ) / mu  is concave in Q^p  (m >= 1/2),   <= Q^(1-p) / (m mu), concave in Q^p  (any m),

so Jensen bounds <1/mu_t> in the matrix by its value at <Q^p>, and <Q^p> is bounded by the energy.
Source: Ponte Castaneda & Suquet 1998 (bounds of nonlinear composites); the tangent bound follows as said here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from neuroscale_couple.values import F64

if TYPE_CHECKING:
    from neuroscale_couple.physics.composite import PowerLawComposite

_ITERATIONS = 40
_ENOUGH = 1e-13
_HYDROSTATIC = np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])


def energy_bounds(law: PowerLawComposite, strain: F64, share: F64) -> tuple[F64, F64]:
    """(lower, upper) bounds on stress : strain per volume, float64 [n] MPa.

    strain: float64 [n, 3] Mandel; share: float64 [n] of the inclusions
    """
    h2, g2 = _invariants(strain)
    return 2.0 * law.p * reuss(law, h2, g2, share), 2.0 * voigt(law, h2, g2, share)


def tangent_bounds(law: PowerLawComposite, strain: F64, share: F64) -> tuple[F64, F64]:
    """(lower, upper) bounds on the tangent as quadratic forms, float64 [n, 3, 3] Mandel, MPa."""
    h2, g2 = _invariants(strain)
    m = 2.0 * law.p - 1.0
    matrix = np.maximum(1.0 - share, 1e-12)
    mean_power = 1.0 + law.p * voigt(law, h2, g2, share) / (1.5 * law.mu_m * law.e0**2 * matrix)
    q1 = mean_power ** (1.0 / law.p)
    factor = q1 / (1.0 - m + m * q1) if m >= 0.5 else 1.0 / m
    mu = law.mu_m / (q1 ** (1.0 - law.p) * factor)
    low = [
        1.0 / (share / i + matrix / s)
        for i, s in ((_plane(law.kappa_i, law.mu_i), _plane(law.kappa_m, mu)), (2.0 * law.mu_i, 2.0 * mu))
    ]
    high = [
        share * i + (1.0 - share) * s
        for i, s in ((_plane(law.kappa_i, law.mu_i), _plane(law.kappa_m, law.mu_m)), (2.0 * law.mu_i, 2.0 * law.mu_m))
    ]
    return _isotropic(low[0], low[1]), _isotropic(high[0], high[1])


def voigt(law: PowerLawComposite, h2: F64, g2: F64, share: F64) -> F64:
    """Energy at uniform strain with the squared parts h2, g2, float64 [n] MPa."""
    inclusion = 0.5 * _plane(law.kappa_i, law.mu_i) * h2 + law.mu_i * g2
    return np.asarray(share * inclusion + (1.0 - share) * _matrix_energy(law, h2, g2))


def reuss(law: PowerLawComposite, h2: F64, g2: F64, share: F64) -> F64:
    """Least energy of two uniformly strained phases of mean strain E (they carry the same stress), float64 [n] MPa.

    The secant modulus of the matrix solves mu = mu_m (1 + q(mu))^(p-1); the iteration falls monotonically to it and is
    speeded up by Aitken's rule.
    """
    stiff = _plane(law.kappa_i, law.mu_i)

    def split(mu: F64) -> tuple[F64, F64]:
        h = 1.0 / (1.0 - share + share * _plane(law.kappa_m, mu) / stiff)
        g = 1.0 / (1.0 - share + share * mu / law.mu_i)
        return h, g

    def step(mu: F64) -> F64:
        h, g = split(mu)
        return np.asarray(law.mu_m * (1.0 + _q(law, h * h * h2, g * g * g2)) ** (law.p - 1.0))

    mu = np.full(len(share), law.mu_m)
    for _ in range(_ITERATIONS):
        first = step(mu)
        second = step(first)
        bend = second - 2.0 * first + mu
        safe = np.abs(bend) > 1e-15 * law.mu_m
        better = np.where(safe, mu - (first - mu) ** 2 / np.where(safe, bend, 1.0), second)
        new = np.where((better > 0.0) & (better <= second), better, second)
        done = np.all(np.abs(new - mu) <= _ENOUGH * law.mu_m)
        mu = new
        if done:
            break
    h, g = split(mu)
    hi, gi = h * _plane(law.kappa_m, mu) / stiff, g * mu / law.mu_i
    inclusion = (0.5 * stiff * hi * hi) * h2 + (law.mu_i * gi * gi) * g2
    return np.asarray(share * inclusion + (1.0 - share) * _matrix_energy(law, h * h * h2, g * g * g2))


def _invariants(strain: F64) -> tuple[F64, F64]:
    h2 = 0.5 * (strain[:, 0] + strain[:, 1]) ** 2
    return h2, 0.5 * (strain[:, 0] - strain[:, 1]) ** 2 + strain[:, 2] ** 2


def _plane(kappa: float, mu: F64 | float) -> F64:
    return np.asarray(2.0 * kappa + (2.0 / 3.0) * mu)


def _q(law: PowerLawComposite, h2: F64, g2: F64) -> F64:
    return (h2 / 3.0 + g2) * (2.0 / 3.0 / law.e0**2)


def _matrix_energy(law: PowerLawComposite, h2: F64, g2: F64) -> F64:
    """kappa h^2 + 3/2 mu e0^2 ((1+q)^p - 1)/p, accurate for small q."""
    power = np.expm1(law.p * np.log1p(_q(law, h2, g2)))
    return np.asarray(law.kappa_m * h2 + (1.5 * law.mu_m * law.e0**2 / law.p) * power)


def _isotropic(hydrostatic: F64, deviatoric: F64) -> F64:
    return np.asarray(
        hydrostatic[:, None, None] * _HYDROSTATIC + deviatoric[:, None, None] * (np.eye(3) - _HYDROSTATIC)
    )
