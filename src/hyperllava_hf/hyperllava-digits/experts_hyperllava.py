"""Experts whose weights are generated for each input (arXiv 2403.13447, Sec. 3.3, Eq. 3-5).

For modelled layer n and guidance g:

    e(n)   = E_n(g)                       Expert.encoder_weight, encoder_bias             (3)
    w(n)   = (W1 e(n) + B1) W2 + B2       HyperNetwork.hidden_*, HyperNetworkHead.*       (4)
    K(n)   = w(n) + b(n)                  Expert.bias_down, bias_up                       (4)
    E_M(x) = W_u SwiGLU(W_d x)            W_d, W_u are slices of K(n)                     (5)

SwiGLU(z) = silu(z_gate) * z_value, so W_d is (2R, D_in) and W_u is (D_out, R), kept transposed.
W1, B1, W2, B2 are shared by all layers of one modality. Nothing here knows of LLaVA: a module that
wants an expert owns an `Expert`, shares a `HyperNetwork`, and adds `apply_expert(...)`.

Unusual: all weights are bare parameters, so that no quantiser swaps them, and each module that owns
parameters is used through `forward`, so that offloading and sharding hooks see every use. W_d and
W_u of one guidance a sample are materialised; those of one guidance a position never are: K is
affine in e, so W_d(e) x = sum_k e_k (W2_k x) + (B2 + b) x, two dense products and a contraction.
A module calls `apply_expert` as an attribute of its own, where another implementation may stand.

Dimensions: B samples, L positions, M code (`expert_input_dim`), R bottleneck (`expert_hidden_dim`).
"""

from typing import Any

import torch
from torch import nn


def _init_normal(parameter: nn.Parameter, std: float = 1.0) -> None:
    # A loaded parameter is never touched: 5.x guards its init functions itself, 4.57 only modules.
    if not getattr(parameter, "_is_hf_initialized", False):
        nn.init.normal_(parameter, std=std)


def _init_zeros(parameter: nn.Parameter) -> None:
    if not getattr(parameter, "_is_hf_initialized", False):
        nn.init.zeros_(parameter)


# Numbers of W2 that are in fp32 at a time while a prompt's weights are made.
PIECE = 2**22


