"""LLaVA-1.5's image preprocessing on Pillow and NumPy, identical on every transformers line.

The original rule, step by step: convert to RGB; pad to a centred square with the colour
int(255 x CLIP mean); resize with Pillow's bicubic filter; divide by 255; subtract CLIP's mean and
divide by its standard deviation, in float32. With `do_pad=False` the rule is CLIP's own, which
LLaVA used in its first training stage: resize the shortest edge, cut the centre.

transformers' own LLaVA and CLIP image processors pick a torchvision or a Pillow backend by what is
installed, and their pixels differ. This class has no backend to pick, so the pixels are the same
everywhere.
"""

from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.utils import logging

from .image_arrays_hyperllava import flatten_images
from .image_geometry_hyperllava import pad_to_square_and_resize, resize_shortest_edge_and_crop
from .image_loading_hyperllava import load_rgb_image
from .image_settings_hyperllava import (
    AUTO_MAP,
    CLIP_MEAN,
    CLIP_STD,
    METADATA,
    SETTINGS,
    as_crop_size,
    as_filter,
    as_numbers,
    as_size,
    check_settings,
)

logger = logging.get_logger(__name__)


class HyperLlavaImageProcessor(BaseImageProcessor):
    """Prepare images for a HyperLLaVA or LLaVA-1.5 vision tower.

    Args:
        do_resize: Whether to resize; without it every image must already have the size of
            `crop_size`.
        size: Edge in pixels after resizing: an int, {"shortest_edge": n} or {"height": n, "width":
            m}.
        resample: Pillow's filter number; 3 is bicubic.
        do_center_crop: Whether to cut the centre to `crop_size` (of no effect on padded images).
        crop_size: Size of what the vision tower sees: an int or {"height": n, "width": m}; None
            takes `size`.
        do_pad: Whether to pad to a centred square first (LLaVA-1.5). False gives CLIP's resize and
            crop.
        do_rescale: Whether to multiply by `rescale_factor`.
        rescale_factor: Factor that brings 0..255 to 0..1.
        do_normalize: Whether to subtract `image_mean` and divide by `image_std`.
        image_mean: Mean per channel; int(255 x mean) is also the colour of the padding.
        image_std: Standard deviation per channel.
        do_convert_rgb: Kept for readers of the configuration; images are always converted to RGB.
        **kwargs: Metadata that transformers writes into configuration files, which is ignored.

    Raises:
        TypeError: If a keyword is neither a setting nor metadata.
        ValueError: If the settings contradict each other.
    """

    model_input_names = ["pixel_values"]
    _auto_class = "AutoImageProcessor"

    def __init__(
        self,
        do_resize: bool = True,
        size: int | dict[str, int] | None = None,
        resample: int = 3,
        do_center_crop: bool = True,
        crop_size: int | dict[str, int] | None = None,
        do_pad: bool = True,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: tuple[float, ...] | list[float] = CLIP_MEAN,
        image_std: tuple[float, ...] | list[float] = CLIP_STD,
        do_convert_rgb: bool = True,
        **kwargs: Any,
    ) -> None:
        unknown = sorted(key for key in kwargs if key not in METADATA and not key.startswith("_"))
        if unknown:
            raise TypeError(
                f"HyperLlavaImageProcessor got {', '.join(unknown)}, which are no settings. Known "
                f"settings: {', '.join(SETTINGS)}."
            )
        super().__init__()
        self.do_resize = do_resize
        self.size = as_size(336 if size is None else size, "size", "shortest_edge")
        self.resample = as_filter(resample)
        self.do_center_crop = do_center_crop
        self.crop_size = as_crop_size(crop_size, self.size)
        self.do_pad = do_pad
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_normalize = do_normalize
        self.image_mean = as_numbers(image_mean)
        self.image_std = as_numbers(image_std)
        self.do_convert_rgb = do_convert_rgb
        check_settings(self._settings())

    def preprocess(
        self,
        images: Any,
        return_tensors: str | None = None,
        input_data_format: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare one image or a flat or nested list of images.

        Args:
            images: Whatever `load_rgb_image` accepts, or lists of it; nested lists are flattened in
                order.
            return_tensors: "pt" or "np"; None returns a list of arrays.
            input_data_format: "channels_first" or "channels_last" for arrays of ambiguous shape.
            **kwargs: Settings that replace the processor's own for this call.

        Returns:
            `pixel_values` of shape (images, 3, height, width), float32.

        Raises:
            ValueError: If an image cannot be read; the message names its place in the list.
        """
        settings = self._settings(kwargs)
        flat = flatten_images(images)
        pixel_values = []
        for index, source in enumerate(flat):
            try:
                image = load_rgb_image(source, input_data_format)
            except ValueError as error:
                where = f"image {index}: " if len(flat) > 1 else ""
                raise ValueError(f"{where}{error}") from error
            pixel_values.append(_normalize(_fit(image, settings, index), settings))
        data = {
            "pixel_values": np.stack(pixel_values)
            if return_tensors and pixel_values
            else pixel_values
        }
        return BatchFeature(data=data, tensor_type=return_tensors)

    def output_size(self, **kwargs: Any) -> tuple[int, int]:
        """Compute the height and width of the prepared images.

        Args:
            **kwargs: Settings that replace the processor's own.

        Returns:
            Height and width in pixels, the same for every image.
        """
        crop = self._settings(kwargs)["crop_size"]
        return crop["height"], crop["width"]

    def _settings(self, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
        """Merge settings of one call into the processor's own; unknown keywords are said once."""
        settings = {name: getattr(self, name) for name in SETTINGS}
        changed = {name: value for name, value in (overrides or {}).items() if value is not None}
        ignored = sorted(set(changed) - set(SETTINGS))
        if ignored:
            logger.warning_once(f"HyperLlavaImageProcessor ignores {', '.join(ignored)}.")
        settings.update({name: changed[name] for name in changed if name in SETTINGS})
        if "size" in changed:
            settings["size"] = as_size(changed["size"], "size", "shortest_edge")
        if "size" in changed or "crop_size" in changed:
            settings["crop_size"] = as_crop_size(changed.get("crop_size"), settings["size"])
        if changed:
            check_settings(settings)
        return settings

    def to_dict(self) -> dict[str, Any]:
        """Serialise the settings, with the same keys whichever transformers line writes them.

        Returns:
            The settings, the class name and the map of auto classes.
        """
        # A map read from the Hub names its repository; what is written always means the files
        # beside it.
        values = {name: getattr(self, name) for name in SETTINGS}
        return {
            **values,
            "auto_map": dict(AUTO_MAP),
            "image_processor_type": "HyperLlavaImageProcessor",
        }

    @classmethod
    def from_dict(
        cls, image_processor_dict: dict[str, Any], **kwargs: Any
    ) -> "HyperLlavaImageProcessor | tuple[HyperLlavaImageProcessor, dict[str, Any]]":
        """Build from a configuration, also from a CLIP or LLaVA one.

        Args:
            image_processor_dict: Contents of a preprocessor_config.json.
            **kwargs: Settings that replace those of the file, and `return_unused_kwargs`.

        Returns:
            The image processor; with `return_unused_kwargs` also the keywords that are no settings.
        """
        want_unused = kwargs.pop("return_unused_kwargs", False)
        chosen = {name: kwargs.pop(name) for name in SETTINGS if name in kwargs}
        values = {name: value for name, value in image_processor_dict.items() if name in SETTINGS}
        if "size" in chosen and "crop_size" not in chosen:
            values.pop("crop_size", None)
        source = image_processor_dict.get("image_processor_type")
        if source != "HyperLlavaImageProcessor" and "do_pad" not in {**values, **chosen}:
            logger.warning_once(
                f"The configuration of {source} does not say how to treat images that are not "
                "square; they are padded to a square, as LLaVA-1.5 was trained. Pass do_pad=False "
                "to cut the centre instead."
            )
        values = {name: value for name, value in {**values, **chosen}.items() if value is not None}
        image_processor = cls(**values)
        return (image_processor, kwargs) if want_unused else image_processor


def _fit(image: Image.Image, settings: dict[str, Any], index: int) -> Image.Image:
    """Bring an RGB image to the output size."""
    size, crop, resample = settings["size"], settings["crop_size"], settings["resample"]
    height, width = crop["height"], crop["width"]
    if not settings["do_resize"]:
        if image.size != (width, height):
            raise ValueError(
                f"image {index} is {image.size[0]} x {image.size[1]}, but do_resize is off and the "
                f"vision tower expects {width} x {height}. Resize it, or leave do_resize on."
            )
        return image
    if settings["do_pad"]:
        red, green, blue = (int(255 * value) for value in settings["image_mean"])
        edge = size.get("shortest_edge") or size["height"]
        image = pad_to_square_and_resize(image, edge, (red, green, blue), resample)
        return (
            resize_shortest_edge_and_crop(image, edge, height, width, resample)
            if edge != height
            else image
        )
    if "shortest_edge" in size:
        return resize_shortest_edge_and_crop(image, size["shortest_edge"], height, width, resample)
    image = image.resize((size["width"], size["height"]), resample=resample)
    left, top = (image.size[0] - width) // 2, (image.size[1] - height) // 2
    return image.crop((left, top, left + width, top + height))


def _normalize(image: Image.Image, settings: dict[str, Any]) -> np.ndarray:
    """Rescale and normalise through a table of the 256 possible values of each channel.

    The order of operations and of roundings is transformers': scale in float64, round to float32,
    then subtract and divide in float32.
    """
    values = np.arange(256, dtype=np.float64)
    if settings["do_rescale"]:
        values = values * settings["rescale_factor"]
    table = np.repeat(values.astype(np.float32)[None], 3, axis=0)  # (channels, 256)
    if settings["do_normalize"]:
        mean = np.asarray(settings["image_mean"], dtype=np.float32)[:, None]
        table = (table - mean) / np.asarray(settings["image_std"], dtype=np.float32)[:, None]
    pixels = np.asarray(image)  # (height, width, channels)
    return np.stack([table[channel][pixels[..., channel]] for channel in range(3)])
