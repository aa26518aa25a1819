"""What other programs say of sdcli's pictures. Marker `outside`: Debian's are installed by `.ci/run`, PyPI's by the tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdcli import metadata
from tests.conftest import Sdcli

pytestmark = pytest.mark.outside

FORMATS = ("png", "jpg", "webp", "avif")
PROMPTS = ("a red circle on a blue background", "ein großer Stern – 星 ✨, (mit: allem)\nund einer zweiten Zeile")
NEGATIVE = "grey: all, of it"
DRAW = ("-m", "demo", "--steps", "2", "-s", "7", "--negative", NEGATIVE, "--scheduler", "DPM++ 2M Karras")
MADE_BY_AI = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def _run(*command: str) -> str:
    assert shutil.which(command[0]), f"{command[0]} is not installed"
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(params=FORMATS)
def pictures(sdcli: Sdcli, request: pytest.FixtureRequest) -> list[str]:
    """Return a picture for each prompt, in one format after the other."""
    done = sdcli("generate", *PROMPTS, *DRAW, "--format", request.param, "-o", "x/")
    assert done.code == 0, done.stderr
    return done.lines


@pytest.mark.parametrize("pictures", ["png"], indirect=True)
def test_pngcheck_finds_no_fault(pictures: list[str]) -> None:
    for picture in pictures:
        said = _run("pngcheck", "-v", picture)
        assert "No errors detected" in said
        # Before the pixels, where readers that stop at IDAT find them.
        for keyword in ("parameters", "sdcli", "XML:com.adobe.xmp"):
            assert said.index(f"keyword: {keyword}") < said.index("chunk IDAT")


def test_exiftool_reads_it_and_finds_no_fault(pictures: list[str]) -> None:
    for picture, prompt in zip(pictures, PROMPTS, strict=True):
        (read,) = json.loads(_run("exiftool", "-json", "-validate", "-warning", "-error", "-a", "-G1", "-all", picture))
        assert read["ExifTool:Validate"] == "OK" and not {"ExifTool:Warning", "ExifTool:Error"} & set(read)
        png = picture.endswith(".png")
        text = read["PNG:Parameters" if png else "ExifIFD:UserComment"]
        assert text.startswith(prompt)
        assert f"\nNegative prompt: {NEGATIVE}\nSteps: 2, Sampler: DPM++ 2M, Schedule type: Karras, " in text
        assert json.loads(read["PNG:Sdcli" if png else "XMP-sdcli:Record"])["request"]["prompt"] == prompt
        assert read["XMP-iptcExt:DigitalSourceType"] == MADE_BY_AI and read["XMP-iptcExt:AISystemUsed"] == "demo"
        assert read["XMP-xmp:CreatorTool"].startswith("sdcli ")


def test_exiftool_finds_no_fault_in_long_and_minimal_ones(sdcli: Sdcli) -> None:
    prompt = "a star ✨ " * 9000
    for format in FORMATS:
        done = sdcli("generate", prompt, *DRAW, "-o", f"long.{format}", "-q")
        done_too = sdcli("generate", prompt, *DRAW, "-o", f"minimal.{format}", "--metadata", "minimal", "-q")
        assert done.code == done_too.code == 0
        for name in ("long", "minimal"):
            (read,) = json.loads(
                _run("exiftool", "-json", "-b", "-validate", "-warning", "-G1", "-all", f"{name}.{format}")
            )
            assert read["ExifTool:Validate"] == "OK" and "ExifTool:Warning" not in read
            assert read["XMP-iptcExt:DigitalSourceType"] == MADE_BY_AI
            record = json.loads(read["PNG:Sdcli" if format == "png" else "XMP-sdcli:Record"])
            assert ("request" in record) == (name == "long")
            assert name == "minimal" or record["request"]["prompt"] == prompt


def test_exiv2_shows_the_xmp(pictures: list[str]) -> None:
    for picture in pictures:
        said = dict(line.split(None, 1) for line in _run("exiv2", "-PXkv", picture).splitlines())
        assert said["Xmp.iptcExt.DigitalSourceType"] == MADE_BY_AI
        assert said["Xmp.iptcExt.AISystemUsed"] == "demo" and len(said["Xmp.iptcExt.AISystemVersionUsed"]) == 64
        assert said["Xmp.xmp.CreatorTool"].startswith("sdcli ")


def test_the_record_outlives_other_programs_edits(pictures: list[str]) -> None:
    edits = [("exiftool", "-q", "-overwrite_original", "-XMP-dc:Title=a title")]
    if not pictures[0].endswith(".avif"):  # Which exiv2 cannot write.
        edits.append(
            ("exiv2", "-M", "set Xmp.dc.title another")
        )  # It makes an attribute of our property, with entities.
    for picture, prompt in zip(pictures, PROMPTS, strict=True):
        for edit in edits:
            _run(*edit, picture)
            record = metadata.read(Path(picture))
            assert record is not None and record.request.prompt == prompt


@pytest.mark.parametrize(
    ("format", "said"),
    [
        ("png", "PNG image data, 128 x 128, 8-bit/color RGB"), ("jpg", "JPEG image data, JFIF standard"),
        ("webp", "Web/P image"), ("avif", "AVIF Image"),
    ],
)  # fmt: skip
def test_file_knows_it_in_a_pipe(tmp_path: Path, format: str, said: str) -> None:
    assert shutil.which("file"), "file is not installed"
    command = f"{sys.executable} -m sdcli generate 'a star' -m demo --steps 2 --format {format} -o - | file -"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=tmp_path, check=True, timeout=120)
    assert said in done.stdout


# From PyPI

# Without what they depend on: sd-prompt-reader pins an old Pillow and brings a graphical interface.
READERS = ("piexif==1.1.3", "sd-parsers==0.6", "sd-prompt-reader==1.3.5")


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Install the readers in a folder of their own, and run a piece of Python with them that prints JSON about files."""
    folder = tmp_path_factory.mktemp("readers")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *READERS]
    subprocess.run(pip, check=True, timeout=300, stdout=subprocess.DEVNULL)

    def run(code: str, *paths: str) -> Any:
        whole = f"import json, sys\nfiles = sys.argv[1:]\n{code}\nprint(json.dumps([read(f) for f in files]))"
        done = subprocess.run(
            [sys.executable, "-c", whole, *paths], capture_output=True, text=True, timeout=120, check=False,
            env={**os.environ, "PYTHONPATH": str(folder)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


PIEXIF = """
import piexif, piexif.helper
from PIL import Image
def read(path):
    with Image.open(path) as image:
        values = piexif.load(image.info["exif"])["Exif"]
    return piexif.helper.UserComment.load(values[piexif.ExifIFD.UserComment])
"""

SD_PARSERS = """
from sd_parsers import ParserManager
def read(path):
    said = ParserManager().parse(path)
    (sampler,) = said.samplers
    return {
        "prompt": said.prompts[0].value, "negative": said.negative_prompts[0].value, "steps": sampler.parameters["steps"],
        "sampler": sampler.name, "seed": sampler.parameters["seed"], "size": said.metadata["Size"],
    }
"""

SD_PROMPT_READER = """
from sd_prompt_reader.image_data_reader import ImageDataReader
def read(path):
    said = ImageDataReader(path)
    parameters = {name: said.parameter[name] for name in ("steps", "sampler", "seed", "size")}
    return {"prompt": said.positive, "negative": said.negative, **parameters}
"""


@pytest.mark.parametrize("pictures", ["jpg", "webp", "avif"], indirect=True)
def test_piexif_reads_the_comment(pictures: list[str], reader: Callable[..., Any]) -> None:
    for text, prompt in zip(reader(PIEXIF, *pictures), PROMPTS, strict=True):
        assert text.startswith(f"{prompt}\nNegative prompt: {NEGATIVE}\nSteps: 2, ")


@pytest.mark.parametrize("code", [SD_PARSERS, SD_PROMPT_READER], ids=["sd-parsers", "sd-prompt-reader"])
@pytest.mark.parametrize("format", ["png", "jpg", "webp"])
def test_readers_of_pictures_read_it(sdcli: Sdcli, reader: Callable[..., Any], code: str, format: str) -> None:
    """They know no AVIF."""
    # sd-prompt-reader tries UTF-16 in the other byte order first, in which ß is half a sign, and gives up.
    prompts = [PROMPTS[0], PROMPTS[1] if code == SD_PARSERS else PROMPTS[1].replace("ß", "ö")]
    done = sdcli("generate", *prompts, *DRAW, "--format", format, "-o", "y/")
    assert done.code == 0, done.stderr
    rest = {"negative": NEGATIVE, "steps": "2", "sampler": "DPM++ 2M", "seed": "7", "size": "128x128"}
    assert reader(code, *done.lines) == [{"prompt": prompt, **rest} for prompt in prompts]
