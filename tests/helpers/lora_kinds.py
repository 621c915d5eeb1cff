"""Adapters of every kind: the factors that a file holds, and what they stand for, written out over their indices."""

from __future__ import annotations

from collections.abc import Callable

import torch

Tensors = dict[str, torch.Tensor]
RANK = 2


def filled(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def flat(shape: torch.Size) -> int:
    return shape.numel() // shape[0]


def low_rank(shape: torch.Size) -> tuple[Tensors, torch.Tensor]:
    up, down = filled(shape[0], RANK), filled(RANK, *shape[1:], seed=1)
    up = up.reshape(*up.shape, *[1] * (len(shape) - 2))
    tensors = {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(3.0)}
    return tensors, torch.einsum("or,ri->oi", up.flatten(1).double(), down.flatten(1).double()) * 3 / RANK


def with_core(shape: torch.Size) -> tuple[Tensors, torch.Tensor]:
    kernel = shape[2:]
    ones = [1] * len(kernel)
    up, mid = filled(shape[0], RANK, *ones), filled(RANK, RANK, *kernel, seed=1)
    down = filled(RANK, shape[1], *ones, seed=2)
    tensors = {"lora_up.weight": up, "lora_mid.weight": mid, "lora_down.weight": down, "alpha": torch.tensor(1.0)}
    total = sum(
        torch.einsum(
            "o,k,i->oik", up[:, m].flatten().double(), mid[m, n].flatten().double(), down[n].flatten().double()
        )
        for m in range(RANK)
        for n in range(RANK)
    )
    assert isinstance(total, torch.Tensor)
    return tensors, total / RANK


def hadamard(shape: torch.Size) -> tuple[Tensors, torch.Tensor]:
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    sizes = ((shape[0], RANK), (RANK, flat(shape))) * 2
    tensors = {name: filled(*size, seed=seed) for seed, (name, size) in enumerate(zip(names, sizes, strict=True))}
    first, second = (tensors[f"hada_w{n}_a"].double() @ tensors[f"hada_w{n}_b"].double() for n in (1, 2))
    return tensors | {"alpha": torch.tensor(1.0)}, first * second / RANK


def hadamard_with_cores(shape: torch.Size) -> tuple[Tensors, torch.Tensor]:
    tensors, products = {}, []
    for number in (1, 2):
        core, out, into = (
            filled(*size, seed=10 * number + seed)
            for seed, size in enumerate(((RANK, RANK, *shape[2:]), (RANK, shape[0]), (RANK, shape[1])))
        )
        tensors |= {f"hada_t{number}": core, f"hada_w{number}_a": out, f"hada_w{number}_b": into}
        products.append(
            torch.einsum("pqk,po,qi->oik", core.reshape(RANK, RANK, -1).double(), out.double(), into.double())
        )
    return tensors, products[0] * products[1]


def kronecker(shape: torch.Size, first: bool, second: str) -> tuple[Tensors, torch.Tensor]:
    """A first factor [2, 4], of rank 2 or whole; a second one whole, of rank 2, or around a core."""
    rows, columns = shape[0] // 2, shape[1] // 4
    tensors = {"alpha": torch.tensor(5.0)}
    if first:
        tensors |= {"lokr_w1_a": filled(2, RANK), "lokr_w1_b": filled(RANK, 4, seed=1)}
        one = tensors["lokr_w1_a"].double() @ tensors["lokr_w1_b"].double()
    else:
        tensors["lokr_w1"] = filled(2, 4)
        one = tensors["lokr_w1"].double()
    if second == "whole":
        tensors["lokr_w2"] = filled(rows, columns, *shape[2:], seed=2)
        other = tensors["lokr_w2"].double()
    elif second == "factors":
        tensors |= {"lokr_w2_a": filled(rows, RANK, seed=2)}
        tensors |= {"lokr_w2_b": filled(RANK, columns * shape[2:].numel(), seed=3)}
        other = tensors["lokr_w2_a"].double() @ tensors["lokr_w2_b"].double()
    else:
        core, out, into = filled(RANK, RANK, *shape[2:]), filled(RANK, rows, seed=2), filled(RANK, columns, seed=3)
        tensors |= {"lokr_t2": core, "lokr_w2_a": out, "lokr_w2_b": into}
        other = torch.einsum("pqk,po,qi->oik", core.reshape(RANK, RANK, -1).double(), out.double(), into.double())
    scale = 5.0 / RANK if first or second != "whole" else 1.0
    product = torch.einsum("ab,cdk->acbdk", one, other.reshape(rows, columns, -1))
    return tensors, product.reshape(shape[0], -1) * scale


def generalized(shape: torch.Size, weight: torch.Tensor, is_old: bool) -> tuple[Tensors, torch.Tensor]:
    """GLoRA over a weight: what mixes its inputs, and what is beside it, in either order of the factors."""
    a, b = (shape[1], RANK), (shape[0], RANK)
    first, second = filled(*a) / 4, filled(RANK, shape[1], seed=1) / 4
    third, fourth = filled(*b, seed=2), filled(RANK, flat(shape), seed=3)
    named = (second, first, fourth, third) if is_old else (first, second, third, fourth)
    tensors = {f"{name}.weight": each for name, each in zip(("a1", "a2", "b1", "b2"), named, strict=True)}
    mix = first.double() @ second.double()
    mixed = torch.einsum("oik,ij->ojk", weight.reshape(shape[0], shape[1], -1).double(), mix)
    added = mixed.reshape(shape[0], -1) + third.double() @ fourth.double()
    return tensors | {"alpha": torch.tensor(1.0)}, added / RANK


def orthogonal(shape: torch.Size, weight: torch.Tensor, limit: float | None) -> tuple[Tensors, torch.Tensor]:
    """OFT over a weight, in two groups of outputs; with a limit to how far they rotate."""
    size = shape[0] // 2
    blocks = filled(2, size, size) / size
    skew = (blocks - blocks.transpose(1, 2)).double()
    norm = float(skew.square().sum().sqrt())
    if limit is not None:
        assert norm > limit > 0
        skew = skew * limit / norm
    same = torch.eye(size, dtype=torch.float64)
    turned = torch.stack([torch.linalg.solve((same - each).T, (same + each).T).T for each in skew])
    groups = weight.reshape(2, size, -1).double()
    added = torch.einsum("knm,kni->kmi", turned, groups) - groups
    alpha = {} if limit is None else {"alpha": torch.tensor(limit)}
    return {"oft_blocks": blocks, **alpha}, added.reshape(shape[0], -1)


Over = Callable[[torch.Size, torch.Tensor], tuple[Tensors, torch.Tensor]]
OVER_WEIGHTS: dict[str, Over] = {
    "glora": lambda shape, weight: generalized(shape, weight, False),
    "glora of older files": lambda shape, weight: generalized(shape, weight, True),
    "oft": lambda shape, weight: orthogonal(shape, weight, None),
    "oft with a limit": lambda shape, weight: orthogonal(shape, weight, 0.5),
}
"""Kinds whose change depends on the weight that they change."""
KINDS: dict[str, Callable[[torch.Size], tuple[Tensors, torch.Tensor]]] = {
    "lora": low_rank,
    "locon": with_core,
    "loha": hadamard,
    "loha with cores": hadamard_with_cores,
    **{
        f"lokr {first} {second}": lambda shape, first=first, second=second: kronecker(shape, first, second)
        for first in (False, True)
        for second in ("whole", "factors", "core")
    },
}


def magnitude(shape: torch.Size, side: str) -> torch.Tensor:
    """DoRA's magnitudes above 2 for each output (`out`) or each input (`in`) of a weight."""
    sizes = (shape[0], 1) if side == "out" else (1, shape[1])
    return 2 + filled(*sizes, *[1] * (len(shape) - 2)).abs()
