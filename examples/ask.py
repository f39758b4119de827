"""Ask the bundled checkpoint about the pictures of this folder; `make demo` runs this.

The model is loaded as from any repository with remote code; "(as drawn)" is what the picture shows.
"""

import json
import time
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import AutoProcessor

# transformers 5 has dropped this name; on 4.57 it is transformers' own.
from hyperllava_hf import AutoModelForVision2Seq

HERE = Path(__file__).parent
CHECKPOINT = HERE.parent / "src" / "hyperllava_hf" / "hyperllava-digits"
QUESTIONS = (
    "Describe the image.",
    "How many digits are there?",
    "Is there a 7 in the image?",
    "What digit is in the top left?",
)
PICTURE_COLUMNS = 32


def draw(image: Image.Image) -> Text:
    """Draw a picture in the terminal: two pixels a character, in 24-bit colour."""
    rows = PICTURE_COLUMNS * image.height // image.width // 2 * 2
    pixels = image.resize((PICTURE_COLUMNS, rows))
    picture = Text()
    for y in range(0, rows, 2):
        for x in range(PICTURE_COLUMNS):
            top, bottom = (pixels.getpixel((x, y + dy)) for dy in (0, 1))
            style = "#{:02x}{:02x}{:02x} on #{:02x}{:02x}{:02x}".format(*top, *bottom)
            picture.append("\N{UPPER HALF BLOCK}", style=style)
        picture.append("\n")
    return picture


def ask(model, processor, image: Image.Image, question: str) -> str:
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    tokens = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    answer = tokens[0, inputs["input_ids"].shape[1] :]
    return processor.decode(answer, skip_special_tokens=True).strip()


def main() -> None:
    console = Console(highlight=False)
    start = time.perf_counter()
    model = AutoModelForVision2Seq.from_pretrained(CHECKPOINT, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(CHECKPOINT, trust_remote_code=True)
    console.print(
        f"{type(model).__name__}, {model.num_parameters():,} parameters, loaded from "
        f"{CHECKPOINT.name} in {time.perf_counter() - start:.1f} s"
    )
    drawn = json.loads((HERE / "scenes.json").read_text(encoding="utf-8"))
    for path in sorted(HERE.glob("*.png")):
        image = Image.open(path).convert("RGB")
        console.rule(f"examples/{path.name}", align="left")
        # Without colours the drawing would be one grey square.
        if console.color_system in ("256", "truecolor"):
            console.print(draw(image))
        rows = Table.grid(padding=(0, 3))
        for question in QUESTIONS:
            rows.add_row(question, Text(ask(model, processor, image, question), style="bold"))
        rows.add_row("(as drawn)", drawn[path.name]["description"], style="dim")
        console.print(rows)


if __name__ == "__main__":
    main()
