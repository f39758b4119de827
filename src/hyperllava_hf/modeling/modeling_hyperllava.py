"""HyperLLaVA (arXiv 2403.13447): LLaVA whose projector and decoder get weights made for each input.

The base model is transformers' own LLaVA; this file adds the experts to it: the visual expert in
the projector, the language experts in the decoder, and the rules by which scope "prompt" finds
the prompt that steers them. With experts switched off, or freshly initialised, the model is
LlavaForConditionalGeneration, bit for bit.

Unusual: guidance is never kept in a module. It travels as an argument (`guidance_mask`) or, once
weights are generated, with the cache.

Dimensions: B samples, L positions, N images, D text width.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoModel
from transformers.models.llava.modeling_llava import LlavaForConditionalGeneration, LlavaModel

from .attention_hyperllava import AttentionChoice
from .carrier_hyperllava import get_carried
from .checkpoint_hyperllava import CheckpointFormat
from .compat_hyperllava import nest_vision_tower
from .configuration_hyperllava import HyperLlavaConfig
from .decoder_hyperllava import ExpertInitialization, HyperLlavaTextModel
from .experts_hyperllava import Expert
from .guidance_hyperllava import (
    build_prompt_mask,
    find_attended,
    prompt_before_labels,
    raise_if_packed,
    raise_if_shapes_differ,
)
from .image_rows_hyperllava import count_images, cut_candidates, find_placeholders
from .inspection_hyperllava import collect_expert_weights
from .lockstep_hyperllava import join_blank_image, trains_with_others
from .placement_hyperllava import complete_device_map
from .projector_hyperllava import HyperLlavaMultiModalProjector
from .quantization_hyperllava import protect_cpu_layers

# Loading a local folder, transformers 4.57 copies only the files that the entry file itself names,
# so every file of the closure is named here.
_REST_OF_CLOSURE = (Expert, complete_device_map, protect_cpu_layers)


def continues_cache(past_key_values: Any, length: int) -> bool:
    """Tell whether a call continues a filled cache or starts a new prompt.

    Args:
        past_key_values: Cache or None.
        length: L, positions of the call.

    Returns:
        bool: True if the cache holds positions.
    """
    if past_key_values is None:
        return False
    # A static cache keeps its length on the device. One new position after carried weights is a
    # decoding step, and reading the length there would stall every one of them.
    if get_carried(past_key_values) is not None and (length == 1 or torch.compiler.is_compiling()):
        return True
    seen = past_key_values.get_seq_length()
    if torch.compiler.is_compiling() and isinstance(seen, torch.Tensor):
        return False
    return int(seen) > 0


class HyperLlavaPreTrainedModel(ExpertInitialization, CheckpointFormat, AttentionChoice):
    """What the model with and without head share."""

    # What applies the experts: `hyperllava_hf.kernels.set_expert_impl` changes it, by instance.
    expert_impl = "eager"
    config_class = HyperLlavaConfig
    _no_split_modules = [
        "HyperLlavaDecoderLayer",
        "HyperLlavaMultiModalProjector",
        "CLIPEncoderLayer",
    ]

    @contextlib.contextmanager
    def disable_experts(self) -> Iterator[None]:
        """Be plain LLaVA for a moment: `with model.disable_experts(): ...`.

        Yields:
            None: Nothing.
        """
        switched = [
            module for module in self.modules() if getattr(module, "experts_enabled", False)
        ]
        for module in switched:
            module.experts_enabled = False
        try:
            yield
        finally:
            for module in switched:
                module.experts_enabled = True

    def expert_weights(self, position: int = -1, **inputs: Any) -> dict[str, dict[Any, Any]]:
        """Generate the experts of an input, to look at.

        Args:
            position: Which position's language experts to return under scope "token".
            **inputs: The call's arguments, as from the processor.

        Returns:
            dict[str, dict[Any, Any]]: `visual` by site ("first", "second") and `language` by block
                index; each a pair (W_d, W_u) of shapes (N or B, 2R, D_in) and (N or B, D_out, R),
                without the leading dimension where the weights do not depend on the input.
        """
        return collect_expert_weights(self, position, inputs)


class HyperLlavaModel(HyperLlavaPreTrainedModel, LlavaModel):
    """HyperLLaVA without a language modelling head.

    Args:
        config: Configuration.

    Raises:
        ValueError: If the configuration is invalid.
    """

    _auto_class = "AutoModel"
    is_headless = True

    def __init__(self, config: Any) -> None:
        # Fields may have been set after the configuration checked itself.
        config.raise_if_invalid()
        # LLaVA's own constructor would first build, and then drop, a plain decoder.
        super(LlavaModel, self).__init__(config)
        self.vision_tower = nest_vision_tower(AutoModel.from_config(config.vision_config))
        self.multi_modal_projector = HyperLlavaMultiModalProjector(config)
        self.language_model = HyperLlavaTextModel._from_config(
            config.text_config, hyperllava_config=config
        )
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        guidance_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Encode images, project them with the visual expert, merge, run the decoder.

        Args:
            input_ids: Token ids (B, L); exactly one of these and embeddings.
            pixel_values: Images (N, 3, height, width).
            attention_mask: 1 on attended positions (B, L), or a prepared mask.
            position_ids: Positions (1 or B, L).
            past_key_values: Cache; under scope "prompt" it carries the generated weights.
            inputs_embeds: Embeddings (B, L, D).
            guidance_mask: Scope "prompt": 1 on the prompt (B, L).
            **kwargs: As in `LlavaModel.forward`.

        Returns:
            Any: As `LlavaModel.forward`.

        Raises:
            ValueError: Under scope "prompt", if the call is packed, continues a cache that carries
                no weights, or gives `guidance_mask` beside a filled cache.
        """
        if self.guides_whole_samples:
            inputs = input_ids if input_ids is not None else inputs_embeds
            mask = self._find_prompt(
                inputs, attention_mask, position_ids, past_key_values, guidance_mask, kwargs
            )
            # Here and below a new dict: the compiler cannot trace LLaVA's image path after a
            # change to an old one.
            kwargs = {**kwargs, "guidance_mask": mask}
        has_images = pixel_values is not None or kwargs.get("mm_encoder_outputs")
        has_one_input = (input_ids is None) != (inputs_embeds is None)
        if has_one_input and not has_images and trains_with_others(self):
            if inputs_embeds is None:
                inputs_embeds, input_ids = self.get_input_embeddings()(input_ids), None
            inputs_embeds = join_blank_image(self, inputs_embeds)
        return super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )

    def get_placeholder_mask(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor,
        image_features: torch.Tensor,
    ) -> torch.Tensor:
        """Mark the image positions, and check that there are as many as features.

        The same as LLaVA's, but for a compiled or exported graph, in which 4.57's check is a
        branch on data.

        Args:
            input_ids: Token ids (B, L), or None where embeddings are given.
            inputs_embeds: Embeddings (B, L, D).
            image_features: Projected features (N * P, D).

        Returns:
            torch.Tensor: Mask (B, L, D), or (B, L, 1).
        """
        if not torch.compiler.is_compiling():
            return super().get_placeholder_mask(input_ids, inputs_embeds, image_features)
        mask = find_placeholders(self, inputs_embeds if input_ids is None else input_ids)
        torch._assert_async(
            mask.sum() * inputs_embeds.shape[-1] == image_features.numel(),
            "Image features and image tokens do not match.",
        )
        return mask.unsqueeze(-1).to(inputs_embeds.device)  # (B, L, 1)

    @property
    def guides_whole_samples(self) -> bool:
        """Whether calls are guided by whole samples just now: scope "prompt", experts on."""
        return self.language_model.guides_whole_samples and self.language_model.experts_enabled

    def _find_prompt(
        self,
        inputs: torch.Tensor | None,
        attention_mask: Any,
        position_ids: torch.Tensor | None,
        past_key_values: Any,
        guidance_mask: torch.Tensor | None,
        kwargs: dict[str, Any],
    ) -> torch.Tensor | None:
        if inputs is None:
            return None  # LLaVA says what is missing
        batch_size, length = inputs.shape[:2]
        attn_implementation = self.config.text_config._attn_implementation
        if continues_cache(past_key_values, length):
            raise_if_packed(attn_implementation, None, None, kwargs)
            self.check_continuation(past_key_values, guidance_mask)
            return None
        attended = find_attended(attention_mask, batch_size, length, inputs.device)
        known = attended if attended is not None else guidance_mask
        if guidance_mask is not None:
            raise_if_shapes_differ(guidance_mask, (batch_size, length))
        raise_if_packed(attn_implementation, position_ids, known, kwargs)
        pooling = self.config.language_guidance_pooling
        is_image = find_placeholders(self, inputs) if pooling == "text" else None
        return build_prompt_mask(guidance_mask, attended, is_image, pooling)

    def check_continuation(self, past_key_values: Any, guidance_mask: torch.Tensor | None) -> None:
        """Check that a filled cache, and nothing else, says what steers this conversation.

        Args:
            past_key_values: A filled cache.
            guidance_mask: What the caller gave.

        Raises:
            ValueError: If a mask was given too, or the cache carries no weights.
        """
        if guidance_mask is not None:
            raise ValueError(
                "Found guidance_mask beside a filled cache: under "
                "language_guidance_scope='prompt' a conversation's guidance is that of its first "
                "prompt, which the cache carries. Leave guidance_mask out, or start without a "
                "cache."
            )
        if get_carried(past_key_values) is None:
            raise ValueError(
                "Found a filled cache that carries no language expert weights, expected one that "
                "this model filled with its experts on (language_guidance_scope='prompt'). Run "
                "the prompt through the model again with an empty cache."
            )


