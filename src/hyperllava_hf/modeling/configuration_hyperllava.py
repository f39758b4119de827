"""Configuration of HyperLLaVA: LLaVA's fields plus those of the experts (arXiv 2403.13447, Sec. 3).

No tensor library is imported here, so a configuration can be read, checked and written anywhere.
The two things that are unusual: a configuration is checked as a whole and reports every fault at
once, and the expert fields are always written to `config.json`, also where they equal the default,
so that a later change of a default never changes a checkpoint.
"""

from typing import Any

from transformers.models.llava.configuration_llava import LlavaConfig

# What makes a saved folder load as remote code, whichever transformers line wrote it.
AUTO_MAP = {
    "AutoConfig": "configuration_hyperllava.HyperLlavaConfig",
    "AutoModel": "modeling_hyperllava.HyperLlavaModel",
    "AutoModelForVision2Seq": "modeling_hyperllava.HyperLlavaForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_hyperllava.HyperLlavaForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_hyperllava.HyperLlavaForConditionalGeneration",
    "AutoProcessor": "processing_hyperllava.HyperLlavaProcessor",
    "AutoImageProcessor": "image_processing_hyperllava.HyperLlavaImageProcessor",
}

# Every expert field with its default (design choices m = 64 and r = 16 are the paper's Fig. 4).
EXPERT_FIELDS: dict[str, Any] = {
    "visual_expert": "first",
    "language_expert_layers": "posterior",
    "language_guidance_layer": None,
    "language_guidance_scope": "token",
    "language_guidance_pooling": "mean",
    "expert_input_dim": 64,
    "expert_hidden_dim": 16,
    "expert_source": "guided",
}

# LLaVA's fields of which features leave the vision tower, with its defaults.
VISION_FIELDS: dict[str, Any] = {
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}

# Fields that take one of a few names.
CHOICES = {
    "visual_expert": ("first", "second", "both", "none"),
    "language_guidance_scope": ("token", "prompt"),
    "language_guidance_pooling": ("mean", "text", "last"),
    "expert_source": ("guided", "latent", "static"),
    "vision_feature_select_strategy": ("default", "full"),
}
NAMED_BLOCKS = ("posterior", "anterior", "all", "none")


# What the names of expert fields begin with: a field of such a name that is not in EXPERT_FIELDS
# belongs to a version that this code does not know.
EXPERT_PREFIXES = ("expert_", "guidance_", "hyperllava_", "language_", "visual_")


# Sizes of LLaVA's parts, which 4.57 takes as they come.
COMMON = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
SIZES = {
    "text_config": (*COMMON, "num_key_value_heads", "vocab_size"),
    "vision_config": COMMON,
}


def is_count(value: Any) -> bool:
    """Tell whether `value` is an integer (a bool is not).

    Args:
        value: What a user wrote into a field.

    Returns:
        bool: True for an int that is not a bool.
    """
    return isinstance(value, int) and not isinstance(value, bool)


