"""The expert as fused kernels: E_M(x) = W_u SwiGLU(W_d x), added to what it updates (Eq. 5).

Two launches forward: the down-projection; SwiGLU, up-projection and residual add. Five backward.
`apply_expert` of the model is the specification. Between the launches only z = W_d x exists, in
fp32, so that what eager code rounds after each of its steps is rounded once, before the
up-projection.

Under scope "token" no weights are made. While a token is decoded, three launches take the factors
as they are: products with every factor of W_d; their mixture by the code, SwiGLU; products with
every factor of W_u and residual add. Prefill and training stay with the eager code, whose large
products are a library's.

Dimensions: B samples, L positions, M code, R bottleneck.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from ..modeling.experts_hyperllava import apply_expert
from .expert_products import (
    differentiate_swiglu,
    mix_factors,
    multiply_columns,
    multiply_rows,
    sum_outer_products,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Positions up to which the factors are read by a kernel: the rows of a decoding batch.
MOST_POSITIONS = 64


class FusedExpert(torch.autograd.Function):
    """The expert and its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, update: Any
    ) -> torch.Tensor:
        """Compute E_M(x), plus `update` if there is one.

        Args:
            ctx: What the gradient will need.
            x: (B, L, D_in).
            down: W_d (B, 2R, D_in) or (2R, D_in).
            up: W_u (B, R, D_out) or (R, D_out).
            update: (B, L, D_out) of x's dtype, or None.

        Returns:
            torch.Tensor: (B, L, D_out).
        """
        z = multiply_rows(x, down)
        ctx.save_for_backward(x, down, up, z)
        return multiply_columns(z, up, x.dtype, added=update, gated=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        """Compute the gradients of all inputs that need one.

        Args:
            ctx: What `forward` kept.
            gradient: Of the result (B, L, D_out).

        Returns:
            tuple[Any, ...]: Gradients of x, W_d, W_u and the update.
        """
        x, down, up, z = ctx.saved_tensors
        needs_x, needs_down, needs_up, needs_update = ctx.needs_input_grad
        x_gradient = down_gradient = up_gradient = None
        if needs_x or needs_down or needs_up:
            dz, h = differentiate_swiglu(z, multiply_rows(gradient, up))
            if needs_x:
                x_gradient = multiply_columns(dz[None], down, x.dtype)
            if needs_down:
                down_gradient = sum_outer_products(dz, x, down)
            if needs_up:
                up_gradient = sum_outer_products(h, gradient, up)
        return x_gradient, down_gradient, up_gradient, gradient if needs_update else None


def apply_fused_expert(
    hidden_states: torch.Tensor, *weights: torch.Tensor, update: Any = None
) -> torch.Tensor:
    """Apply an expert as `apply_expert` does, by the fused kernels.

    Args:
        hidden_states: x (B, L, D_in).
        *weights: What `Expert.forward` returned.
        update: What the expert is added to (B, L, D_out); None for the expert alone.

    Returns:
        torch.Tensor: The update (B, L, D_out).

    Raises:
        ValueError: If the kernels have no such dtype.
    """
    if len(weights) == 5 and not _decodes(hidden_states):
        return apply_expert(hidden_states, *weights, update=update)
    device_type, dtype = hidden_states.device.type, hidden_states.dtype
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
    if dtype not in DTYPES:
        raise ValueError(
            f"expert_impl='triton': found activations of {dtype}, expected float32, bfloat16 or "
            "float16. Use hyperllava_hf.kernels.set_expert_impl(model, 'eager')."
        )
    x, *parts = (tensor.to(hidden_states.device, dtype) for tensor in (hidden_states, *weights))
    is_alike = update is not None and update.dtype == dtype and update.device == x.device
    added = update if is_alike else None
    if len(weights) == 5:
        result = _apply_factors(x, added, *parts)
    else:
        result = FusedExpert.apply(x, *parts, added)
    return result if is_alike or update is None else update + result


def _decodes(hidden_states: torch.Tensor) -> bool:
    return not torch.is_grad_enabled() and hidden_states.shape[:-1].numel() <= MOST_POSITIONS


def _apply_factors(
    x: torch.Tensor,
    update: Any,
    code: torch.Tensor,
    weight_down: torch.Tensor,
    bias_down: torch.Tensor,
    weight_up: torch.Tensor,
    bias_up: torch.Tensor,
) -> torch.Tensor:
    added = None if update is None else update.flatten(0, 1)[None]  # (1, N, D_out)
    y = multiply_rows(x.flatten(0, 1)[None], weight_down.flatten(0, 1), bias_down)
    a = mix_factors(y, code.flatten(0, 1))
    result = multiply_columns(a, weight_up.flatten(0, 1), x.dtype, added=added, tail=bias_up)
    return result[0].unflatten(0, x.shape[:-1])
