"""Device maps: the HyperNetworks follow the blocks that they serve.

A block's own expert lies inside the block, so a device map that places the block places it. The
HyperNetworks are shared and lie beside the blocks, where a map that was written for LLaVA does not
reach; they go where most of their use is.
"""

import re
from typing import Any

# Expert module, the modules that it may follow: the last of those that a map names.
FOLLOWED = {
    "language_model.language_expert": r"language_model\.layers\.(\d+)",
    "multi_modal_projector.visual_expert": r"multi_modal_projector\.linear_(\d)",
}


def complete_device_map(device_map: Any, prefix: str) -> Any:
    """Place the HyperNetworks that an explicit device map leaves out.

    Args:
        device_map: What the user gave; anything but a dictionary is returned as it is.
        prefix: What stands before LLaVA's parts in module names: "model." or nothing.

    Returns:
        Any: A map that names every expert beside the parts that it follows.
    """
    if not isinstance(device_map, dict):
        return device_map
    completed = dict(device_map)
    for expert, pattern in FOLLOWED.items():
        name = prefix + expert
        if any(key == "" or f"{name}.".startswith(f"{key}.") for key in device_map):
            continue
        found = {
            int(match[1]): device
            for key, device in device_map.items()
            if (match := re.fullmatch(re.escape(prefix) + pattern, key))
        }
        if found:
            completed[name] = found[max(found)]
    return completed
