"""Generated weights that travel with the cache (scope "prompt").

Under scope "prompt" the language experts of a conversation are generated once, from its first
prompt, and belong to the cache exactly as its keys and values do. They are an attribute of the
cache object: whatever the cache's rows undergo, they undergo, and a copied cache takes them along.

    cache.hyperllava_weights = {block index: (W_d (B, 2R, D), W_u (B, R, D))}

Unusual: `reset`, `reorder_cache` and the like are followed by functions bound to the one instance,
since caches have no hook for passengers. They are bound by `functools.partial`, which
`copy.deepcopy` rebinds, as it does methods, and which a compiled prefill can set, unlike methods.
"""

import functools
from typing import Any

import torch

ATTRIBUTE = "hyperllava_weights"


def get_carried(cache: Any) -> dict[int, tuple[torch.Tensor, ...]] | None:
    """Return the weights that a cache carries.

    Args:
        cache: A `transformers.Cache` or None.

    Returns:
        dict[int, tuple[torch.Tensor, ...]] | None: Weights by block, None where there are none.
    """
    return getattr(cache, ATTRIBUTE, None) or None


def drop_carried(cache: Any) -> None:
    """Start a new prompt: the cache carries nothing and follows its rows from here on.

    Args:
        cache: A `transformers.Cache` or None.
    """
    if cache is None:
        return
    setattr(cache, ATTRIBUTE, {})
    for follower in (reset, crop, reorder_cache, batch_repeat_interleave, batch_select_indices):
        if hasattr(type(cache), follower.__name__):
            setattr(cache, follower.__name__, functools.partial(follower, cache))


def carry(cache: Any, layer_idx: int, weights: tuple[torch.Tensor, ...]) -> None:
    """Let a cache carry the weights of one block.

    Args:
        cache: A `transformers.Cache` or None.
        layer_idx: Index of the block.
        weights: (W_d (B, 2R, D), W_u (B, R, D)).
    """
    if cache is not None:
        getattr(cache, ATTRIBUTE)[layer_idx] = weights


def raise_if_rows_differ(cache: Any, batch_size: int) -> None:
    """Check that carried weights and the current rows are the same samples by number.

    Args:
        cache: A cache that carries weights.
        batch_size: Rows of the current input.

    Raises:
        ValueError: If the numbers differ.
    """
    found = next(iter((get_carried(cache) or {}).values()))[0].shape[0]
    if found != batch_size:
        raise ValueError(
            f"Found language expert weights of {found} samples in the cache, but {batch_size} "
            "rows of input. Expand both with cache.batch_repeat_interleave, or start a new cache."
        )


def _edit(cache: Any, edit: Any) -> None:
    carried = getattr(cache, ATTRIBUTE, {})
    for layer_idx, weights in carried.items():
        carried[layer_idx] = tuple(edit(weight) for weight in weights)


def reset(self: Any) -> Any:
    """Reset the cache; an empty cache carries nothing.

    Args:
        self: The cache.

    Returns:
        Any: What the class's method returns.
    """
    setattr(self, ATTRIBUTE, {})
    return type(self).reset(self)


def crop(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Crop the cache; one cropped to nothing carries nothing.

    Args:
        self: The cache.
        *args: As the class's method.
        **kwargs: As the class's method.

    Returns:
        Any: What the class's method returns.
    """
    result = type(self).crop(self, *args, **kwargs)
    if int(self.get_seq_length()) == 0:
        setattr(self, ATTRIBUTE, {})
    return result


def reorder_cache(self: Any, beam_idx: torch.Tensor) -> Any:
    """Reorder rows, as beam search does.

    Args:
        self: The cache.
        beam_idx: Source row of each row (B,).

    Returns:
        Any: What the class's method returns.
    """
    _edit(self, lambda weight: weight.index_select(0, beam_idx.to(weight.device)))
    return type(self).reorder_cache(self, beam_idx)


def batch_repeat_interleave(self: Any, repeats: int) -> Any:
    """Repeat each row.

    Args:
        self: The cache.
        repeats: Copies of each row.

    Returns:
        Any: What the class's method returns.
    """
    _edit(self, lambda weight: weight.repeat_interleave(repeats, dim=0))
    return type(self).batch_repeat_interleave(self, repeats)


def batch_select_indices(self: Any, indices: torch.Tensor) -> Any:
    """Keep some rows.

    Args:
        self: The cache.
        indices: Rows to keep.

    Returns:
        Any: What the class's method returns.
    """
    _edit(self, lambda weight: weight[indices.to(weight.device)])
    return type(self).batch_select_indices(self, indices)
