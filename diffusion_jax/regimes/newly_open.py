"""Which directions open between two noise levels: what an open eigenspace gains over another."""

import numpy as np

# The square of the cosine of 45 degrees: so much of a direction at most was open before.
MOST_BEFORE = 0.5


def newly_open(
    eigenvalues: np.ndarray, vectors: np.ndarray, before: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The directions of an open eigenspace that are farthest from an earlier one.

    With the orthonormal rows U of the open modes now and V of those before, the left singular
    vectors s of U V' make the principal directions U's, whose cosines with the space of V are the
    singular values, and 0 where there are none (Bjorck & Golub 1973). New are those at more than 45
    degrees, whose cosine squared is below 1/2: of each unit of such a direction less than half was
    open before. There are at least as many as the space has gained dimensions. In the space S that
    they span their own modes are those of the matrix on it, S'U diag(eigenvalues) U'S.

    Args:
      eigenvalues: of the open modes now (k,).
      vectors: their orthonormal vectors (k, ...).
      before: orthonormal vectors of the open modes before (m, ...), m >= 0.

    Returns:
      The eigenvalues on the new directions, decreasing (j,), and the directions (j, ...), unit
      vectors whose largest component is positive.
    """
    if len(vectors) == 0:
        return np.zeros(0), vectors
    rows = vectors.reshape(len(vectors), -1)
    earlier = before.reshape(len(before), rows.shape[1])
    left, cosines, _ = np.linalg.svd(rows @ earlier.T)
    squares = np.zeros(len(rows))
    squares[: len(cosines)] = cosines**2
    new = left[:, squares < MOST_BEFORE]
    values, turned = np.linalg.eigh((new.T * eigenvalues) @ new)
    found = (new @ turned[:, ::-1]).T @ rows
    largest = np.take_along_axis(found, np.abs(found).argmax(axis=1)[:, None], axis=1)
    found = found * np.where(largest < 0, -1, 1)
    return values[::-1], found.reshape(-1, *vectors.shape[1:])
