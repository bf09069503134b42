"""Names of curves, and which layers of a deep net get one."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["MOST_LAYERS", "layer_of", "shown_layers", "tag"]

ROOT = "thermo"

MOST_LAYERS = 64
"""TensorBoard becomes unusable with thousands of tags: so many layers a quantity are shown."""


def tag(observable: str, quantity: str, layer: str | None = None) -> str:
    """The name of a curve, ``thermo/<observable>/<quantity>[/<layer>]``.

    Args:
        observable: such as ``order_parameter``.
        quantity: such as ``value``.
        layer: a parameter's name.

    Raises:
        ValueError: a part is empty.

    Example:
        >>> tag("order_parameter", "layer", "net.0.weight")
        'thermo/order_parameter/layer/net.0.weight'
    """
    parts = [observable, quantity] if layer is None else [observable, quantity, layer]
    if not all(parts):
        raise ValueError(f"the parts of a tag must not be empty, got {parts}")
    return "/".join([ROOT, *parts])


def layer_of(scalar: str) -> tuple[str, str]:
    """The quantity of a scalar's name, and the layer it is of; empty for one of the whole net.

    Example:
        >>> layer_of("w_sym/net.0.weight"), layer_of("w_sym")
        (('w_sym', 'net.0.weight'), ('w_sym', ''))
    """
    quantity, _, layer = scalar.partition("/")
    return quantity, layer


def shown_layers(names: Iterable[str]) -> list[str]:
    """The layers that curves and histograms are shown of: all, or 64 spread evenly over the depth.

    The first and the last are among them. Which are shown depends on their order alone, so that
    every quantity of the same layers shows the same ones. The store keeps the scalars of all.

    Args:
        names: of the layers, in the order of depth.

    Returns:
        At most ``MOST_LAYERS`` of them, in order.

    Example:
        >>> shown_layers(str(depth) for depth in range(127))[:3]
        ['0', '2', '4']
    """
    ordered = list(names)
    last, gaps = len(ordered) - 1, MOST_LAYERS - 1
    if last <= gaps:
        return ordered
    if gaps == 0:
        return ordered[:1]
    return [ordered[(2 * place * last + gaps) // (2 * gaps)] for place in range(MOST_LAYERS)]
