"""Leading eigenvalues of a symmetric matrix that is known by its products with vectors alone.

Lanczos' method with full reorthogonalisation, by Rayleigh and Ritz on all that was multiplied: with
orthonormal q_1..q_m and A q_j = sum_i G_ij q_i + r_j, the matrix Q'AQ is (G + G')/2, and for an
eigenvector s of it the vector y = Q s has the residual

    |A y - theta y|^2 = |(G - G')s/2|^2 + |sum_j s_j r_j|^2

(up to the products' own rounding), within whose root an eigenvalue of A lies (Parlett 1998, ch. 4).
The first part would be zero without rounding; of the second only ends of chains are left.

From one vector the method finds one copy of every eigenvalue alone. So a chain that ends, since the
space is invariant, is followed by another from a random vector orthogonal to the first. Once all
that is wanted has converged, a new chain looks for copies that were missed: the answer is taken
when it has changed nothing in `_VERIFY` steps, or up to its own end.
"""

import numpy as np

# Steps of the chain that looks for copies: a missed one that lies a tenth of the spectrum above all
# that is unknown grows 70 times in them, from 1/sqrt(d) of a random vector to most of it.
_VERIFY = 8
# Steps between two looks at the residuals.
_CHECK = 4


class Krylov:
    """The space of one matrix; it says with which vector the matrix is multiplied next.

    While it is not `done`, `add` takes A times `direction`. All is kept in float64, steps x d
    numbers twice at most, on the host.

    Attributes:
      dimension: d.
      leading: number k of eigenvalues wanted, at most d.
      done: whether these have converged, or no more steps are left.
    """

    def __init__(
        self,
        dimension: int,
        leading: int,
        most_steps: int,
        tolerance: float,
        rounding: float,
        rng: np.random.Generator,
    ) -> None:
        """Begins with a random vector.

        Args:
          dimension: see above.
          leading: see above.
          most_steps: products at most, cut to d; at least k.
          tolerance: that the residuals of the k largest must reach, in units of A.
          rounding: of a product with a unit vector, relative to max(1, |A|): what is smaller is
            taken for zero.
          rng: of the first vector and of every new chain's.
        """
        self.dimension, self.leading, self.done = dimension, leading, False
        self._most = min(max(most_steps, leading), dimension)
        self._tolerance, self._rounding, self._rng = tolerance, rounding, rng
        self._basis = np.zeros((self._most, dimension))
        self._matrix = np.zeros((self._most, self._most))
        self._size, self._scale = 0, 1.0
        self._ends: list[tuple[int, np.ndarray]] = []  # r_j that are not in the space
        self._before: np.ndarray | None = None  # what had converged when the last chain began
        self._until = 0
        self._restart()

    @property
    def direction(self) -> np.ndarray:
        """The unit vector that A is multiplied with next (d,); once `done`, some finite one."""
        return np.asarray(self._basis[min(self._size, self._most - 1)])

    @property
    def basis(self) -> np.ndarray:
        """The orthonormal q_1..q_m, rows (m, d)."""
        return self._basis[: self._size]

    @property
    def projected(self) -> np.ndarray:
        """Q'AQ (m, m)."""
        matrix = self._matrix[: self._size, : self._size]
        return np.asarray((matrix + matrix.T) / 2)

    def add(self, product: np.ndarray) -> None:
        """Takes A `direction` (d,)."""
        j, known = self._size, self._basis[: self._size + 1]
        left = product.astype(np.float64)
        for _ in range(2):
            along = known @ left
            self._matrix[: j + 1, j] += along
            left = left - along @ known
        self._size += 1
        norm = float(np.linalg.norm(left))
        self._scale = max(self._scale, abs(float(self._matrix[j, j])))
        ended = norm <= self._rounding * self._scale
        if not ended:
            self._ends.append((j, left))
        anew = self._look(ended)
        if self.done:
            return
        if ended or anew:
            self._restart()
        else:
            self._place(left / norm)

    def leaders(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The k largest eigenvalues, decreasing (k,), their residuals (k,), and vectors (k, d)."""
        values, weights, residuals = self._ritz()
        vectors = weights.T @ self.basis
        return values, residuals, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def _ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The k largest Ritz values, their vectors in the basis (m, k), and residuals."""
        values, weights = np.linalg.eigh(self.projected)
        values, weights = values[::-1][: self.leading], weights[:, ::-1][:, : self.leading]
        matrix = self._matrix[: self._size, : self._size]
        squared = np.sum(((matrix - matrix.T) / 2 @ weights) ** 2, axis=0)
        if self._size < self._most:  # a vector may have been placed that comes next
            squared = squared + (self._matrix[self._size, : self._size] @ weights) ** 2
        if self._ends:
            rows = np.stack([end for _, end in self._ends])
            squared = squared + np.sum((weights[[j for j, _ in self._ends]].T @ rows) ** 2, axis=1)
        return values, weights, np.sqrt(squared)

    def _look(self, ended: bool) -> bool:
        """Finds out whether all that is wanted is known, and says whether a new chain begins."""
        self.done = self._size == self._most
        if self.done or self._size < self.leading:
            return False
        if not (ended or self._size % _CHECK == 0 or self._size == self._until):
            return False
        values, _, residuals = self._ritz()
        if residuals.max() > self._tolerance:
            return False
        if self._before is not None:
            if not ended and self._size < self._until:
                return False
            if np.abs(values - self._before).max() <= self._tolerance:
                self.done = True
                return False
        self._before, self._until = values, self._size + _VERIFY
        return True

    def _restart(self) -> None:
        """A random unit vector orthogonal to the space comes next."""
        vector = self._rng.standard_normal(self.dimension)
        for _ in range(2):
            vector = vector - (self.basis @ vector) @ self.basis
            vector = vector / np.linalg.norm(vector)
        self._place(vector)

    def _place(self, vector: np.ndarray) -> None:
        """Makes a unit vector the next direction, and takes it out of what is left of others."""
        self._basis[self._size] = vector
        ends = []
        for j, end in self._ends:
            part = float(vector @ end)
            self._matrix[self._size, j] = part
            end = end - part * vector
            if np.linalg.norm(end) > 1e-14 * (abs(part) + 1e-300):
                ends.append((j, end))
        self._ends = ends