class HyperLlavaForConditionalGeneration(HyperLlavaPreTrainedModel, LlavaForConditionalGeneration):
    """HyperLLaVA with its language modelling head.

    Args:
        config: Configuration.

    Raises:
        ValueError: If the configuration is invalid.
    """

    _auto_class = "AutoModelForImageTextToText"

    def __init__(self, config: Any) -> None:
        super(LlavaForConditionalGeneration, self).__init__(config)
        self.model = HyperLlavaModel(config)
        self.lm_head = nn.Linear(
            config.text_config.hidden_size, config.text_config.vocab_size, bias=False
        )
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        image_sizes: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        guidance_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the model and score the next tokens.

        Args:
            input_ids: Token ids (B, L); exactly one of these and embeddings.
            pixel_values: Images (N, 3, height, width).
            attention_mask: 1 on attended positions (B, L), or a prepared mask.
            position_ids: Positions (1 or B, L).
            past_key_values: Cache; under scope "prompt" it carries the generated weights.
            inputs_embeds: Embeddings (B, L, D).
            vision_feature_layer: Overrides the configuration's.
            vision_feature_select_strategy: Overrides the configuration's.
            labels: Labels (B, L), -100 where nothing is supervised. Under
                scope "prompt" the positions before the first supervised one are the prompt.
            logits_to_keep: Positions to score, 0 for all.
            image_sizes: As in LLaVA.
            mm_encoder_outputs: Encoded images (transformers 5).
            guidance_mask: Scope "prompt": 1 on the prompt (B, L).
            **kwargs: As in `LlavaForConditionalGeneration.forward`.

        Returns:
            Any: As `LlavaForConditionalGeneration.forward`.
        """
        if (
            guidance_mask is None
            and labels is not None
            and self.model.guides_whole_samples
            and not continues_cache(past_key_values, labels.shape[1])
        ):
            guidance_mask = prompt_before_labels(labels)
        given = {
            "vision_feature_layer": vision_feature_layer,
            "vision_feature_select_strategy": vision_feature_select_strategy,
            "image_sizes": image_sizes,
            "mm_encoder_outputs": mm_encoder_outputs,
            "guidance_mask": guidance_mask,
        }
        kwargs = {**kwargs, **{name: value for name, value in given.items() if value is not None}}
        return super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def generate(self, inputs: Any = None, generation_config: Any = None, **kwargs: Any) -> Any:
        """Generate answers.

        Args:
            inputs: As in `GenerationMixin.generate`.
            generation_config: As in `GenerationMixin.generate`.
            **kwargs: As in `GenerationMixin.generate`; `guidance_mask` marks the first prompt
                of a history under scope "prompt".

        Returns:
            Any: As `GenerationMixin.generate`.

        Raises:
            ValueError: If `prefill_chunk_size` is set under scope "prompt".
        """
        config = generation_config if generation_config is not None else self.generation_config
        chunk_size = kwargs.get("prefill_chunk_size", getattr(config, "prefill_chunk_size", None))
        if chunk_size is not None and self.model.guides_whole_samples:
            raise ValueError(
                f"Found prefill_chunk_size={chunk_size}: under language_guidance_scope='prompt' "
                "the whole prompt steers its experts, so it cannot be read in chunks. Leave "
                "prefill_chunk_size out, or use a checkpoint with "
                "language_guidance_scope='token'."
            )
        # An assistant is called again for each guess with what its first call was given; by then
        # its cache carries the weights.
        if getattr(config, "is_assistant", False) and get_carried(kwargs.get("past_key_values")):
            kwargs.pop("guidance_mask", None)
        return super().generate(inputs, generation_config, **kwargs)

    def _get_candidate_generator(self, *, model_kwargs: dict[str, Any], **kwargs: Any) -> Any:
        assistant_config = getattr(kwargs.get("assistant_model"), "config", None)
        retokenizes = kwargs.get("assistant_tokenizer") is not None
        if retokenizes or not getattr(assistant_config, "guides_whole_samples", False):
            # LLaVA as an assistant knows no such argument; other tokens have other positions.
            model_kwargs = {k: v for k, v in model_kwargs.items() if k != "guidance_mask"}
        generator = super()._get_candidate_generator(model_kwargs=model_kwargs, **kwargs)
        return cut_candidates(generator, self.config.image_token_id)

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.Tensor | None, dict[str, Any]]:
        # The one place that sees the prompt before any candidate token is appended to it.
        if self.model.guides_whole_samples:
            embeds = model_kwargs.get("inputs_embeds")
            prompt: Any = embeds if embeds is not None else input_ids
            cache, given = model_kwargs.get("past_key_values"), model_kwargs.get("guidance_mask")
            if continues_cache(cache, prompt.shape[1]):
                self.model.check_continuation(cache, given)
            elif given is not None:
                raise_if_shapes_differ(given, prompt.shape[:2])
            else:
                mask = model_kwargs.get("attention_mask")
                batch_size, length = prompt.shape[:2]
                model_kwargs["guidance_mask"] = find_attended(
                    mask, batch_size, length, prompt.device
                )
        # 5.x has encoded the images by now; 4.57 would repeat each image by itself, and so give
        # the copies of a row with several images the wrong ones.
        pixel_values = model_kwargs.pop("pixel_values", None) if expand_size > 1 else None
        if pixel_values is not None:
            has_ids = input_ids is not None and input_ids.numel() > 0
            prompt = input_ids if has_ids else model_kwargs["inputs_embeds"]
            counts = count_images(find_placeholders(self, prompt), pixel_values.shape[0])
        expanded_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size,
            is_encoder_decoder=is_encoder_decoder,
            input_ids=input_ids,
            **model_kwargs,
        )
        if pixel_values is not None:
            copies = [own.repeat(expand_size, 1, 1, 1) for own in pixel_values.split(counts)]
            model_kwargs["pixel_values"] = torch.cat(copies)
        return expanded_ids, model_kwargs

    def prepare_inputs_for_generation(
        self,
        input_ids: Any,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        guidance_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Prepare one step's inputs; the prompt is marked in the first step alone.

        `generate` takes `inputs_embeds` only where this signature names it.

        Args:
            input_ids: Tokens so far (B, L).
            past_key_values: Cache.
            inputs_embeds: Embeddings of the prompt (B, L, D).
            guidance_mask: 1 on the prompt (B, L of the prompt).
            **kwargs: As in `GenerationMixin.prepare_inputs_for_generation`.

        Returns:
            dict[str, Any]: Arguments of `forward`.
        """
        model_inputs = super().prepare_inputs_for_generation(
            input_ids, past_key_values=past_key_values, inputs_embeds=inputs_embeds, **kwargs
        )
        inputs = model_inputs.get("inputs_embeds")
        inputs = model_inputs["input_ids"] if inputs is None else inputs
        pixel_values = kwargs.get("pixel_values")
        is_left = pixel_values is not None and model_inputs.get("pixel_values") is None
        if is_left and inputs.ndim == 2 and inputs.shape[1] > 1:
            # 4.57 hands images on with an empty cache alone; a later turn may show new ones.
            shows = bool((inputs == self.config.image_token_id).any())
            model_inputs["pixel_values"] = pixel_values if shows else None
        is_first = not continues_cache(model_inputs.get("past_key_values"), inputs.shape[1])
        if guidance_mask is not None and self.model.guides_whole_samples and is_first:
            # Without a cache, or with candidates appended, the step is longer than the prompt.
            missing = inputs.shape[1] - guidance_mask.shape[1]
            model_inputs["guidance_mask"] = nn.functional.pad(guidance_mask, (0, missing))
        return model_inputs
