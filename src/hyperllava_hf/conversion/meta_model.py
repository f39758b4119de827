"""What a model's tensors must be, and its fresh experts, without the memory of a model."""

import torch

from ..modeling import HyperLlavaConfig, HyperLlavaForConditionalGeneration
from ..modeling.experts_hyperllava import Expert, HyperNetwork, HyperNetworkHead


class MetaModel:
    """A model without values.

    Args:
        config: its configuration.
    """

    def __init__(self, config: HyperLlavaConfig) -> None:
        with torch.device("meta"):
            self.model = HyperLlavaForConditionalGeneration(config)
        self.is_tied = bool(config.text_config.tie_word_embeddings)

    def get_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor that a checkpoint must hold, by key."""
        shapes = {key: tuple(value.shape) for key, value in self.model.state_dict().items()}
        if self.is_tied:
            shapes.pop("lm_head.weight", None)
        return shapes

    def build_fresh_experts(self, dtype: torch.dtype, seed: int) -> dict[str, torch.Tensor]:
        """Initialise the experts so that they are the identity update.

        Args:
            dtype: dtype of the result; values are drawn in float32.
            seed: seed of the drawing.

        Returns:
            The experts' tensors by key.
        """
        experts = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name, module in self.model.named_modules():
                if not isinstance(module, (Expert, HyperNetwork, HyperNetworkHead)):
                    continue
                # One module at a time, without its children: a child has its own turn.
                own = dict(module.named_parameters(recurse=False))
                for key, value in own.items():
                    empty = torch.empty(value.shape, dtype=torch.float32)
                    module.register_parameter(key, torch.nn.Parameter(empty))
                module.init_weights()
                for key, value in own.items():
                    fresh = module.get_parameter(key).detach().to(dtype)
                    experts[f"{name}.{key}"] = fresh
                    module.register_parameter(key, value)
        return experts
