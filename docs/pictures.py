"""Draw the README's pictures with the bundled model: python docs/pictures.py

Prompt i has seed i, the grid seed 0; none was chosen.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

PROMPTS = (
    "a red circle on a blue background",
    "a yellow star on a black background",
    "a small green heart in the top left corner on a white background",
    "a large purple cross on an orange background",
    "a red circle and a blue square on a white background",
    "a white crescent on a purple background",
    "a green triangle above a yellow diamond on a black background",
    "three white stars on a red background",
    "four black hearts on a yellow background",
    "an orange square to the right of a blue circle on a white background",
)
GRID = ("--x", "prompt:red=red,green,blue", "--y", "cfg=1..3/3", "--z", "prompt:circle=circle,star")
SIDE, TEXT, COLUMNS = 160, 46, 5


def wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Break a text into lines of at most `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def main() -> None:
    font = ImageFont.load_default(size=12)
    rows = -(-len(PROMPTS) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * SIDE, rows * (SIDE + TEXT)), "white")
    draw = ImageDraw.Draw(sheet)
    with tempfile.TemporaryDirectory() as folder:
        for i, prompt in enumerate(PROMPTS):
            path = Path(folder) / f"{i}.png"
            command = ["generate", prompt, "--model", "demo", "--seed", str(i), "-o", str(path)]
            subprocess.run([sys.executable, "-m", "sdcli", *command], check=True, stdout=subprocess.DEVNULL)
            x, y = i % COLUMNS * SIDE, i // COLUMNS * (SIDE + TEXT)
            with Image.open(path) as image:
                sheet.paste(image, (x + (SIDE - image.width) // 2, y + 8))
            draw.multiline_text((x + 12, y + 142), wrapped(prompt, font, SIDE - 20), "black", font, spacing=2)
        command = [
            sys.executable,
            "-m",
            "sdcli",
            "grid",
            "a red circle on a white background",
            *GRID,
            "--seed",
            "0",
            "--model",
            "demo",
            "-o",
            f"{folder}/",
        ]
        drawn = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        shutil.copy(drawn.splitlines()[-1], Path(__file__).parent / "grid.png")
    sheet.save(Path(__file__).parent / "demo.png", optimize=True)


if __name__ == "__main__":
    main()
