"""Random sign vectors: the probes of trace estimates and the starts of Lanczos runs.

They are drawn on the CPU from a generator of their own, so that every rank and every device sees
the same probes and no global random state moves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from torch_thermo.spectra.arguments import require_whole

Blocks = Mapping[str, slice]


def _signs(dimension: int, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(0, 2, (dimension,), generator=generator, dtype=torch.int8)
    return drawn.mul_(2).sub_(1)


def rademacher(dimension: int, count: int, seed: int = 0) -> Tensor:
    """Independent vectors of fair random signs.

    Args:
        dimension: length n of a vector, at least 1.
        count: number k of vectors, at least 1; the first ones do not depend on it.
        seed: seed of the probes' own generator.

    Returns:
        (n, k) int8 tensor of +1 and -1 on the CPU.

    Raises:
        ValueError: `dimension` or `count` is below 1.
        TypeError: one is not a whole number.
    """
    require_whole("dimension", dimension)
    require_whole("count", count)
    return torch.cat(list(probe_blocks(dimension, count, seed=seed, chunk=count)), dim=1)


def hadamard_order(dimension: int, probes: int, blocks: Blocks | None) -> int:
    """Size K of a complete group of Hadamard probes, or 1 for plain random signs.

    K is the smallest power of two that is not below the number of blocks; coordinates that no
    block names count as one more block. Hadamard probes need at least two blocks and at least one
    complete group, `probes >= K`.

    Args:
        dimension: length n of a probe.
        probes: number of probes that may be spent.
        blocks: disjoint slices of the n coordinates by name, or None.

    Returns:
        K, or 1.

    Raises:
        ValueError: two blocks overlap, or a block leaves the n coordinates.
    """
    spans = _spans(dimension, blocks)
    if len(spans) < 2:
        return 1
    order = 1 << (len(spans) - 1).bit_length()
    return order if probes >= order else 1


def probe_blocks(
    dimension: int,
    count: int,
    *,
    order: int = 1,
    blocks: Blocks | None = None,
    seed: int = 0,
    chunk: int = 8,
) -> Iterator[Tensor]:
    r"""Yield `count` probes, a few columns at a time.

    Probe r takes the base vector of its group, b of fair random signs, drawn anew for each group of
    `order` probes, and multiplies block l of it by the entry $H_{rl} = (-1)^{popcount(r \wedge l)}$
    of Sylvester's Hadamard matrix. Over a complete group the columns of H are orthogonal, so
    $\sum_r z_{r,i} z_{r,j} = 0$ for i and j in different blocks: whatever an operator holds between
    its blocks cancels exactly (C. Bekas, E. Kokiopoulou, Y. Saad, *An estimator for the diagonal
    of a matrix*, Appl. Numer. Math. 57, 2007). Within a block all probes of a group agree up to
    one sign: they are one independent draw, not K. `order=1` gives plain independent probes.

    Args:
        dimension: length n of a probe.
        count: number of probes.
        order: size K of a group, a power of two not below the number of blocks.
        blocks: disjoint slices by name; needed when `order` is above 1.
        seed: seed of the probes' own generator.
        chunk: largest number of columns yielded at a time.

    Yields:
        (n, c) int8 tensors on the CPU with c <= chunk.
    """
    generator = torch.Generator().manual_seed(seed)
    spans = _spans(dimension, blocks) if order > 1 else []
    base = torch.empty(0, dtype=torch.int8)
    for first in range(0, count, chunk):
        columns = []
        for probe in range(first, min(first + chunk, count)):
            if probe % order == 0:
                base = _signs(dimension, generator)
            columns.append(_flip_blocks(base, spans, probe % order))
        yield torch.stack(columns, dim=1)


def _flip_blocks(base: Tensor, spans: list[list[slice]], row: int) -> Tensor:
    """The base with every block whose Hadamard entry in this row is -1 multiplied by it."""
    probe = base.clone()
    for column, slices in enumerate(spans):
        if (row & column).bit_count() % 2:
            for span in slices:
                probe[span] *= -1
    return probe


def _spans(dimension: int, blocks: Blocks | None) -> list[list[slice]]:
    """The coordinates as disjoint blocks, the ones that nothing names last and together."""
    if not blocks:
        return [[slice(0, dimension)]]
    named, rest, end = [], [], 0
    for name, span in sorted(blocks.items(), key=lambda item: item[1].indices(dimension)[:2]):
        start, stop, stride = span.indices(dimension)
        outside = stride != 1 or (span.stop is not None and span.stop > dimension)
        if start < end or outside:
            raise ValueError(
                f"blocks must be disjoint slices of {dimension} coordinates, got {name!r}: {span}"
            )
        if start == stop:
            continue
        if start > end:
            rest.append(slice(end, start))
        named.append([slice(start, stop)])
        end = stop
    if end < dimension:
        rest.append(slice(end, dimension))
    return [*named, rest] if rest else named
