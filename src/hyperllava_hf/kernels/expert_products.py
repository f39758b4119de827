"""Triton kernels for products with one small matrix a sample, J rows of D numbers.

    rows      y[s, b, l, j] = sum_d x[b, l, d] w[b, j, d]           over the d of slice s
    columns   o[b, l, d]    = t[b, l, d] + sum_j a[b, l, j] w[b, j, d]
    outer     g[b, j, d]    = sum_l a[b, l, j] x[b, l, d]
    swiglu    h = silu(gate) value, and its gradient                 z = (gate, value)
    mix       a[n, k, r] = c[n, k] h[n, r]      h: swiglu of z[n, i] = sum_k c[n, k] y[n, k, i]

J is a few dozen and D thousands, so `rows` alone would keep one multiprocessor busy while a token
is decoded: it splits D into S slices, and who reads y adds the slices up. Sums are in fp32, in one
fixed order. What is small, y, a and z, is kept in fp32; what is large stays in its own dtype.

Dimensions: B samples, L positions, J rows of w (2R or R), D width, S slices; N positions of all
samples, M code with k = M standing for the constant 1. A weight without B is one that all samples
share; a tail is a second matrix of further rows, in its own place.
"""

from typing import Any

import torch
import triton  # type: ignore
import triton.language as tl  # type: ignore

# Programs that a launch should have, for a GPU of about 130 multiprocessors.
NUM_PROGRAMS = 128
SMALLEST_SLICE = 256

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def _dot(first, second, total):  # type: ignore[no-untyped-def]
    if INTERPRETED:
        # The interpreter would multiply the bits of bfloat16 as whole numbers. In fp32 the products
        # are exact, as they are in a tensor core.
        first, second = first.to(tl.float32), second.to(tl.float32)
    return tl.dot(first, second, total, input_precision="ieee")


