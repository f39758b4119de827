"""The Llama decoder with language experts (arXiv 2403.13447, Sec. 3.5, Eq. 7).

    x_hat = h + (MLP(x) + E_L(x))        h: residual stream after attention, x = RMSNorm(h)      (7)

The block loop is Llama's with one thing added: after k blocks the hidden state becomes the guidance
of the experts above (or, where an expert lies below block k, the input embeddings do). Guidance and
the HyperNetwork's tensors reach a block as positional tensors, which both kinds of gradient
checkpointing track; generated weights leave it only with the cache.

Dimensions: B samples, L positions, D width.
"""

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from .attention_hyperllava import AttentionChoice
from .carrier_hyperllava import carry, drop_carried, get_carried, raise_if_rows_differ
from .compat_hyperllava import (
    NEEDS_CACHE_POSITION,
    build_causal_mask,
    cache_position_kwargs,
    record_outputs,
)
from .experts_hyperllava import Expert, HyperNetwork, HyperNetworkHead, apply_expert
from .guidance_hyperllava import normalize_guidance, pool_guidance, raise_if_packed


class ExpertInitialization(PreTrainedModel):
    """Initialises experts beside what transformers initialises.

    A LLaVA checkpoint lacks the experts' keys and gets them from here, so this is where a fresh
    expert is made the identity update.
    """

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (Expert, HyperNetwork, HyperNetworkHead)):
            module.init_weights()
        else:
            super()._init_weights(module)


