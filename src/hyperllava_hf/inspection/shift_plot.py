"""Each expert's shift as a picture."""

from importlib.util import find_spec
from pathlib import Path

from hyperllava_hf.inspection.expert_shifts import ExpertShift


def check_plot_target(path: Path) -> None:
    """Check that a picture can be drawn into a file, before anything slow is done for it.

    Args:
        path: the picture's file.

    Raises:
        ValueError: if its folder does not exist, it is no PNG, or matplotlib is missing.
    """
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path} does not end in .png; the picture is a PNG file")
    if not path.parent.is_dir():
        raise ValueError(f"found no folder {path.parent}; make it, or choose another place")
    if find_spec("matplotlib") is None:
        raise ValueError(
            "--plot needs matplotlib; install it with: pip install 'hyperllava-hf[plot]'"
        )


def save_shift_plot(shifts: list[ExpertShift], path: Path) -> None:
    """Draw one bar an expert, with the shares of image and text positions beside it.

    Args:
        shifts: what `measure_expert_shifts` returned.
        path: the PNG file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5.0, 1.0 + 0.6 * len(shifts)), 3.6), layout="constrained")
    axes = figure.subplots()
    places = range(len(shifts))
    bars = {"all positions": "ratio", "image": "image_ratio", "text": "text_ratio"}
    for number, (label, attribute) in enumerate(bars.items()):
        heights = [100 * (getattr(shift, attribute) or 0.0) for shift in shifts]
        axes.bar([place + 0.27 * (number - 1) for place in places], heights, 0.27, label=label)
    axes.set_xticks(places, [shift.expert for shift in shifts], rotation=45, ha="right")
    axes.set_ylabel("shift / output (%)")
    axes.set_title("Generated shift against the output it is added to", fontsize="medium")
    axes.legend(frameon=False)
    figure.savefig(path, format="png", dpi=150)