def _generate(
    code: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, own_bias: torch.Tensor
) -> torch.Tensor:
    # Eq. 4 for one slice of K, in fp32: code (B, M) or (M,), weight (M, R, D) -> (B, R, D).
    rows = weight.shape[1]
    if weight.dtype != torch.float32 and not torch.is_grad_enabled():
        # An fp32 copy of the whole of W2 would be the largest tensor of a prefill.
        rows = max(1, PIECE // (weight.shape[0] * weight.shape[2]))
    pieces = [
        torch.tensordot(code, piece.float(), dims=1)
        for piece in (weight.split(rows, 1) if rows < weight.shape[1] else (weight,))
    ]
    made = pieces[0] if len(pieces) == 1 else torch.cat(pieces, -2)
    return made + (bias.float() + own_bias.float())


def _add_biases(bias: torch.Tensor, own_bias: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # A sum in `dtype` is made in fp32 and rounded once: the same bits with three launches less.
    if bias.dtype == own_bias.dtype == dtype:
        return bias + own_bias
    return (bias.float() + own_bias.float()).to(dtype)


class HyperNetworkHead(nn.Module):
    """W2 and B2 of one shape of expert.

    Args:
        input_dim: D_in of the experts.
        output_dim: D_out of the experts.
        code_dim: M.
        hidden_dim: R.
    """

    def __init__(self, input_dim: int, output_dim: int, code_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.weight_down = nn.Parameter(torch.empty(code_dim, 2 * hidden_dim, input_dim))
        self.bias_down = nn.Parameter(torch.empty(2 * hidden_dim, input_dim))
        self.weight_up = nn.Parameter(torch.empty(code_dim, hidden_dim, output_dim))
        self.bias_up = nn.Parameter(torch.empty(hidden_dim, output_dim))

    def forward(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the parameters themselves: they are applied where the expert is.

        Returns:
            tuple[torch.Tensor, ...]: weight_down (M, 2R, D_in), bias_down (2R, D_in),
                weight_up (M, R, D_out), bias_up (R, D_out).
        """
        return self.weight_down, self.bias_down, self.weight_up, self.bias_up

    def init_weights(self) -> None:
        """Start experts as the identity update: the slices that make W_u are zero."""
        code_dim, _, input_dim = self.weight_down.shape
        _init_normal(self.weight_down, std=(code_dim * input_dim) ** -0.5)
        for parameter in (self.bias_down, self.weight_up, self.bias_up):
            _init_zeros(parameter)


class HyperNetwork(nn.Module):
    """The HyperNetwork of one modality (Eq. 4): W1 and B1, with W2 and B2 once a shape.

    Args:
        shapes: Distinct (D_in, D_out) of the modality's experts.
        code_dim: M.
        hidden_dim: R.
    """

    def __init__(self, shapes: list[tuple[int, int]], code_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.hidden_weight = nn.Parameter(torch.empty(code_dim, code_dim))
        self.hidden_bias = nn.Parameter(torch.empty(code_dim))
        self.heads = nn.ModuleList(
            HyperNetworkHead(*shape, code_dim, hidden_dim) for shape in shapes
        )

    def forward(self, head: int = 0) -> tuple[torch.Tensor, ...]:
        """Return the tensors that generate the experts of one shape.

        Args:
            head: Index of the shape.

        Returns:
            tuple[torch.Tensor, ...]: W1 (M, M) and B1 (M,) in fp32, as every expert reads them,
                then `HyperNetworkHead.forward`'s four.
        """
        return self.hidden_weight.float(), self.hidden_bias.float(), *self.heads[head]()

    def init_weights(self) -> None:
        """Fan-in initialisation of W1; B1 zero."""
        _init_normal(self.hidden_weight, std=self.hidden_weight.shape[1] ** -0.5)
        _init_zeros(self.hidden_bias)


class Expert(nn.Module):
    """What one modelled layer n owns: its encoder E_n (or learned code) and its bias b(n).

    Args:
        source: `expert_source`: "guided", "latent" or "static".
        guidance_dim: Width of the guidance.
        input_dim: D_in.
        output_dim: D_out.
        code_dim: M.
        hidden_dim: R.
    """

    def __init__(
        self,
        source: str,
        guidance_dim: int,
        input_dim: int,
        output_dim: int,
        code_dim: int,
        hidden_dim: int,
    ) -> None:
        super().__init__()
        self.source = source
        if source == "guided":
            self.encoder_weight = nn.Parameter(torch.empty(code_dim, guidance_dim))
            self.encoder_bias = nn.Parameter(torch.empty(code_dim))
        elif source == "latent":
            self.latent = nn.Parameter(torch.empty(code_dim))
        self.bias_down = nn.Parameter(torch.empty(2 * hidden_dim, input_dim))
        self.bias_up = nn.Parameter(torch.empty(hidden_dim, output_dim))

    def forward(
        self, dtype: torch.dtype, guidance: Any = None, *hypernetwork: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Generate the expert's weights (Eq. 3-4), accumulated in fp32 and returned in `dtype`.

        Args:
            dtype: Of the activations that the expert will read.
            guidance: One a sample (B, D_g) or one a position (B, L, D_g),
                fp32; read by source "guided" only.
            *hypernetwork: `HyperNetwork.forward`'s tensors; none for "static".

        Returns:
            tuple[torch.Tensor, ...]: For `apply_expert`: (W_d, W_u) of shapes (2R, D_in) and
                (R, D_out), with a leading B if guided by samples; or, guided by positions, the
                factors (code (B, L, M), W2_d, B2_d + b_d, W2_u, B2_u + b_u).
        """
        if self.source == "static":
            return self.bias_down.to(dtype), self.bias_up.to(dtype)
        hidden_weight, hidden_bias, weight_down, bias_down, weight_up, bias_up = hypernetwork
        # Autocast would round the code to 8 bits of mantissa before the long sum over M.
        with torch.autocast(device_type=hidden_weight.device.type, enabled=False):
            if self.source == "guided":
                code = nn.functional.linear(
                    guidance, self.encoder_weight.float(), self.encoder_bias.float()
                )
            else:
                code = self.latent.float()
            code = nn.functional.linear(code, hidden_weight.float(), hidden_bias.float())
            if code.ndim == 3:
                return (
                    code.to(dtype),
                    weight_down.to(dtype),
                    _add_biases(bias_down, self.bias_down, dtype),
                    weight_up.to(dtype),
                    _add_biases(bias_up, self.bias_up, dtype),
                )
            down = _generate(code, weight_down, bias_down, self.bias_down)  # (B, 2R, D_in)
            up = _generate(code, weight_up, bias_up, self.bias_up)  # (B, R, D_out)
        return down.to(dtype), up.to(dtype)

    def init_weights(self) -> None:
        """Fan-in initialisation; b(n) zero, but for a static adapter, which has no other W_d."""
        if self.source == "guided":
            _init_normal(self.encoder_weight, std=self.encoder_weight.shape[1] ** -0.5)
            _init_zeros(self.encoder_bias)
        elif self.source == "latent":
            # The scale that the encoder gives a code of normalised guidance.
            _init_normal(self.latent)
        if self.source == "static":
            _init_normal(self.bias_down, std=self.bias_down.shape[1] ** -0.5)
        else:
            _init_zeros(self.bias_down)
        _init_zeros(self.bias_up)


def swiglu(gate_value: torch.Tensor) -> torch.Tensor:
    """Gate the second half of the last dimension by the first: silu(gate) * value.

    Args:
        gate_value: (..., 2R).

    Returns:
        torch.Tensor: (..., R).
    """
    gate, value = gate_value.chunk(2, dim=-1)
    return nn.functional.silu(gate) * value


def apply_expert(
    hidden_states: torch.Tensor, *weights: torch.Tensor, update: Any = None
) -> torch.Tensor:
    """Apply generated weights: E_M(x) = W_u SwiGLU(W_d x) (Eq. 5).

    Args:
        hidden_states: x (B, L, D_in).
        *weights: What `Expert.forward` returned.
        update: What the expert is added to (B, L, D_out); None for the expert alone.

    Returns:
        torch.Tensor: The update (B, L, D_out).
    """
    device = hidden_states.device
    if any(weight.device != device for weight in weights):
        weights = tuple(weight.to(device) for weight in weights)
    if len(weights) == 5:
        result = _apply_factors(hidden_states, *weights)
    else:
        down, up = weights
        if down.ndim == 2:
            result = swiglu(nn.functional.linear(hidden_states, down)) @ up
        elif hidden_states.shape[1] == 1 and torch.compiler.is_compiling():
            result = _apply_to_one_position(hidden_states, down, up)
        else:
            result = torch.bmm(swiglu(torch.bmm(hidden_states, down.mT)), up)
    return result if update is None else update + result


def _apply_to_one_position(
    hidden_states: torch.Tensor, down: torch.Tensor, up: torch.Tensor
) -> torch.Tensor:
    # The compiler calls a library for each product of matrices, but writes sums itself, together
    # with what stands around them. fp32 costs nothing there: nothing of it reaches memory.
    gate_value = (hidden_states.float() * down.float()).sum(-1)  # (B, 2R)
    bottleneck = swiglu(gate_value).unsqueeze(-1)  # (B, R, 1)
    return (bottleneck * up.float()).sum(-2, keepdim=True).to(hidden_states.dtype)  # (B, 1, D_out)


def _apply_factors(
    hidden_states: torch.Tensor,
    code: torch.Tensor,
    weight_down: torch.Tensor,
    bias_down: torch.Tensor,
    weight_up: torch.Tensor,
    bias_up: torch.Tensor,
) -> torch.Tensor:
    code_dim, width, input_dim = weight_down.shape
    products = nn.functional.linear(hidden_states, weight_down.view(code_dim * width, input_dim))
    products = products.unflatten(-1, (code_dim, width))  # (B, L, M, 2R)
    gate_value = (code.unsqueeze(-2) @ products).squeeze(-2)  # (B, L, 2R)
    gate_value = gate_value + nn.functional.linear(hidden_states, bias_down)
    bottleneck = swiglu(gate_value)  # (B, L, R)
    outer = (code.unsqueeze(-1) * bottleneck.unsqueeze(-2)).flatten(-2)  # (B, L, M * R)
    return outer @ weight_up.flatten(0, 1) + bottleneck @ bias_up
