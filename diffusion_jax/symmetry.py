"""Finite groups of symmetries of images: linear maps that keep the norm.

A law is symmetric where x and g x are equally likely for every map g of the group; a denoiser is
equivariant where D(g x) = g D(x).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.errors import UserError, brief

# Of the largest value of an image: by how much two maps may differ that count as one.
_SAME = 1e-4


@dataclass(frozen=True)
class _Listed:
    """Maps one by one."""

    maps: tuple[Callable[[Array], Array], ...]

    def __call__(self, index: Array, x: Array) -> Array:
        return jax.lax.switch(index, self.maps, x)


@dataclass(frozen=True)
class _Shifts:
    """Shifts of a torus: map i moves rows by i // width, columns by i % width."""

    height: int
    width: int

    def __call__(self, index: Array, x: Array) -> Array:
        return jnp.roll(jnp.roll(x, index // self.width, -3), index % self.width, -2)


@dataclass(frozen=True)
class Group:
    """A finite group of linear maps of images that keep their norm, numbered 0..order-1.

    Map 0 is the identity. Equal groups compare equal, so that programs compiled for one serve the
    other.

    Attributes:
      name: what files and figures call it.
      order: number of its maps.
      maps: the map of a number: called with it, an integer scalar, and with images
        (batch, height, width, channels).
      inverses: the number of each map's inverse (order,).
      shape: what the shape of an image must begin with, (height, width) or all of it; None where
        the group is not bound to one.
    """

    name: str
    order: int
    maps: Callable[[Array, Array], Array]
    inverses: tuple[int, ...]
    shape: tuple[int, ...] | None = None

    @classmethod
    def flip(cls) -> Self:
        """The identity, and left for right."""
        return cls("flip", 2, _Listed((_identity, _left_right)), (0, 1))

    @classmethod
    def dihedral(cls) -> Self:
        """The eight symmetries of a square: quarter turns, and these after left for right."""
        maps = tuple(_SQUARE[turns, flipped] for flipped in (0, 1) for turns in range(4))
        return cls("dihedral", 8, _Listed(maps), (0, 3, 2, 1, 4, 5, 6, 7))

    @classmethod
    def translations(cls, height: int, width: int) -> Self:
        """All height x width shifts of a torus.

        Raises:
          UserError: a torus without a pixel.
        """
        if height < 1 or width < 1:
            raise UserError(f"translations of {height} x {width} pixels: at least one each way")
        rows, columns = np.divmod(np.arange(height * width), width)
        inverses = (-rows % height) * width + -columns % width
        name, order = "translations", height * width
        return cls(name, order, _Shifts(height, width), tuple(map(int, inverses)), (height, width))

    @classmethod
    def of(
        cls,
        maps: Sequence[Callable[[Array], Array]],
        shape: tuple[int, int, int],
        name: str = "custom",
    ) -> Self:
        """A group of one's own, whose properties are tried on random images.

        Args:
          maps: each takes images (batch, height, width, channels) to such; in any order.
          shape: (height, width, channels) of an image.
          name: what files and figures call it.

        Raises:
          UserError: a map that changes the shape or the norm, or is not linear; two that are the
            same; no identity, or two maps whose product is none of them.
        """
        maps = tuple(maps)
        if not maps:
            raise UserError("a group has one map at least, the identity")
        if len(shape) != 3 or not all(isinstance(size, int) and size > 0 for size in shape):
            raise UserError(f"shape = {shape!r} must be (height, width, channels) of an image")
        x = jnp.asarray(np.random.default_rng(0).standard_normal((2, *shape)), jnp.float32)
        images = [_tried(i, each, x) for i, each in enumerate(maps)]
        for i, image in enumerate(images):
            if (twin := _number_of(image, images)) != i:
                raise UserError(f"maps {twin} and {i} of the group are the same: leave one out")
        if (unit := _number_of(x, images)) is None:
            raise UserError("the maps are no group: the identity is none of them")
        order = [unit, *(i for i in range(len(maps)) if i != unit)]
        maps, images = tuple(maps[i] for i in order), [images[i] for i in order]
        inverses = []
        for i, first in enumerate(maps):
            products = [_number_of(first(image), images) for image in images]
            if None in products:
                raise UserError(
                    f"the maps are no group: map {order[i]} after map "
                    f"{order[products.index(None)]} is none of them"
                )
            inverses.append(products.index(0))
        return cls(name, len(maps), _Listed(maps), tuple(inverses), tuple(shape))

    def __call__(self, index: Array, x: Array) -> Array:
        """The map of a number, an integer scalar, of images (batch, height, width, channels)."""
        return self.maps(index, x)

    def inverse(self, index: Array, x: Array) -> Array:
        """The inverse of that map."""
        return self.maps(jnp.asarray(self.inverses)[index], x)

    def of_each(self, index: Array, x: Array) -> Array:
        """A map of its own for each image: numbers (batch,), images (batch, ...)."""
        return jax.vmap(lambda i, image: self.maps(i, image[None])[0])(index, x)

    def require(self, shape: tuple[int, ...]) -> None:
        """Refuses images that the group does not map to such.

        Args:
          shape: (height, width, channels) of an image.

        Raises:
          UserError: no images, or of another size than the group's; a dihedral group of images that
            are not square.
        """
        if len(shape) != 3:
            raise UserError(
                f"the group {self.name} maps images (height, width, channels), not {shape}"
            )
        own = self.shape or ()
        if own != shape[: len(own)]:
            raise UserError(
                f"the group {self.name} is one of images of {own}, not of {shape[: len(own)]}"
            )
        image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        try:
            kept = jax.eval_shape(self.maps, jnp.int32(0), image).shape == image.shape
        except TypeError:  # branches of different shapes
            kept = False
        if not kept:
            raise UserError(
                f"the group {self.name} changes the shape of images of {shape[0]} x {shape[1]} "
                f"pixels: quarter turns need square ones"
            )


def require_group(group: object) -> None:
    """Refuses what is no group, such as the name of one.

    Raises:
      UserError: it is neither a `Group` nor None.
    """
    if not isinstance(group, Group | None):
        raise UserError(f"group = {group!r} must be a Group, such as dj.Group.flip()")


def _identity(x: Array) -> Array:
    return x


def _left_right(x: Array) -> Array:
    return jnp.flip(x, axis=-2)


def _square(turns: int, flipped: int) -> Callable[[Array], Array]:
    def turn(x: Array) -> Array:
        return jnp.rot90(_left_right(x) if flipped else x, turns, axes=(-3, -2))

    return turn


# One function a map, so that equal groups are equal.
_SQUARE = {(turns, flipped): _square(turns, flipped) for flipped in (0, 1) for turns in range(4)}


def _tried(number: int, each: Callable[[Array], Array], x: Array) -> Array:
    """What a map makes of two random images, if it is linear and keeps shape and norm."""
    try:
        image = jax.jit(each)(x)
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(
            f"map {number} of the group does not take images {x.shape} as JAX traces them, with "
            f"jax.numpy: {brief(str(error).partition(chr(10))[0])}"
        ) from error
    if image.shape != x.shape:
        raise UserError(
            f"map {number} of the group changes the shape of an image, {x.shape[1:]}, to "
            f"{image.shape[1:]}"
        )
    if not _equal(jnp.sum(image**2, (1, 2, 3)), jnp.sum(x**2, (1, 2, 3))):
        raise UserError(f"map {number} of the group changes the norm of an image")
    mixed = each(x[:1] - 2 * x[1:])
    if not _equal(mixed, image[:1] - 2 * image[1:]):
        raise UserError(f"map {number} of the group is not linear")
    return image


def _equal(one: Array, other: Array) -> bool:
    return bool(jnp.max(jnp.abs(one - other)) <= _SAME * jnp.max(jnp.abs(other)))


def _number_of(image: Array, images: Sequence[Array]) -> int | None:
    """Which of the images it is; None where it is none."""
    return next((i for i, each in enumerate(images) if _equal(image, each)), None)


# Groups that commands know by name: each is called with (height, width) of the images. Their maps
# permute the pixels of an image, so that it is all one whether the mean of each channel is removed.
GROUPS: dict[str, Callable[[int, int], Group]] = {
    "flip": lambda height, width: Group.flip(),
    "dihedral": lambda height, width: Group.dihedral(),
    "translations": Group.translations,
}


def check_symmetry(name: str) -> None:
    """Refuses a name that is not in GROUPS.

    Raises:
      UserError: it is not; the message lists those that are.
    """
    if name not in GROUPS:
        raise UserError(f"there is no symmetry {name!r}; choose from {', '.join(GROUPS)}")


def group_named(name: str, shape: tuple[int, ...]) -> Group:
    """The group of that name for images of a shape (height, width, channels).

    Raises:
      UserError: an unknown name, or a group that does not map such images to such.
    """
    check_symmetry(name)
    group = GROUPS[name](shape[0], shape[1])
    group.require(shape)
    return group