class HyperLlavaDecoderLayer(LlamaDecoderLayer):
    """A Llama block that may carry a language expert.

    Args:
        config: Llama configuration.
        hyperllava_config: `HyperLlavaConfig`, which places and sizes the experts.
        layer_idx: Index of the block, from 0.
    """

    apply_expert = staticmethod(apply_expert)

    def __init__(self, config: Any, hyperllava_config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.layer_idx = layer_idx
        self.language_expert: Any = None
        if layer_idx in hyperllava_config.language_expert_blocks:
            width, dims = (
                config.hidden_size,
                (hyperllava_config.expert_input_dim, hyperllava_config.expert_hidden_dim),
            )
            self.language_expert = Expert(
                hyperllava_config.expert_source, width, width, width, *dims
            )

    def forward(
        self,
        hidden_states: torch.Tensor,
        *expert_inputs: Any,
        use_expert: bool = False,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Run the block.

        Args:
            hidden_states: Residual stream (B, L, D).
            *expert_inputs: Guidance (B, D) or (B, L, D), in a list to be emptied by its last
                reader, and the HyperNetwork's tensors; nothing where the cache carries this
                block's weights, or no expert is used.
            use_expert: Whether the block's language expert acts.
            attention_mask: Prepared causal mask.
            position_ids: Positions (1 or B, L).
            past_key_values: Cache.
            position_embeddings: Rotary cos and sin.
            **kwargs: Passed to the attention.

        Returns:
            torch.Tensor: Residual stream (B, L, D).
        """
        residual = hidden_states
        hidden_states, _ = self.self_attn(
            hidden_states=self.input_layernorm(hidden_states),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            position_embeddings=position_embeddings,
            **kwargs,
        )
        residual = residual + hidden_states
        hidden_states = self.post_attention_layernorm(residual)
        if not use_expert:
            return residual + self.mlp(hidden_states)
        # Before the MLP, whose intermediates are the largest: the guidance may be gone by then.
        weights = self._get_expert_weights(hidden_states.dtype, expert_inputs, past_key_values)
        update = self.mlp(hidden_states)
        return residual + self.apply_expert(hidden_states, *weights, update=update)

    def _get_expert_weights(
        self, dtype: torch.dtype, expert_inputs: tuple[Any, ...], cache: Any
    ) -> tuple[torch.Tensor, ...]:
        carried = get_carried(cache)
        if carried is not None and self.layer_idx in carried:
            return carried[self.layer_idx]
        if expert_inputs and isinstance(expert_inputs[0], list):
            expert_inputs = (expert_inputs[0].pop(), *expert_inputs[1:])
        weights = self.language_expert(dtype, *expert_inputs)
        if weights[0].ndim == 3 and len(weights) == 2:  # one expert a sample: W_d is (B, 2R, D)
            carry(cache, self.layer_idx, weights)
        return weights


class HyperLlavaTextModel(ExpertInitialization, AttentionChoice, LlamaModel):
    """Llama's decoder whose blocks may carry language experts.

    Args:
        config: Llama configuration.
        hyperllava_config: `HyperLlavaConfig`, which places and sizes the experts.

    Raises:
        ValueError: If a server builds it that lays all requests into one row, under scope "prompt".
    """

    _no_split_modules = ["HyperLlavaDecoderLayer"]

    def __init__(self, config: Any, hyperllava_config: Any) -> None:
        if hyperllava_config.guides_whole_samples:
            # vLLM names its attention before it builds the model: it stops here, at its start.
            raise_if_packed(config._attn_implementation, None, None, {})
        # Llama's own constructor would first build, and then drop, every plain block.
        super(LlamaModel, self).__init__(config)
        width = config.hidden_size
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, width, self.padding_idx)
        self.layers = nn.ModuleList(
            HyperLlavaDecoderLayer(config, hyperllava_config, n)
            for n in range(config.num_hidden_layers)
        )
        self.norm = LlamaRMSNorm(width, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.expert_blocks = frozenset(hyperllava_config.language_expert_blocks)
        self.last_expert_block = max(self.expert_blocks, default=None)
        self.expert_source = hyperllava_config.expert_source
        self.guides_whole_samples = hyperllava_config.guides_whole_samples
        self.guidance_pooling = hyperllava_config.language_guidance_pooling
        # Hidden state 0 is the input embeddings; a learned code can be read from there on too.
        reads_hidden_state = (
            self.expert_source == "guided" and not hyperllava_config.guidance_from_embeddings
        )
        self.guidance_layer = hyperllava_config.guidance_layer if reads_hidden_state else 0
        self.language_expert: Any = None
        if self.expert_blocks and hyperllava_config.expert_source != "static":
            dims = (hyperllava_config.expert_input_dim, hyperllava_config.expert_hidden_dim)
            self.language_expert = HyperNetwork([(width, width)], *dims)
        self.experts_enabled = True
        self.post_init()

    @record_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        cache_position: torch.Tensor | None = None,
        use_cache: bool | None = None,
        guidance_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the decoder.

        Args:
            input_ids: Token ids (B, L); exactly one of these and embeddings.
            attention_mask: Mask in any form that transformers takes.
            position_ids: Positions (1 or B, L).
            past_key_values: Cache.
            inputs_embeds: Merged embeddings (B, L, D).
            cache_position: Positions of the inputs in the cache (L,).
            use_cache: Whether to return a cache.
            guidance_mask: Scope "prompt": positions (B, L) to pool, of a new
                prompt; None where the cache carries the weights.
            **kwargs: Passed to the blocks.

        Returns:
            BaseModelOutputWithPast: Last hidden state (B, L, D) and the cache.

        Raises:
            ValueError: If not exactly one of `input_ids` and `inputs_embeds` is given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(
                "Found both or neither of input_ids and inputs_embeds, expected exactly one."
            )
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None or NEEDS_CACHE_POSITION:
            if cache_position is None:
                seen = 0 if past_key_values is None else past_key_values.get_seq_length()
                cache_position = (
                    torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen
                )
            if position_ids is None:
                position_ids = cache_position.unsqueeze(0)
        causal_mask = build_causal_mask(
            self.config,
            inputs_embeds,
            attention_mask,
            cache_position,
            past_key_values,
            position_ids,
        )
        block_kwargs = {
            "attention_mask": causal_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            **cache_position_kwargs(cache_position),
            "position_embeddings": self.rotary_emb(inputs_embeds, position_ids),
            **kwargs,
        }
        hidden_states = self._run_blocks(inputs_embeds, guidance_mask, block_kwargs)
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values
        )

    def _run_blocks(
        self,
        hidden_states: torch.Tensor,
        guidance_mask: torch.Tensor | None,
        block_kwargs: dict[str, Any],
    ) -> torch.Tensor:
        cache = block_kwargs["past_key_values"]
        is_new = True
        if self.guides_whole_samples and self.experts_enabled:
            is_new = guidance_mask is not None
            if is_new:
                drop_carried(cache)
            else:
                raise_if_rows_differ(cache, hidden_states.shape[0])
        expert_inputs: tuple[Any, ...] = ()
        for n, layer in enumerate(self.layers):
            if n == self.guidance_layer and is_new and self.experts_enabled:
                expert_inputs = self._build_expert_inputs(hidden_states, guidance_mask)
            if n in self.expert_blocks and self.experts_enabled:
                if expert_inputs and expert_inputs[0].device != hidden_states.device:
                    # Blocks on another device: moved there once, not by each block for itself.
                    expert_inputs = tuple(t.to(hidden_states.device) for t in expert_inputs)
                if n == self.last_expert_block and expert_inputs and not torch.is_grad_enabled():
                    # Callers hold their arguments until they return. Where the cache is fullest,
                    # fp32 guidance of every position would come on top of LLaVA's peak.
                    expert_inputs = ([expert_inputs[0]], *expert_inputs[1:])
                hidden_states = layer(
                    hidden_states, *expert_inputs, use_expert=True, **block_kwargs
                )
            else:
                hidden_states = layer(hidden_states, **block_kwargs)
        return hidden_states

    def _build_expert_inputs(
        self, hidden_states: torch.Tensor, guidance_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        if self.language_expert is None:
            return ()
        # A latent code takes no guidance, but the blocks read the arguments by place.
        guidance = hidden_states.new_zeros(0)
        if self.expert_source == "guided":
            guidance = normalize_guidance(hidden_states)  # (B, L, D)
            if guidance_mask is not None:
                guidance = pool_guidance(guidance, guidance_mask, self.guidance_pooling)  # (B, D)
        shared = self.language_expert()
        if self.guides_whole_samples and torch.is_grad_enabled():
            # Every block makes its weights from W2 in fp32: one copy for autograd to keep, not one
            # a block.
            shared = tuple(tensor.float() for tensor in shared)
        return guidance, *(tensor.to(guidance.device) for tensor in shared)
