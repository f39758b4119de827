"""Training ranks in step: a batch without images runs the vision part all the same.

Data-parallel ranks meet in collective operations: DDP when every parameter's gradient is there,
FSDP2 and ZeRO-3 also whenever a module's weights are gathered. A rank whose batch is text alone
would leave out the vision tower and the projector; DDP then stops at unused parameters, and the
sharded kinds wait for one another for ever. So it encodes one blank image, whose features go
nowhere: the embeddings keep every bit, and the gradients that the image adds are zero.

Dimensions: B samples, L positions, P patches, D text width.
"""

from typing import Any

import torch


def trains_with_others(module: Any) -> bool:
    """Tell whether a forward of this module is a training step that other ranks share.

    Args:
        module: The model.

    Returns:
        bool: False in evaluation, without gradients, and in a single process.
    """
    return (
        module.training
        and torch.is_grad_enabled()
        and torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def join_blank_image(model: Any, inputs_embeds: torch.Tensor) -> torch.Tensor:
    """Run the vision part on a blank image and join none of its features to the embeddings.

    One whole image rather than none, since attention kernels refuse an empty batch.

    Args:
        model: `HyperLlavaModel`.
        inputs_embeds: Embeddings of a batch without images (B, L, D).

    Returns:
        torch.Tensor: The same values (B, L, D), depending on every parameter that an image uses.
    """
    vision = model.config.vision_config
    edge = vision.image_size
    blank = inputs_embeds.new_zeros(1, vision.num_channels, edge, edge)
    outputs = model.get_image_features(blank)
    # 4.57 returns the features themselves, a tensor an image.
    features = getattr(outputs, "pooler_output", outputs)[0]  # (P, D)
    nowhere = torch.zeros_like(inputs_embeds, dtype=torch.bool)
    return inputs_embeds.masked_scatter(nowhere, features[:0].to(inputs_embeds.dtype))
