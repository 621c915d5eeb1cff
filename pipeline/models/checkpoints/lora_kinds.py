"""What each kind of adapter makes of a parameter, in fp32.

A weight is [out, in, *kernel]; tensors come by their roles, and a product of them that has the weight's first
dimension and its number of elements is taken in the weight's shape.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from math import prod
from typing import NamedTuple

import torch

Shape = tuple[int, ...]
Tensors = Mapping[str, torch.Tensor]
Product = tuple[torch.Tensor, "int | None"]
"""What an adapter adds before any scale, and the rank that alpha is divided by; None takes no alpha."""
BESIDE = ("alpha", "dora_scale", "difference")
"""Roles that go with the factors of a product."""


def low_rank(tensors: Tensors, _: torch.Tensor) -> Product:
    """LoRA (Hu et al. 2021, arXiv:2106.09685): up [out, rank] times down [rank, in, *kernel]."""
    return tensors["up"].flatten(1) @ tensors["down"].flatten(1), len(tensors["down"])


def low_rank_with_core(tensors: Tensors, _: torch.Tensor) -> Product:
    """LoCon's convolution in three (Yeh et al. 2023, arXiv:2309.14859): down, `mid` [rank, rank, *kernel], up."""
    return _tucker(tensors["mid"], tensors["up"].flatten(1).T, tensors["down"].flatten(1)), len(tensors["down"])


def hadamard(tensors: Tensors, _: torch.Tensor) -> Product:
    """LoHa (Hyeon-Woo et al. 2021, arXiv:2108.06098): two products of low rank, multiplied element by element.

    Factors are [out, rank] and [rank, in * kernel]; with the cores t1 and t2 [rank, rank, *kernel] they are
    [rank, out] and [rank, in]. Raises ValueError for two products of unlike shapes.
    """
    one, other = (_factored(tensors, f"hada_w{number}", f"hada_t{number}") for number in (1, 2))
    if one.shape != other.shape:
        raise ValueError("the two products differ in shape")
    return one * other, len(tensors["hada_w1_b"])


def kronecker(tensors: Tensors, _: torch.Tensor) -> Product:
    """LoKr (Yeh et al. 2023, arXiv:2309.14859): the Kronecker product of w1 [a, b] and w2 [c, d, *kernel].

    Either may be a product of low rank itself; alpha counts only where one is, and over the second one's rank.
    """
    one = (tensors["lokr_w1"] if "lokr_w1" in tensors else _factored(tensors, "lokr_w1")).flatten(1)
    other = tensors["lokr_w2"] if "lokr_w2" in tensors else _factored(tensors, "lokr_w2", "lokr_t2")
    factor = next((tensors[name] for name in ("lokr_w2_b", "lokr_w1_b") if name in tensors), None)
    product = torch.kron(one.reshape(*one.shape, *[1] * (other.ndim - 2)), other.contiguous())
    return product, None if factor is None else len(factor)


def generalized(tensors: Tensors, weight: torch.Tensor) -> Product:
    """GLoRA (Chavan et al. 2023, arXiv:2306.07967): the weight times a, which mixes its inputs, and b beside it.

    a is a1 [in, rank] times a2 [rank, in], b is b1 [out, rank] times b2 [rank, in * kernel]; older files have the two
    of each the other way round. Where both ways fit, ComfyUI takes the older one for a square weight.
    """
    a1, a2, b1, b2 = (tensors[name].flatten(1) for name in _GENERAL)
    is_new = b2.shape[0] == b1.shape[1] == a1.shape[1] == a2.shape[0]
    is_old = b2.shape[1] == b1.shape[0] == a1.shape[0] == a2.shape[1]
    if is_old and (not is_new or len(a2) == len(weight) == weight.shape[1]):
        a1, a2, b1, b2 = a2, a1, b2, b1
    mixed = (weight.flatten(2).transpose(1, -1) @ a1 @ a2).transpose(1, -1) if weight.ndim > 2 else weight @ a1 @ a2
    return mixed.reshape(weight.shape) + (b1 @ b2).reshape(weight.shape), len(a2)


def orthogonal(tensors: Tensors, weight: torch.Tensor) -> Product:
    """OFT (Qiu et al. 2023, arXiv:2306.07280): groups of outputs are rotated, by Cayley's transform of `oft_blocks`.

    `oft_blocks` are [groups, size, size]; a positive alpha limits how far all of them together rotate. The change is
    in proportion to the strength, where ComfyUI's goes by its square.
    """
    blocks = tensors["oft_blocks"]
    skew = blocks - blocks.transpose(1, 2)
    if "alpha" in tensors:
        limit, norm = tensors["alpha"].reshape(()), torch.linalg.vector_norm(skew) + 1e-8
        skew = torch.where((limit > 0) & (norm > limit), skew * limit / norm, skew)
    same = torch.eye(blocks.shape[1], dtype=blocks.dtype, device=blocks.device)
    turned = (same + skew) @ torch.linalg.inv(same - skew) - same
    grouped = weight.reshape(*blocks.shape[:2], -1)
    return (turned.transpose(1, 2) @ grouped).reshape(weight.shape), None


class Kind(NamedTuple):
    """A complete set of factors, and the function that makes what they add to a weight."""

    factors: tuple[str, ...]
    multiply: Callable[[Tensors, torch.Tensor], Product]


