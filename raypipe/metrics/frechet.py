"""Distances between two clouds of features, such as those of predicted and of true clips."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def frechet_distance(x: Array, y: Array) -> float:
    """|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)), of the means and covariances of x, [n, D], and y, [m, D].

    It is the Frechet distance of two normal distributions (Dowson and Landau 1982), as in FID and FVD. With X and Y the
    centered features over sqrt(n - 1) and sqrt(m - 1), the eigenvalues of C_x C_y are the squares of the singular
    values of X Y^T. So no matrix root is taken, which fails or depends on the version of a library where there are
    fewer clips than features. nan for fewer than two clips, or features that are not finite.
    """
    x, y = (np.asarray(features, np.float64) for features in (x, y))
    if min(len(x), len(y)) < 2 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return math.nan
    gap = x.mean(0) - y.mean(0)
    first, second = ((features - features.mean(0)) / math.sqrt(len(features) - 1) for features in (x, y))
    # X = Q R has the singular values of R, which has at most D rows
    short, other = (np.asarray(np.linalg.qr(features, mode="r")) for features in (first, second))
    common = np.linalg.svdvals(short @ other.T).sum()
    return float(max(0.0, gap @ gap + (first**2).sum() + (second**2).sum() - 2 * common))


def kernel_distance(x: Array, y: Array) -> float:
    """Squared maximum mean discrepancy of x, [n, D], and y, [m, D], with the kernel (a . b / D)^2.

    The pairs of an element with itself are included, as in JEDi (Luo et al. 2024), which is 100 times this.
    """
    x, y = (np.asarray(features, np.float64) for features in (x, y))
    within_x, within_y, between = (((a @ b.T / x.shape[1]) ** 2).mean() for a, b in ((x, x), (y, y), (x, y)))
    return float(within_x + within_y - 2 * between)
