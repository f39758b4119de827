"""Say which image belongs to which prompt, and name both when one cannot be read."""

from typing import Any

from PIL import Image

from .image_arrays_hyperllava import flatten_images
from .image_loading_hyperllava import load_rgb_image


def assign_images(images: Any, marks: list[int] | None) -> list[list[Any]]:
    """Group images by prompt.

    Args:
        images: None, one image, a flat list in the order of the marks, or one list (or None) a
            prompt.
        marks: Image marks in each prompt; None puts all images into one group.

    Returns:
        The images of each prompt. A flat list that does not fit the marks leaves the difference in
        the last group, for the check that follows to report.

    Raises:
        ValueError: If there is one list a prompt, but not as many lists as prompts, or a flat list
            of the wrong length.
    """
    if marks is None or len(marks) == 1:
        return [flatten_images(images)]
    if images is None:
        return [[] for _ in marks]
    is_nested = isinstance(images, (list, tuple)) and any(
        item is None or isinstance(item, (list, tuple)) for item in images
    )
    if is_nested:
        if len(images) != len(marks):
            raise ValueError(
                f"found {len(images)} lists of images for {len(marks)} prompts, expected one list "
                "a prompt. Use [] for a prompt without an image."
            )
        return [flatten_images(group) for group in images]
    flat = flatten_images(images)
    if len(flat) != sum(marks):
        raise ValueError(
            f"found {len(flat)} images for {sum(marks)} image marks in {len(marks)} prompts (marks "
            f"a prompt: {marks}), expected one image a mark. Pass one list of images a prompt to "
            "see which prompt is wrong."
        )
    rest = iter(flat)
    return [[next(rest) for _ in range(count)] for count in marks]


def collect_images(found: list[list[Any]], images: Any, is_batch: bool) -> Any:
    """Take the images of the conversations, or those passed beside them.

    Args:
        found: Images inside each conversation.
        images: Images passed as an argument of the call.
        is_batch: Whether a batch of conversations was given.

    Returns:
        What `assign_images` takes.

    Raises:
        ValueError: If there are images in both places.
    """
    if images is None:
        return found if any(found) else None
    if any(found):
        raise ValueError(
            "images are given both inside the conversation and as images=...; expected one. Leave "
            "out images=..., or reduce the parts to {'type': 'image'}."
        )
    return images if is_batch else [flatten_images(images)]


def load_images(groups: list[list[Any]], settings: dict[str, Any]) -> list[Image.Image]:
    """Load the images of a batch of prompts.

    Args:
        groups: Images of each prompt.
        settings: Settings of the call; `input_data_format` is taken out and used here.

    Returns:
        RGB images in order.

    Raises:
        ValueError: If an image cannot be read; names its sample and its place in it.
    """
    layout = settings.pop("input_data_format", None)
    loaded = []
    for sample, group in enumerate(groups):
        for index, source in enumerate(group):
            try:
                loaded.append(load_rgb_image(source, layout))
            except ValueError as error:
                raise ValueError(f"sample {sample}, image {index}: {error}") from error
    return loaded