_HADAMARD = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_GENERAL = ("glora_a1", "glora_a2", "glora_b1", "glora_b2")
_FIRST = (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
_SECOND = (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"), ("lokr_w2_a", "lokr_w2_b", "lokr_t2"))
KINDS = (
    Kind(("up", "down"), low_rank),
    Kind(("up", "down", "mid"), low_rank_with_core),
    Kind(_HADAMARD, hadamard),
    Kind((*_HADAMARD, "hada_t1", "hada_t2"), hadamard),
    *(Kind(first + second, kronecker) for first in _FIRST for second in _SECOND),
    Kind(_GENERAL, generalized),
    Kind(("oft_blocks",), orthogonal),
)


def merged(weight: torch.Tensor, tensors: Tensors, strength: float) -> torch.Tensor:
    """The parameter with an adapter at a strength; all float32.

    A `value` takes the parameter's place, in part at a strength below 1; a `difference` is added. A product of factors
    is added times alpha / rank, or with a `dora_scale` decomposed, see `decomposed`.
    """
    if "value" in tensors:
        return torch.lerp(weight, tensors["value"].reshape(weight.shape), strength)
    total = tensors["difference"].reshape(weight.shape) if "difference" in tensors else 0.0
    if kind := _kind_of(tensors):
        product, rank = kind.multiply(tensors, weight)
        scale = float(tensors["alpha"]) / rank if "alpha" in tensors and rank else 1.0
        added = scale * product.reshape(weight.shape)
        if "dora_scale" in tensors:
            changed = torch.lerp(weight, decomposed(weight, added, tensors["dora_scale"]), strength)
            return changed + strength * total
        total = total + added
    return weight + strength * total


def decomposed(weight: torch.Tensor, added: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """DoRA (Liu et al. 2024, arXiv:2402.09353): the sum, scaled to a magnitude for each output or each input.

    `magnitude` has `out` numbers, and the sum is divided by the norms of the weight as it was; or it has `in` numbers
    behind a 1, and the sum is divided by its own norms. So does ComfyUI; the paper divides by the sum's own in both.
    Raises RuntimeError for another count of numbers.
    """
    changed = weight + added
    by_output = len(magnitude) == len(weight)
    others = [axis for axis in range(weight.ndim) if axis != (0 if by_output else 1)]
    norm = torch.linalg.vector_norm(weight if by_output else changed, dim=others, keepdim=True)
    return changed * (magnitude.reshape(norm.shape) / (norm + torch.finfo(weight.dtype).eps))


def violation(shapes: Mapping[str, Shape], wanted: Shape) -> str | None:
    """Reason why tensors of these shapes, by role, make nothing of the wanted shape; None when they do.

    "alone" stands for roles that are not complete. Nothing is computed: the tensors are on the device `meta`.
    """
    found = _kind_of(shapes)
    rest = set(shapes) - set(found.factors if found else ())
    whole = rest <= set(BESIDE) if found else "difference" in rest and rest <= {"difference", "alpha"}
    if not whole and set(shapes) != {"value"}:
        return "alone"
    wrong = [shapes[role] for role in ("difference", "value") if role in rest and not _like(shapes[role], wanted)]
    wrong += [shapes["alpha"]] if prod(shapes.get("alpha", ())) != 1 else []
    if found:
        wrong += _wrong_product(found, shapes, wanted)
    return " and ".join(str(list(shape)) for shape in wrong) or None


def _wrong_product(kind: Kind, shapes: Mapping[str, Shape], wanted: Shape) -> list[Shape]:
    """Shapes that do not fit: the product's, or the factors' where they do not multiply; then the magnitude's."""
    tensors = {role: torch.empty(shape, device="meta") for role, shape in shapes.items()}
    try:
        product = kind.multiply(tensors, torch.empty(wanted, device="meta"))[0]
    except (RuntimeError, ValueError, IndexError):
        return [shapes[role] for role in kind.factors]
    if not _like(tuple(product.shape), wanted):
        return [tuple(product.shape)]
    try:
        if "dora_scale" in tensors:
            like = torch.empty(wanted, device="meta")
            decomposed(like, like, tensors["dora_scale"])
    except (RuntimeError, IndexError, TypeError):
        return [shapes["dora_scale"]]
    return []


def _kind_of(roles: Collection[str]) -> Kind | None:
    """The kind whose factors some roles are, whatever goes with them; None for no kind's, or for more than one's."""
    factors = set(roles) - set(BESIDE)
    return next((kind for kind in KINDS if set(kind.factors) == factors), None)


def _like(shape: Shape, wanted: Shape) -> bool:
    return (shape[:1], prod(shape)) == (wanted[:1], prod(wanted))


def _factored(tensors: Tensors, name: str, core: str = "") -> torch.Tensor:
    """Product of the factors `name`_a and `name`_b, around a core where there is one."""
    first, second = (tensors[f"{name}_{side}"].flatten(1) for side in "ab")
    return _tucker(tensors[core], first, second) if core in tensors else first @ second


def _tucker(core: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Tucker product [out, in, *kernel] of a core [p, q, *kernel], first [p, out] and second [q, in].

    As matrix products, which refuse factors of unlike ranks; `torch.einsum` repeats those of rank 1.
    """
    rows = (first.T @ core.flatten(1)).reshape(first.shape[1], core.shape[1], -1)
    return (rows.transpose(1, 2) @ second).transpose(1, 2).reshape(first.shape[1], second.shape[1], *core.shape[2:])