class HyperLlavaConfig(LlavaConfig):
    """Configuration of a HyperLLaVA model.

    Blocks of the decoder are numbered from 0; L is their number.

    Args:
        vision_config: CLIP vision tower, as in `LlavaConfig`.
        text_config: Llama decoder, as in `LlavaConfig`.
        visual_expert: Where the visual expert sits in the projector: "first" (Eq. 6, the
            paper's best), "second", "both" or "none" (Table 2).
        language_expert_layers: Blocks with a language expert: "posterior"
            (L // 2 .. L - 1, the paper's best), "anterior" (0 .. L // 2 - 1), "all", "none", or a
            list of block indices (Table 3); an empty list is "none".
        language_guidance_layer: k: the language guidance is the hidden state after k
            blocks, 1 <= k < L; None is L // 2 (Fig. 3). Where an expert block lies before k, all
            language experts take the merged input embeddings as guidance and k is unused.
        language_guidance_scope: "token": each position's guidance generates its own expert;
            "prompt": one expert a sample, generated from its prompt. The paper leaves this open.
        language_guidance_pooling: Under "prompt", how the prompt is pooled: "mean", "text"
            (without image positions) or "last" (its last position).
        expert_input_dim: m, width of the layer-specific code e(n) (Eq. 3).
        expert_hidden_dim: r, width of the expert's bottleneck (Eq. 5).
        expert_source: What generates the expert weights: "guided" (HyperLLaVA), "latent" (a
            learned code a layer, Table 5's Hypernetwork+Adapter) or "static" (a plain adapter).
        **kwargs: `LlavaConfig`'s remaining fields.

    Raises:
        ValueError: If any field is invalid; the message lists every fault.
    """

    model_type = "hyperllava"
    _auto_class = "AutoConfig"

    def __init__(
        self,
        vision_config: Any = None,
        text_config: Any = None,
        visual_expert: str = "first",
        language_expert_layers: str | list[int] = "posterior",
        language_guidance_layer: int | None = None,
        language_guidance_scope: str = "token",
        language_guidance_pooling: str = "mean",
        expert_input_dim: int = 64,
        expert_hidden_dim: int = 16,
        expert_source: str = "guided",
        **kwargs: Any,
    ) -> None:
        self.visual_expert = visual_expert
        self.language_expert_layers = language_expert_layers
        if isinstance(language_expert_layers, (list, tuple)):
            self.language_expert_layers = list(language_expert_layers) or "none"
        self.language_guidance_layer = language_guidance_layer
        self.language_guidance_scope = language_guidance_scope
        self.language_guidance_pooling = language_guidance_pooling
        self.expert_input_dim = expert_input_dim
        self.expert_hidden_dim = expert_hidden_dim
        self.expert_source = expert_source
        # LLaVA stops at a wrong value of these before we could name the other faults beside it.
        given = {name: kwargs.pop(name, default) for name, default in VISION_FIELDS.items()}
        super().__init__(
            vision_config=vision_config, text_config=text_config, **VISION_FIELDS, **kwargs
        )
        self.__dict__.update(given)
        self.raise_if_invalid()

    @property
    def num_blocks(self) -> int:
        """L, the number of decoder blocks."""
        return self.text_config.num_hidden_layers

    @property
    def guidance_layer(self) -> int:
        """k, the number of blocks below the language guidance, with None resolved to L // 2."""
        if self.language_guidance_layer is None:
            return max(1, self.num_blocks // 2)
        return self.language_guidance_layer

    @property
    def language_expert_blocks(self) -> list[int]:
        """Sorted indices of the decoder blocks that carry a language expert."""
        num_blocks, middle = self.num_blocks, self.num_blocks // 2
        if isinstance(self.language_expert_layers, list):
            return sorted(self.language_expert_layers)
        # Fig. 3 moves the guidance up; the experts then start where their guidance is known.
        posterior_start = max(middle, self.language_guidance_layer or 0)
        return {
            "posterior": list(range(posterior_start, num_blocks)),
            "anterior": list(range(middle)),
            "all": list(range(num_blocks)),
            "none": [],
        }[self.language_expert_layers]

    @property
    def guidance_from_embeddings(self) -> bool:
        """Whether the language guidance is the merged input embeddings (Table 3); k is unused."""
        blocks = self.language_expert_blocks
        return self.expert_source == "guided" and bool(blocks) and blocks[0] < self.guidance_layer

    @property
    def guides_whole_samples(self) -> bool:
        """Whether one language expert serves a whole sample (guided, scope "prompt")."""
        return (
            self.expert_source == "guided"
            and self.language_guidance_scope == "prompt"
            and bool(self.language_expert_blocks)
        )

    @property
    def num_vision_features(self) -> int:
        """D_v, the width of the features f_V that enter the projector."""
        several = not isinstance(self.vision_feature_layer, int)
        return self.vision_config.hidden_size * (len(self.vision_feature_layer) if several else 1)

    def raise_if_invalid(self) -> None:
        """Check all fields together.

        Raises:
            ValueError: If any field is invalid; the message lists every fault.
        """
        # What is checked afterwards computes with the sizes.
        faults = self._size_faults() or [
            *self._unknown_faults(),
            *self._choice_faults(),
            *self._block_faults(),
            *self._base_faults(),
        ]
        if faults:
            raise ValueError(
                "Invalid HyperLlavaConfig:\n" + "\n".join(f"- {fault}" for fault in faults)
            )

    def _size_faults(self) -> list[str]:
        return [
            f"{part}.{name}: found {value!r}, expected an integer of at least 1"
            for part, names in SIZES.items()
            for name in names
            if not (is_count(value := getattr(getattr(self, part), name, 1)) and value >= 1)
        ]

    def _unknown_faults(self) -> list[str]:
        unknown = [
            name
            for name in vars(self)
            if name.startswith(EXPERT_PREFIXES) and name not in EXPERT_FIELDS
        ]
        return [
            f"{name}: found a field of a newer version, expected {', '.join(EXPERT_FIELDS)}; "
            "update hyperllava_hf, or load with the code that lies beside the checkpoint"
            for name in sorted(unknown)
        ]

    def _choice_faults(self) -> list[str]:
        faults = [
            f"{name}: found {getattr(self, name)!r}, expected one of {', '.join(choices)}"
            for name, choices in CHOICES.items()
            if getattr(self, name) not in choices
        ]
        for name in ("expert_input_dim", "expert_hidden_dim"):
            value = getattr(self, name)
            if not is_count(value) or value < 1:
                faults.append(f"{name}: found {value!r}, expected an integer of at least 1")
        return faults

    def _block_faults(self) -> list[str]:
        faults = []
        num_blocks, k = self.num_blocks, self.language_guidance_layer
        if k is not None and not (is_count(k) and 1 <= k < num_blocks):
            faults.append(
                f"language_guidance_layer: found {k!r}, expected None or an integer from 1 to "
                f"{num_blocks - 1}, since the decoder has {num_blocks} blocks"
            )
        layers = self.language_expert_layers
        if isinstance(layers, list):
            wrong = [n for n in layers if not (is_count(n) and 0 <= n < num_blocks)]
            twice = sorted({n for n in layers if is_count(n) and layers.count(n) > 1})
            if wrong:
                faults.append(
                    f"language_expert_layers: found blocks {wrong!r}, expected indices from 0 to "
                    f"{num_blocks - 1}"
                )
            if twice:
                faults.append(
                    f"language_expert_layers: found {twice!r} more than once, expected each once"
                )
        elif layers not in NAMED_BLOCKS:
            faults.append(
                f"language_expert_layers: found {layers!r}, expected one of "
                f"{', '.join(NAMED_BLOCKS)} or a list of block indices"
            )
        return faults

    def _base_faults(self) -> list[str]:
        faults = []
        for name, expected in (("text_config", "llama"), ("vision_config", "clip_vision_model")):
            found = getattr(self, name).model_type
            if found != expected:
                faults.append(
                    f"{name}.model_type: found {found!r}, expected {expected!r}: experts attach "
                    "to the LLaVA-1.5 architecture"
                )
        depth = self.vision_config.num_hidden_layers
        layer = self.vision_feature_layer
        several = (
            [layer] if is_count(layer) else list(layer) if isinstance(layer, (list, tuple)) else []
        )
        if not several or any(not is_count(n) or not -depth - 1 <= n <= depth for n in several):
            faults.append(
                f"vision_feature_layer: found {layer!r}, expected an integer or a list of "
                f"integers from {-depth - 1} to {depth}, since the vision tower has {depth} layers"
            )
        return faults

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read `config.json`; a LLaVA's is taken as a HyperLLaVA's with default experts.

        Args:
            *args: As in `PretrainedConfig.get_config_dict`.
            **kwargs: As in `PretrainedConfig.get_config_dict`.

        Returns:
            tuple[dict[str, Any], dict[str, Any]]: The fields and the unused keywords.
        """
        config_dict, unused = super().get_config_dict(*args, **kwargs)
        if config_dict.get("model_type") == "llava":
            config_dict = {**config_dict, "model_type": cls.model_type}
            config_dict.pop("architectures", None)
            config_dict.pop("auto_map", None)
        return config_dict, unused

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a configuration; expert fields given by keyword win and are checked with the rest.

        Args:
            config_dict: Fields, as in `config.json`.
            **kwargs: Overrides and options, as in `PretrainedConfig.from_dict`.

        Returns:
            Any: The configuration, with the unused keywords if `return_unused_kwargs` is set.
        """
        given = {name: kwargs.pop(name) for name in EXPERT_FIELDS if name in kwargs}
        return super().from_dict({**config_dict, **given}, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, with the `auto_map` of a self-contained folder.

        Returns:
            dict[str, Any]: The fields as plain values.
        """
        return {**super().to_dict(), "auto_map": dict(AUTO_MAP)}

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what `config.json` states: what differs from default, and every expert field.

        Returns:
            dict[str, Any]: The fields as plain values.
        """
        experts = {name: getattr(self, name) for name in EXPERT_FIELDS}
        return {**super().to_diff_dict(), **experts, "auto_map": dict(AUTO_MAP)}