@triton.jit
def _round(value, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    if INTERPRETED and dtype == tl.bfloat16:
        # The interpreter would cut fp32 off; a GPU rounds to the nearest, to even.
        bits = value.to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        value = (bits & -0x10000).to(tl.float32, bitcast=True)
    return value.to(dtype)


@triton.jit
def _rows_kernel(  # type: ignore[no-untyped-def]
    x, w, tail, y, length, width, rows, all_rows, slice_width,
    x_batch, x_row, w_batch, w_row, tail_row, y_slice, y_batch,
    TAILED: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(2).to(tl.int64)
    part = tl.program_id(1)
    num_row_blocks = tl.cdiv(all_rows, BLOCK_J)
    pos = (tl.program_id(0) // num_row_blocks) * BLOCK_L + tl.arange(0, BLOCK_L)
    j = (tl.program_id(0) % num_row_blocks) * BLOCK_J + tl.arange(0, BLOCK_J)
    end = tl.minimum((part + 1) * slice_width, width)
    total = tl.zeros((BLOCK_L, BLOCK_J), dtype=tl.float32)
    for start in range(part * slice_width, end, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x_tile = tl.load(
            x + batch * x_batch + pos[:, None].to(tl.int64) * x_row + d[None, :],
            mask=(pos[:, None] < length) & (d[None, :] < end),
            other=0.0,
        )
        w_tile = tl.load(
            w + batch * w_batch + j[None, :].to(tl.int64) * w_row + d[:, None],
            mask=(j[None, :] < rows) & (d[:, None] < end),
            other=0.0,
        )
        if TAILED:
            w_tile += tl.load(
                tail + (j[None, :] - rows).to(tl.int64) * tail_row + d[:, None],
                mask=(j[None, :] >= rows) & (j[None, :] < all_rows) & (d[:, None] < end),
                other=0.0,
            )
        total = _dot(x_tile, w_tile, total)
    tl.store(
        y + part * y_slice + batch * y_batch + pos[:, None] * all_rows + j[None, :],
        total,
        mask=(pos[:, None] < length) & (j[None, :] < all_rows),
    )


@triton.jit
def _add_slices(source, slices, stride, mask):  # type: ignore[no-untyped-def]
    total = tl.load(source, mask=mask, other=0.0)
    for part in range(1, slices):
        total += tl.load(source + part * stride, mask=mask, other=0.0)
    return total


@triton.jit
def _columns_kernel(  # type: ignore[no-untyped-def]
    a, w, tail, t, o, length, width, rows, all_rows, slices,
    a_slice, a_batch, a_row, w_batch, w_row, tail_row, t_batch, t_row, o_batch,
    GATED: tl.constexpr, ADDED: tl.constexpr, TAILED: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(2).to(tl.int64)
    pos = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    kept = (pos[:, None] < length) & (d[None, :] < width)
    total = tl.zeros((BLOCK_L, BLOCK_D), dtype=tl.float32)
    for start in range(0, all_rows, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J)
        inside = (pos[:, None] < length) & (j[None, :] < all_rows)
        source = a + batch * a_batch + pos[:, None] * a_row + j[None, :]
        value = _add_slices(source, slices, a_slice, inside)
        if GATED:
            # Both halves of z: silu(gate) * value.
            gate = value
            value = _add_slices(source + all_rows, slices, a_slice, inside)
            value = gate * tl.sigmoid(gate) * value
        w_tile = tl.load(
            w + batch * w_batch + j[:, None].to(tl.int64) * w_row + d[None, :],
            mask=(j[:, None] < rows) & (d[None, :] < width),
            other=0.0,
        )
        if TAILED:
            w_tile += tl.load(
                tail + (j[:, None] - rows).to(tl.int64) * tail_row + d[None, :],
                mask=(j[:, None] >= rows) & (j[:, None] < all_rows) & (d[None, :] < width),
                other=0.0,
            )
        total = _dot(_round(value, w_tile.dtype), w_tile, total)
    if ADDED:
        place = t + batch * t_batch + pos[:, None].to(tl.int64) * t_row + d[None, :]
        total += tl.load(place, mask=kept, other=0.0).to(tl.float32)
    place = o + batch * o_batch + pos[:, None].to(tl.int64) * width + d[None, :]
    tl.store(place, _round(total, o.dtype.element_ty), mask=kept)


@triton.jit
def _outer_kernel(  # type: ignore[no-untyped-def]
    a, x, g, samples, length, width, rows,
    a_batch, x_batch, x_row,
    BLOCK_L: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # A weight of its own: program 2 is the sample. A shared one: this program adds all samples up.
    first = tl.program_id(2).to(tl.int64)
    j = tl.program_id(0) * BLOCK_J + tl.arange(0, BLOCK_J)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_J, BLOCK_D), dtype=tl.float32)
    for sample in range(samples):
        batch = first + sample
        for start in range(0, length, BLOCK_L):
            pos = start + tl.arange(0, BLOCK_L)
            a_tile = tl.load(
                a + batch * a_batch + pos[None, :].to(tl.int64) * rows + j[:, None],
                mask=(pos[None, :] < length) & (j[:, None] < rows),
                other=0.0,
            )
            x_tile = tl.load(
                x + batch * x_batch + pos[:, None].to(tl.int64) * x_row + d[None, :],
                mask=(pos[:, None] < length) & (d[None, :] < width),
                other=0.0,
            )
            total = _dot(_round(a_tile, x_tile.dtype), x_tile, total)
    tl.store(
        g + first * rows * width + j[:, None].to(tl.int64) * width + d[None, :],
        _round(total, g.dtype.element_ty),
        mask=(j[:, None] < rows) & (d[None, :] < width),
    )


@triton.jit
def _swiglu_gradient_kernel(  # type: ignore[no-untyped-def]
    z, dh, dz, h, positions, rank, z_slices, z_slice, dh_slices, dh_slice, BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = place < positions * rank
    pair = (place // rank) * 2 * rank + place % rank
    gate = _add_slices(z + pair, z_slices, z_slice, mask)
    value = _add_slices(z + pair + rank, z_slices, z_slice, mask)
    slope = _add_slices(dh + place, dh_slices, dh_slice, mask)
    share = tl.sigmoid(gate)
    tl.store(h + place, gate * share * value, mask=mask)
    tl.store(dz + pair, slope * value * share * (1 + gate * (1 - share)), mask=mask)
    tl.store(dz + pair + rank, slope * gate * share, mask=mask)


@triton.jit
def _mix_kernel(  # type: ignore[no-untyped-def]
    y, c, a, codes, rank, slices, y_slice, y_row, c_row, a_row,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    r = tl.arange(0, BLOCK_R)
    gate = tl.zeros((BLOCK_R,), dtype=tl.float32)
    value = tl.zeros((BLOCK_R,), dtype=tl.float32)
    for start in range(0, codes + 1, BLOCK_M):
        k = start + tl.arange(0, BLOCK_M)
        code = tl.load(c + n * c_row + k, mask=k < codes, other=1.0).to(tl.float32)
        inside = (k[:, None] <= codes) & (r[None, :] < rank)
        source = y + n * y_row + k[:, None] * 2 * rank + r[None, :]
        gate += tl.sum(code[:, None] * _add_slices(source, slices, y_slice, inside), 0)
        value += tl.sum(code[:, None] * _add_slices(source + rank, slices, y_slice, inside), 0)
    h = gate * tl.sigmoid(gate) * value
    for start in range(0, codes + 1, BLOCK_M):
        k = start + tl.arange(0, BLOCK_M)
        code = tl.load(c + n * c_row + k, mask=k < codes, other=1.0).to(tl.float32)
        tl.store(
            a + n * a_row + k[:, None] * rank + r[None, :],
            code[:, None] * h[None, :],
            mask=(k[:, None] <= codes) & (r[None, :] < rank),
        )


def _block_of(number: int, largest: int) -> int:
    # A tile's edge: a power of two, and at least the 16 that a tensor core takes.
    return int(min(largest, max(16, triton.next_power_of_2(number))))


def _batch_stride(weight: torch.Tensor) -> int:
    return weight.stride(0) if weight.ndim == 3 else 0


def _with_unit_stride(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def multiply_rows(x: torch.Tensor, weight: torch.Tensor, tail: Any = None) -> torch.Tensor:
    """Multiply positions by the rows of their sample's matrix.

    Args:
        x: (B, L, D).
        weight: (B, J, D), or (J, D) shared.
        tail: Further rows (J', D), shared, or None.

    Returns:
        torch.Tensor: Partial sums (S, B, L, J + J') in fp32.
    """
    x, weight = _with_unit_stride(x), _with_unit_stride(weight)
    samples, length, width = x.shape
    rows = weight.shape[-2]
    further = weight if tail is None else _with_unit_stride(tail)
    all_rows = rows if tail is None else rows + tail.shape[0]
    block_l, block_j = _block_of(length, 64), _block_of(all_rows, 64)
    blocks = triton.cdiv(length, block_l) * triton.cdiv(all_rows, block_j)
    wanted = max(1, NUM_PROGRAMS // (blocks * samples))
    slices = min(wanted, triton.cdiv(width, SMALLEST_SLICE))
    slice_width = triton.cdiv(triton.cdiv(width, slices), 16) * 16
    slices = triton.cdiv(width, slice_width)
    y = torch.empty(slices, samples, length, all_rows, dtype=torch.float32, device=x.device)
    _rows_kernel[(blocks, slices, samples)](
        x, weight, further, y, length, width, rows, all_rows, slice_width,
        x.stride(0), x.stride(1), _batch_stride(weight), weight.stride(-2), further.stride(-2),
        y.stride(0), y.stride(1),
        TAILED=tail is not None,
        BLOCK_L=block_l, BLOCK_J=block_j, BLOCK_D=64,
    )  # fmt: skip
    return y


def multiply_columns(
    a: torch.Tensor,
    weight: torch.Tensor,
    dtype: Any,
    added: Any = None,
    gated: bool = False,
    tail: Any = None,
) -> torch.Tensor:
    """Combine the rows of each sample's matrix by the numbers of each position.

    Args:
        a: Partial sums (S, B, L, J + J'); gated, z of twice as many.
        weight: (B, J, D), or (J, D) shared.
        dtype: Of the result.
        added: What the result is added to (B, L, D), or None.
        gated: Whether the numbers are silu(gate) * value of z.
        tail: Further rows (J', D), shared, or None.

    Returns:
        torch.Tensor: (B, L, D).
    """
    weight = _with_unit_stride(weight)
    slices, samples, length, numbers = a.shape
    rows, width = weight.shape[-2:]
    out = torch.empty(samples, length, width, dtype=dtype, device=a.device)
    added_to = out if added is None else _with_unit_stride(added)
    further = weight if tail is None else _with_unit_stride(tail)
    all_rows = rows if tail is None else rows + tail.shape[0]
    block_l, block_d = _block_of(length, 64), _block_of(width, 128)
    grid = (triton.cdiv(length, block_l), triton.cdiv(width, block_d), samples)
    _columns_kernel[grid](
        a, weight, further, added_to, out, length, width, rows, all_rows, slices,
        a.stride(0), a.stride(1), numbers, _batch_stride(weight), weight.stride(-2),
        further.stride(-2), added_to.stride(0), added_to.stride(1), out.stride(0),
        GATED=gated, ADDED=added is not None, TAILED=tail is not None,
        BLOCK_L=block_l, BLOCK_J=_block_of(all_rows, 32), BLOCK_D=block_d,
    )  # fmt: skip
    return out


def mix_factors(y: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    """Mix each position's products by its code, apply SwiGLU, and spread that over the code.

    Args:
        y: Partial sums (S, 1, N, (M + 1) 2R): products with every factor of W_d, bias last.
        code: (N, M).

    Returns:
        torch.Tensor: c_k h_r of (1, 1, N, (M + 1) R) in fp32, what every factor of W_u counts.
    """
    code = _with_unit_stride(code)
    positions, codes = code.shape
    rank = y.shape[-1] // (2 * (codes + 1))
    a = torch.empty(1, 1, positions, (codes + 1) * rank, dtype=torch.float32, device=y.device)
    _mix_kernel[(positions,)](
        y, code, a, codes, rank, y.shape[0], y.stride(0), y.stride(2), code.stride(0), a.stride(2),
        BLOCK_M=64, BLOCK_R=triton.next_power_of_2(rank),
    )  # fmt: skip
    return a


def sum_outer_products(a: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Compute the gradient of a matrix from both sides of its products.

    Args:
        a: (B, L, J), fp32, contiguous.
        x: (B, L, D).
        weight: The matrix (B, J, D), or (J, D) shared: gives shape and dtype.

    Returns:
        torch.Tensor: The gradient, shaped as the matrix.
    """
    x = _with_unit_stride(x)
    samples, length, width = x.shape
    rows, is_shared = a.shape[-1], weight.ndim == 2
    out = torch.empty(weight.shape, dtype=weight.dtype, device=x.device)
    block_j, block_d = _block_of(rows, 64), _block_of(width, 64)
    grid = (
        triton.cdiv(rows, block_j),
        triton.cdiv(width, block_d),
        1 if is_shared else samples,
    )
    _outer_kernel[grid](
        a, x, out, samples if is_shared else 1, length, width, rows,
        a.stride(0), x.stride(0), x.stride(1),
        BLOCK_L=_block_of(length, 64), BLOCK_J=block_j, BLOCK_D=block_d,
    )  # fmt: skip
    return out


def differentiate_swiglu(z: torch.Tensor, dh: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the gradient of SwiGLU, and its value once more.

    Args:
        z: Partial sums (S, B, L, 2R).
        dh: Partial sums (S', B, L, R) of the gradient of its value.

    Returns:
        tuple[torch.Tensor, torch.Tensor]: Gradient of z (B, L, 2R), and h (B, L, R), in fp32.
    """
    samples, length, rank = dh.shape[1:]
    dz, h = torch.empty_like(z[0]), torch.empty_like(dh[0])
    positions, block = samples * length, 256
    _swiglu_gradient_kernel[(triton.cdiv(positions * rank, block),)](
        z, dh, dz, h, positions, rank, z.shape[0], z.stride(0), dh.shape[0], dh.stride(0),
        BLOCK=block,
    )  # fmt: skip
    return dz, h
