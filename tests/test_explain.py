"""`sdcli explain`: its numbers are those of the run, its picture is the one that is drawn without it, its page is inert."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
import random
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import sdcli as library
from sdcli import output, pipeline
from sdcli.cli.main import main
from sdcli.explain import explaining, pages
from sdcli.pipeline import observing
from sdcli.request import Adapter
from tests import browser
from tests.conftest import Sdcli, pixels
from tests.families import saved
from training import draw, judge

PROMPT = "a red star and a blue circle on a purple background"
COMMAND = [PROMPT, "-m", "demo", "-s", "3", "--steps", "4", "--dtype", "fp32"]
LORA = Path(__file__).parent / "adapters" / "green.safetensors"
HOSTILE = """<script>alert(1)</script>"><img src=x onerror=alert(2)>' $x$ {{ 7*7 }} \x1b[31m \u202egnp """ + "w" * 200
# What is not seen, or turns what is beside it round.
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_MADE: dict[str, Any] = {}


@dataclass(frozen=True)
class Run:
    """What a run left: its page, its folder of files, and its numbers."""

    page: Path
    assets: Path
    numbers: dict[str, Any]


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory, nobodys_settings: None, no_gpu: None) -> Run:
    """One run with the bundled model, for all tests that only look."""
    if "run" not in _MADE:
        folder = tmp_path_factory.mktemp("explained")
        page, assets = folder / "page.html", folder / "assets"
        assert main(["explain", *COMMAND, "-q", "-o", str(page), "--assets", str(assets)]) == 0
        _MADE["run"] = Run(page, assets, json.loads((assets / "explain.json").read_text("utf-8")))
    made: Run = _MADE["run"]
    return made


@pytest.fixture
def demo(nobodys_settings: None, no_gpu: None) -> pipeline.Pipeline:
    if "demo" not in _MADE:
        _MADE["demo"] = library.load("demo", library.DevicePlan(dtype="fp32"))
    loaded: pipeline.Pipeline = _MADE["demo"]
    return loaded


def asked(demo: pipeline.Pipeline, prompt: str = PROMPT, **values: Any) -> library.GenerationRequest:
    request = library.GenerationRequest(
        prompt=prompt, **{"seed": 3, "num_inference_steps": 4, "guidance_scale": 2.0, **values}
    )
    return pipeline.resolve(request, demo.model)


def observed(demo: pipeline.Pipeline, request: library.GenerationRequest) -> observing.Observed:
    return observing.observe(demo, request, lambda step: None)


# The picture stays what it is


def test_its_pictures_are_those_that_are_drawn_without_it(run: Run, sdcli: Sdcli) -> None:
    others = {
        "picture": (),
        "guidance-4": ("--cfg", "4"),
        "seed-4": ("-s", "4"),
    }
    for name, more in others.items():
        assert sdcli("generate", *COMMAND, *more, "-o", f"{name}.png").code == 0
        assert (pixels(f"{name}.png") == pixels(run.assets / f"{name}.png")).all(), name
    with Image.open(run.assets / "picture.png") as image:
        assert hashlib.sha256(image.tobytes()).hexdigest() == run.numbers["final"]["pixels"]


@pytest.mark.parametrize(
    "values",
    [
        {"scheduler": "euler"}, pytest.param({"scheduler": "euler-a"}, marks=pytest.mark.slow), {"scheduler": "heun"},
        pytest.param({"scheduler": "ddim"}, marks=pytest.mark.slow), pytest.param({"scheduler": "lms"}, marks=pytest.mark.slow),
        {"scheduler": "pndm"}, {"guidance_scale": 1.0}, {"guidance_scale": 6.0, "guidance_rescale": 0.7},
        {"prompt": f"{PROMPT}, " * 12}, {"prompt": "a [red:blue:0.5] star"},
        {"prompt": "a (red:1.4) star BREAK on blue", "negative_prompt": "a circle"},
        {"lora": (Adapter(name=str(LORA)),)},
    ],
    ids=lambda values: str(values)[:40],
)  # fmt: skip
def test_a_run_is_not_changed_by_being_observed(values: dict[str, Any], demo: pipeline.Pipeline) -> None:
    request = asked(demo, **values)
    (alone,) = demo.generate([request])
    seen = observed(demo, request)
    assert seen.generated.record.pixels.sha256 == alone.record.pixels.sha256
    assert [m.number for m in seen.moments] == list(range(1, len(seen.moments) + 1))
    assert len(seen.attention.steps) == len(seen.moments) >= 4
    for moment in seen.moments:
        assert moment.before is not None and moment.error < 1e-4
        assert (moment.prompted is not None) == (request.guidance_scale > 1)
        if moment.prompted is not None:
            assert observing.rms(moment.guided - moment.clean) < 1e-4
            plain = moment.unprompted + request.guidance_scale * (moment.prompted - moment.unprompted)
            assert (observing.rms(plain - moment.clean) < 1e-4) == (request.guidance_rescale == 0)
    read = observing.words(demo, request)
    shares = seen.attention.shares()
    assert shares.shape == (77 * seen_chunks(seen),) and abs(shares.sum() - 1) < 1e-5
    assert all(0 < shares[p] < 1 for word in read.words for p in word.positions)
    # The same numbers twice: from the maps, and from the shares.
    word = read.words[-1]
    assert seen.attention.map(word.positions, (64, 64)).mean() == pytest.approx(sum(shares[[*word.positions]]), rel=0.1)


def seen_chunks(seen: observing.Observed) -> int:
    return seen.generated.record.tokens.chunks


@pytest.mark.parametrize("values", [{}, {"lora": (Adapter(name=str(LORA)),)}], ids=["plain", "lora"])
def test_maps_are_what_the_layers_used(
    values: dict[str, Any], demo: pipeline.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers' older processor makes the matrices of attention itself: those are what is gathered."""
    from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

    made: list[Any] = []
    own = Attention.get_attention_scores

    def scores(self: Any, query: Any, key: Any, mask: Any = None) -> Any:
        found = own(self, query, key, mask)
        if key.shape[1] == 77:
            made.append(found[-self.heads :].mean(0).T)  # The half with the prompt comes last.
        return found

    monkeypatch.setattr(Attention, "get_attention_scores", scores)
    demo.pipe.unet.set_attn_processor(AttnProcessor())
    try:
        seen = observed(demo, asked(demo, num_inference_steps=2, **values))
    finally:
        demo.pipe.unet.set_attn_processor(AttnProcessor2_0())
    assert len(made) == 2 * 4
    for step, layers in zip(seen.attention.steps, (made[:4], made[4:]), strict=True):
        for (height, width), (total, count) in step.items():
            there = [one.reshape(77, height, width) for one in layers if one.shape[1] == height * width]
            assert len(there) == count and np.allclose(sum(there), total, atol=1e-5)


def test_words_of_several_tokens_are_whole(demo: pipeline.Pipeline) -> None:
    request = asked(demo, "a lighthouse, red star", num_inference_steps=1)
    observed(demo, request)
    read = observing.words(demo, request)
    assert [word.text for word in read.words] == ["a", "lighthouse", ",", "red", "star"]
    assert len(read.words[1].positions) > 1 and not read.words[2].speaks
    assert [p for word in read.words for p in word.positions] == list(range(1, len(read.chunks[0]) + 1))
    assert np.allclose(np.diag(read.similarity), 1, atol=1e-5) and np.allclose(read.similarity, read.similarity.T)


def test_it_starts_from_a_picture_and_puts_noise_on_another(run: Run, sdcli: Sdcli) -> None:
    draw.paint(draw.Scene(background="blue", things=())).resize((300, 200)).save("blue.png")
    start = ("--init-image", str(run.assets / "picture.png"), "--strength", "0.5")
    command = ["a [red:green:0.5] star on blue", *COMMAND[1:], *start]
    left = before_it(Path("a"))
    assert sdcli("generate", *command, "-o", "drawn.png").code == 0
    done = sdcli("explain", *command, "--image", "blue.png", "-o", "here/", "--assets", "a")
    assert done.code == 0, done.stderr
    assert done.lines == [f"here/{output.safe(command[0], 40)}-3.html"]
    assert (pixels("drawn.png") == pixels("a/picture.png")).all()
    shown = pixels("a/forward-picture.png")
    assert shown.shape == (128, 128, 3) and (abs(shown - draw.COLOURS["blue"]) < 3).all()

    # Of the four steps two are drawn: of those the prompt's words are a share.
    told = json.loads(Path("a/explain.json").read_text())
    assert [told["final"][name] for name in ("steps", "steps_drawn", "network_calls")] == [4, 2, 2]
    assert [s["number"] for s in told["backward"]["steps"]] == [1, 2]
    assert (told["words"]["until"], told["attention"]["steps"]) == (1, 1)
    text = plain_text(Path(done.lines[0]))
    assert "4 (2 drawn)" in text and "of step 1 of 2" in text and "until step 1, others follow" in text
    assert "pure noise" not in text and "begins with the picture of --init-image" in text
    assert "noise that is put on the picture of --init-image" in text
    assert "Of 4 steps the last 2 are drawn" in text and "asks the network" not in text

    # Of the run before all is gone that it names, and nothing else.
    there = {str(path.relative_to("a")) for path in Path("a").rglob("*") if path.is_file()}
    assert there == left | {*told["files"], "explain.json"} and "step-009-clean.png" not in there
    assert Path("outside.png").read_text() == "somebody's"


def before_it(folder: Path) -> set[str]:
    """Make a folder as a run before would have left it, and more; return what no run may take away."""
    kept = {"notes.txt", "other.png", "deep/step-001-clean.png"}
    for name in (*kept, "../outside.png", "picture.png", "step-009-clean.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("somebody's")
    names = ["picture.png", "step-009-clean.png", "../outside.png", "deep/step-001-clean.png", "notes.txt", "other.png"]
    names += ["deep", "/", "", "..", "step-008-clean.png"]
    told = {"schema": 1, "record": {"request": {"prompt": "\udc80"}}, "files": names}
    (folder / "explain.json").write_text(json.dumps(told))
    return kept


# The numbers


def test_forward_and_backward_hold_their_equations(run: Run) -> None:
    steps = run.numbers["backward"]["steps"]
    assert [s["number"] for s in steps] == [1, 2, 3, 4]
    assert all(s["error"] < 1e-4 for s in steps)
    assert [s["timestep"] for s in steps] == [s["timestep"] for s in run.numbers["schedule"]["steps"]]
    training = run.numbers["schedule"]["training"]
    assert len(training["sigma"]) == 1000
    for step in run.numbers["schedule"]["steps"]:
        assert step["signal"] ** 2 + step["sigma"] ** 2 == pytest.approx(1, abs=1e-5)
        assert step["sigma"] == pytest.approx(training["sigma"][round(step["timestep"])], abs=1e-4)
    assert sorted(s["sigma"] for s in steps) == [s["sigma"] for s in reversed(steps)]
    levels = run.numbers["forward"]["levels"]
    assert levels[-1]["timestep"] == 999
    for one in levels:
        square = (one["signal"] * one["rms_clean"]) ** 2 + (one["sigma"] * one["rms_noise"]) ** 2
        square += 2 * one["signal"] * one["sigma"] * one["mean_product"]
        assert one["rms"] ** 2 == pytest.approx(square, rel=1e-4)
        assert one["sigma"] == pytest.approx(training["sigma"][one["timestep"]], abs=1e-6)


def test_guidance_goes_further_the_same_way(run: Run) -> None:
    told = run.numbers["guidance"]
    assert told["scale"] == 2.0 and told["step"] in [s["number"] for s in told["steps"]]
    for step in told["steps"]:
        assert step["difference"] > 0.001 and step["error"] < 1e-4


def test_the_network_is_the_models(run: Run, demo: pipeline.Pipeline) -> None:
    from safetensors import safe_open

    folder, told = library.__path__[0] + "/demo", run.numbers["network"]

    def parameters(part: str, file: str, start: str = "") -> int:
        with safe_open(f"{folder}/{part}/{file}.safetensors", "np") as weights:
            return sum(math.prod(weights.get_slice(k).get_shape()) for k in weights.keys() if k.startswith(start))

    by_part = {part: 0 for part in ("text encoder", "U-Net", "autoencoder's decoder")}
    for block in told["blocks"]:
        by_part[block["part"]] += block["parameters"]
    assert by_part["U-Net"] == told["unet_parameters"] == parameters("unet", "diffusion_pytorch_model")
    assert by_part["text encoder"] == parameters("text_encoder", "model")
    assert by_part["autoencoder's decoder"] == parameters("vae", "diffusion_pytorch_model", "decoder.")
    assert sum(block["share_of_time"] for block in told["blocks"]) == pytest.approx(1)
    names = [block["name"] for block in told["blocks"] if block["part"] == "U-Net"]
    assert names[0] == "conv_in" and names.index("down_blocks.2") < names.index("mid_block") < names.index(
        "up_blocks.0"
    )
    assert {block["runs"] for block in told["blocks"] if block["part"] == "U-Net"} == {4}


def test_the_autoencoder_is_measured(run: Run) -> None:
    told = run.numbers["autoencoder"]
    assert (told["factor"], told["latent"], told["picture"]) == (48, [4, 16, 16], [128, 128, 3])
    before, after = (pixels(run.assets / f"autoencoder-{name}.png") for name in ("before", "after"))
    assert told["psnr"] == pytest.approx(10 * math.log10(255**2 / ((before - after) ** 2).mean()))
    assert told["largest_difference"] == abs(before - after).max()
    assert told["psnr"] > 20
    with Image.open(run.assets / "latent-4.png") as channel:
        assert channel.size == (192, 192)


def test_the_files_are_all_there(run: Run) -> None:
    files = {path.name for path in run.assets.iterdir()}
    words = [word["word"] for word in run.numbers["attention"]["words"]]
    assert words == PROMPT.split()
    expected = {"picture.png", "words.png", "schedule.png", "guidance.png", "network.png", "explain.json"}
    expected |= {f"step-{n:03}-{name}.png" for n in (1, 2, 3, 4) for name in ("noisy", "noise", "clean")}
    expected |= {f"attention-{n:02}.png" for n in range(1, 12)} | {f"seed-{n}.png" for n in (3, 4, 5, 6)}
    expected |= {f"guidance-{n}.png" for n in (1, 4, 8, 14)} | {
        f"attention-01-steps-{n:03}-{n:03}.png" for n in (1, 2, 3, 4)
    }
    assert expected <= files == {*run.numbers["files"], "explain.json"}
    assert all(explaining.PICTURE.fullmatch(name) for name in run.numbers["files"])
    for path in run.assets.glob("*.png"):
        with Image.open(path) as image:
            image.verify()
    shares = run.numbers["attention"]
    assert shares["share_of_words"] + shares["share_of_start"] + shares["share_of_rest"] == pytest.approx(1, abs=1e-5)
    assert (shares["layers"], shares["sizes"]) == (4, [[8, 8], [4, 4]])


# The page


class Page(HTMLParser):
    """What a browser would find on a page: elements with their attributes, and the text of some."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.texts: dict[str, str] = {}
        self.sections: dict[str | None, str] = {}
        self.section: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.inside.append(tag)
        if tag in ("section", "footer"):
            self.section = dict(attrs).get("id")

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.texts[self.inside[-1]] = self.texts.get(self.inside[-1], "") + data
            self.sections[self.section] = self.sections.get(self.section, "") + data

    def uris(self) -> Iterator[str]:
        for _, attributes in self.found:
            yield from (value for name in ("src", "srcset") if (value := attributes.get(name)))


def plain_text(page: Path) -> str:
    """Return what a page says in paragraphs and lists, in one line."""
    texts = Page(page.read_text("utf-8")).texts
    return " ".join(" ".join(texts.get(tag, "") for tag in ("p", "dd", "figcaption")).split())


def sections(page: str | Path) -> dict[str | None, str]:
    """Return what the parts of a page say, by their ids (None: its head), each in one line."""
    return {name: " ".join(text.split()) for name, text in Page(Path(page).read_text("utf-8")).sections.items()}


def check_inert(text: str) -> Page:
    """Refuse a page that has a part which its policy does not name, or which comes from anywhere."""
    assert not HIDDEN.search(text)
    page = Page(text)
    policy = next(a["content"] or "" for t, a in page.found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "http" not in policy
    for tag in ("style", "script"):
        assert [t for t, _ in page.found].count(tag) == 1
        digest = base64.b64encode(hashlib.sha256(page.texts[tag].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    for _, attributes in page.found:
        assert not any(name.startswith("on") or name == "style" for name in attributes), attributes
    assert all(uri.startswith("data:image/") for uri in page.uris())
    for uri in page.uris():
        if uri.startswith("data:image/svg+xml"):
            chart = ElementTree.fromstring(base64.b64decode(uri.partition(",")[2]))
            assert not [e for e in chart.iter() if e.tag.endswith(("script", "image", "foreignObject"))]
            assert not HIDDEN.search("".join(chart.itertext()))
            # Nothing long leaves the chart itself no room.
            assert all(len(e.text or "") < 60 for e in chart.iter() if e.tag.endswith("text"))
    for tag, attributes in page.found:
        assert tag != "img" or attributes.get("alt"), attributes
    return page


def test_a_page_needs_nothing_and_says_what_it_shows(run: Run) -> None:
    page = check_inert(run.page.read_text("utf-8"))
    assert page.texts["h1"] == PROMPT
    ids = [attributes.get("id") for _, attributes in page.found]
    figures = ["words", "schedule", "forward", "backward", "guidance", "attention", "autoencoder", "network", "seed"]
    assert [i for i in ids if i in figures] == figures
    papers = {
        a["href"] or "" for t, a in page.found if t == "a" and (a["href"] or "").startswith("https://arxiv.org/abs/")
    }
    assert len(papers) >= 7 and "https://arxiv.org/abs/2210.04885" in papers
    assert run.page.stat().st_size < 2_000_000


def test_a_hostile_prompt_is_text(sdcli: Sdcli) -> None:
    name = f"{output.safe(HOSTILE, 40)}-3"
    Path(f"{name}.html").write_text("somebody's")
    hostile = ("--negative", HOSTILE, "--long-prompt", "cut")
    done = sdcli("explain", HOSTILE, *hostile, "-m", "demo", "-s", "3", "--steps", "1", "--cfg", "1", "--json")
    assert done.code == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if not line.startswith(("loading", "warning: "))]
    (event,) = done.events
    assert set(event) == {"schema", "event", "path", "assets", "seconds", "pixels", "same"} and event["assets"] is None
    assert event["path"] == f"{name}-2.html" and not set('<>"\x1b/') & set(name)
    assert Path(f"{name}.html").read_text() == "somebody's"
    page = check_inert(Path(event["path"]).read_text("utf-8"))
    seen = HOSTILE.replace("\x1b", "\ufffd").replace("\u202e", "\ufffd")
    assert page.texts["h1"] == seen[:-201] + "…" and page.texts["title"].startswith(page.texts["h1"])
    assert page.texts["p"].count(seen) == 2 and "w" * 9 in page.texts["q"]
    assert "sdcli generate --dtype bf16 $'<script>" in page.texts["code"] and "\\x1b[31m" in page.texts["code"]
    assert "This run was not guided" in "".join(page.texts["p"])


def test_texts_on_a_page_are_seen_as_they_are() -> None:
    filled = pages.environment().from_string("{{ text }}{{ kept }}{% if text %} ok{% endif %}")
    family, known = "\U0001f469\u200d\U0001f680", "\u3000שלום é\u0301 星"
    said = filled.render(text="<b>\x00a\u202eb\ud800\u2066\ufeff\n\tc", kept=f"{family}{known}")
    assert said == f"&lt;b&gt;�a�b���  c{family}{known} ok"


def test_a_picture_that_is_there_is_explained(sdcli: Sdcli, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("deep").mkdir()
    drawn = ("-m", "demo", "-s", "5", "--scheduler", "euler", "--cfg", "1", "--steps", "2")
    assert sdcli("generate", "a red star", *drawn, "-o", "deep/dusk.png").code == 0
    done = sdcli("explain", "--from", "deep/dusk.png", "--assets", "a", "-o", "a.html", "--json")
    assert done.code == 0, done.stderr
    assert done.events[0]["same"] is True and (pixels("a/picture.png") == pixels("deep/dusk.png")).all()
    page, told = Page(Path("a.html").read_text("utf-8")), json.loads(Path("a/explain.json").read_text())
    assert page.texts["h1"] == "a red star" and "deep" not in page.sections[None]
    said = "Drawn again from dusk.png, pixel for pixel as its record says."
    assert said in sections("a.html")[None] and said in done.stderr and told["final"]["same"] is True
    (command,) = [page.texts["code"].partition("sdcli explain")[0]]
    name, *argv = shlex.split(command)
    assert name == "sdcli" and sdcli(*argv, "-o", "again.png").code == 0, command
    assert (pixels("again.png") == pixels("deep/dusk.png")).all()

    # What is typed counts before what the picture says.
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a blue circle\n")))
    done = sdcli("explain", "-", "--from", "deep/dusk.png", "--steps", "1", "-o", "b.html", "--json")
    assert done.code == 0 and done.events[0]["same"] is None, done.stderr
    text = sections("b.html")[None]
    assert "a blue circle" in text and "seed5" in text and "steps1, euler" in text
    said = "Drawn from what dusk.png says, with other settings."
    assert said in text and said in done.stderr

    # The same settings in another precision are other pixels, and why is said.
    assert sdcli("generate", "a star", *drawn, "--dtype", "fp32", "-o", "fine.png").code == 0
    done = sdcli("explain", "--from", "fine.png", "--dtype", "bf16", "-o", "e.html", "--json")
    assert done.code == 0 and done.events[0]["same"] is False, done.stderr
    said = "Drawn again from fine.png, but not with the pixels that its record says: it was drawn in fp32, and now in bf16."
    assert said in sections("e.html")[None] and said in done.stderr

    # Other programs' pictures don't say which pixels they had, nor does a line that isn't there.
    info = PngInfo()
    info.add_text("parameters", "a star\nSteps: 1, Sampler: Euler, CFG scale: 1, Seed: 7, Size: 128x128, Fancy: 3")
    Image.new("RGB", (8, 8)).save("foreign.png", pnginfo=info)
    done = sdcli("explain", "--from", "foreign.png", "-m", "demo", "-o", "c.html", "--json")
    assert done.code == 0 and done.events[0]["same"] is None, done.stderr
    said = "Drawn from what foreign.png says, which is not its pixels."
    assert said in sections("c.html")[None] and said in done.stderr and "Fancy: 3" in done.stderr

    # What it was drawn with, and can't be explained, is named, and can be left out.
    assert sdcli("generate", "a star", *drawn, "--upscale", "lanczos:2", "-o", "large.png").code == 0
    done = sdcli("explain", "--from", "large.png", "-o", "d.html")
    assert done.code == 2 and "upscale can't be explained" in done.stderr and "--set upscale= " in done.stderr
    done = sdcli("explain", "--from", "large.png", "--set", "upscale=", "--steps", "1", "-o", "d.html", "--json")
    assert done.code == 0 and done.events[0]["same"] is None, done.stderr
    assert sdcli("explain", "-m", "demo").code == 2


def test_a_page_without_words(sdcli: Sdcli) -> None:
    done = sdcli("explain", "", "-m", "demo", "-s", "3", "--steps", "1", "-o", "page.html")
    assert done.code == 0, done.stderr
    page, said = check_inert(Path("page.html").read_text("utf-8")), sections("page.html")
    assert page.texts["h1"] == "(no prompt)" and page.texts["title"] == "(no prompt) · explained"
    assert "0 tokens in 1 chunk." in said["words"] and "There were no words to look for" in said["attention"]
    assert "bright" not in said["attention"]
    # One is one.
    assert "Marks: the step of this run" in said["schedule"] and "its one step began at timestep" in said["schedule"]
    assert "over 1 step," in said["attention"] and "of step 1 of 1" in said["guidance"]
    assert not re.search(r"\b1 (steps|times|words|tokens|chunks)\b", " ".join(said.values()))
    assert "first step" not in said["guidance"] and not [tag for tag, _ in page.found if tag == "input"]


def test_a_page_with_many_words(sdcli: Sdcli, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = "красный 星 🌟 , " + "a (red:1.3) star, " * 60
    Image.new("RGB", (512, 64), "red").save("wide.png")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{prompt}\n".encode())))
    command = ("-m", "demo", "-s", "3", "--steps", "1", "--cfg", "1", "--image", "wide.png", "-o", "page.html")
    done = sdcli("explain", "-", *command, "--assets", "a")
    assert done.code == 0, done.stderr
    page, said = check_inert(Path("page.html").read_text("utf-8")), sections("page.html")
    assert 150 < len(page.texts["h1"]) <= 200 and prompt.startswith(page.texts["h1"][:-1])
    assert page.texts["p"].count(prompt.strip()) == 1
    assert "is spelled by its bytes" in said["words"] and "are no words and have no map: ,." in said["attention"]
    words = [word["word"] for word in json.loads(Path("a/explain.json").read_text())["attention"]["words"]]
    assert words[:5] == ["красный", "星", "🌟", "a", "red"] and len(words) == 24
    assert "It had 512 × 64 pixels: what was too much at two sides was cut off" in said["forward"]
    assert "Every figure below is of this run" in said[None] and "or of the picture of --image" in said[None]


def test_a_folder_that_cannot_be_listed(sdcli: Sdcli, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("closed").mkdir()
    listed = os.listdir

    def refusing(path: Any = ".") -> list[Any]:
        if os.fspath(path) == "closed":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "listdir", refusing)
    done = sdcli("explain", "a star", "-m", "demo", "--assets", "closed")
    assert done.code == 73 and "closed cannot be listed" in done.stderr and "--assets" in done.stderr


# Refusals, before torch is imported


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["-m", "flux-schnell"], 2, "Stable Diffusion 1.x, 2.x and XL"),
        (["-m", "lcm-dreamshaper"], 2, "lcm-dreamshaper"),
        (["-m", "demo", "--hires", "2x"], 2, "--hires"),
        (["-m", "demo", "--upscale", "2x"], 2, "--upscale"),
        (["-m", "demo", "-o", "page.png"], 2, "page.png"),
        (["-m", "demo", "-o", "file/page.html"], 73, "file is not a folder"),
        (["-m", "demo", "--assets", "file"], 73, "file is not a folder"),
        (["-m", "demo", "--assets", "full"], 73, "full is not empty"),
        (["-m", "demo", "--assets", "foreign"], 73, "foreign is not empty"),
        (["-m", "demo", "--assets", "broken"], 73, "broken is not empty"),
        (["-m", "demo", "--image", "none.png"], 66, "none.png"),
        (["-m", "demo", "--image", "file"], 65, "file"),
        (["-m", "demo", "--set", "hires=2x"], 2, "--set hires= "),
        (["-m", "demo", "--from", "file"], 65, "file"),
        (["-m", "demo", "--from", "none.png"], 66, "none.png"),
        (["-m", "demo", "--from", "-", "-i", "-"], 2, "stdin can be read once"),
    ],
)
def test_refusals(argv: list[str], code: int, said: str, sdcli: Sdcli) -> None:
    Path("file").write_text("no picture")
    for name, told in (("full", None), ("foreign", '{"schema": 1, "files": ["x.png"]}'), ("broken", "[" * 100_000)):
        Path(name).mkdir()
        Path(name, "x.png").write_text("somebody's")
        if told is not None:
            Path(name, "explain.json").write_text(told)
    done = sdcli("explain", "a star", *argv)
    assert (done.code, done.stdout) == (code, b"") and said in done.stderr, done.stderr
    assert "loading" not in done.stderr
    assert len([*Path().glob("*/x.png")]) == 3


@pytest.mark.parametrize("library", ["jinja2", "matplotlib"])
def test_without_its_libraries_it_says_what_to_install(
    library: str, sdcli: Sdcli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, library, None)
    done = sdcli("explain", "a star", "-m", "demo", "--steps", "1")
    assert done.code == 2 and library in done.stderr and "sdcli[show]" in done.stderr
    assert "loading" not in done.stderr


def test_a_run_before_gives_way_and_nothing_of_anybody_else(sdcli: Sdcli) -> None:
    """The page may lie among its figures; what was put there, or put in a figure's place, is somebody's own."""
    command = ("explain", "a star", "-m", "demo", "-s", "1", "--assets", "a", "-o", "a/page.html", "--steps")
    assert sdcli(*command, "2").code == 0 and Path("a/step-002-clean.png").exists()
    assert sdcli(*command, "1").code == 0 and not Path("a/step-002-clean.png").exists()
    for name in ("step-001-clean.png", "seed-7.png"):
        Path("a", name).write_bytes(b"mine")
        done = sdcli(*command, "1")
        assert done.code == 73 and f"a/{name} is not as `sdcli explain` left it" in done.stderr
        assert "loading" not in done.stderr and Path("a", name).read_bytes() == b"mine"
        Path("a", name).unlink()
    assert sdcli(*command, "1").code == 0 and Path("a/step-001-clean.png").exists()


# Other models


@pytest.mark.parametrize(
    "name", ["StableDiffusionXLPipeline", pytest.param("StableDiffusionPipeline 2", marks=pytest.mark.slow)]
)
def test_other_models(name: str, sdcli: Sdcli, tmp_path: Path) -> None:
    folder = saved(name, tmp_path / "model")
    command = ["a red circle", "-m", str(folder), "--size", "64x64", "--steps", "2", "--dtype", "fp32", "-s", "7"]
    # Heun's method asks the network twice in all steps but the last.
    command += ["--scheduler", "heun", "--set", "guidance_rescale=0.7"]
    assert sdcli("generate", *command, "-o", "one.png").code == 0
    done = sdcli("explain", *command, "-o", "page.html", "--assets", "a")
    assert done.code == 0, done.stderr
    assert (pixels("one.png") == pixels("a/picture.png")).all()
    told = json.loads(Path("a/explain.json").read_text())
    assert [s["number"] for s in told["backward"]["steps"]] == [1, 2, 3]
    assert [told["final"][name] for name in ("steps", "steps_drawn", "network_calls")] == [2, 2, 3]
    assert all(s["error"] < 1e-4 for s in told["backward"]["steps"])
    assert told["guidance"]["rescale"] == 0.7
    assert all(s["error"] < 1e-3 and 0 < s["factor"] < 1 for s in told["guidance"]["steps"])
    text = plain_text(Path("page.html"))
    assert "of step 1 of 3" in text and "asks the network 3 times for 2 steps" in text and "pure noise" in text
    assert "at the same timestep" in text and "the 3 times that the network was asked" in text
    first = told["schedule"]["steps"][0]
    assert f"1.0000 and sigma {first['sigma']:.4f} at timestep 999 are the {first['signal_share']:.3f} and" in text
    # A model's folder is its owner's to know.
    assert "does not say where that lies: add --model" in text and str(folder) not in Path("page.html").read_text()
    assert "by 0.7 of the way" in text and f"times {told['guidance']['steps'][0]['factor']:.3f}" in text
    assert "https://arxiv.org/abs/2305.08891" in Path("page.html").read_text("utf-8")
    assert told["words"]["width"] == {"StableDiffusionXLPipeline": 32}.get(name, 1024)
    assert sum(b["share_of_time"] for b in told["network"]["blocks"]) == pytest.approx(1)
    assert ("second text encoder" in {b["part"] for b in told["network"]["blocks"]}) == ("XL" in name)
    check_inert(Path("page.html").read_text("utf-8"))


# What attention means


@pytest.mark.slow
def test_attention_lies_on_what_words_mean(demo: pipeline.Pipeline, table: Any) -> None:
    """On 40 prompts, with seeds that nobody chose: a shape's word is looked for in the shape, and not in the other one."""
    inside: list[float] = []
    prefers: list[bool] = []
    wrong = 0
    for name, count in (("one thing, seen triples", 20), ("two things", 20)):
        for seed, want in enumerate(judge.ROWS[name].asks(count)):
            prompt = draw.say(want, random.Random(0), plain=True)
            request = asked(demo, prompt, seed=seed, num_inference_steps=25)
            seen = observed(demo, request)
            image = seen.generated.image
            if not judge.judge(want, image).right:
                wrong += 1  # There is no shape to look into.
                continue
            words = {word.text: word for word in observing.words(demo, request).words}
            found = {thing.shape: thing for thing in judge.look(image).things}
            masks = {s: judge._fill(str(s), t.x, t.y, t.r, image.size) for s, t in found.items()}
            for shape, mask in masks.items():
                looked = seen.attention.map(words[str(shape)].positions, image.size)
                inside.append(float(looked[mask].sum() / looked.sum() / mask.mean()))
                if len(masks) == 2:
                    (other,) = (m for s, m in masks.items() if s != shape)
                    prefers.append(bool(looked[mask].mean() > looked[other].mean()))
    row = {
        "prompts": 40, "judged wrong": wrong, "share inside / share of area": f"{np.mean(inside):.2f}",
        "least": f"{min(inside):.2f}", "most": f"{max(inside):.2f}",
        "prefers its own": f"{sum(prefers)} of {len(prefers)}",
    }  # fmt: skip
    table("attention", {k: str(v) for k, v in row.items()})
    assert wrong <= 6
    assert np.mean(inside) >= 2 and np.mean(prefers) >= 0.8


# In a browser


@pytest.mark.outside
def test_the_page_in_a_browser(run: Run) -> None:
    with browser.chromium() as chromium:
        for width, dark in ((1280, False), (1280, True), (390, False), (390, True)):
            with browser.opened(chromium, run.page, width=width, dark=dark) as (page, heard):
                assert page.locator(".frame:visible").count() == 1
                assert page.locator("#said").inner_text() == "1 of 4"
                page.locator("#step").focus()
                page.keyboard.press("ArrowRight")
                assert page.locator(".frame:visible").get_attribute("data-step") == "2"
                page.keyboard.press("End")
                assert page.locator(".frame:visible").get_attribute("data-step") == "4"
                assert page.locator("#step").get_attribute("aria-valuetext") == "step 4 of 4"
                box = page.locator("#step").bounding_box()
                assert box is not None
                press = page.touchscreen.tap if width < 600 else page.mouse.click
                press(box["x"] + box["width"] * 0.37, box["y"] + box["height"] / 2)
                assert page.locator(".frame:visible").get_attribute("data-step") == "2"
                # All of a chart is seen.
                assert page.locator("#schedule .chart").evaluate("e => e.scrollWidth <= e.clientWidth")
                # Nothing makes the page itself wider than its window, and every picture is one.
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
                assert page.evaluate("[...document.images].filter(i => !(i.complete && i.naturalWidth)).length") == 0
                assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") is dark
                shown = page.evaluate("document.querySelector('.chart img').currentSrc")
                source = page.locator(".chart source").first.get_attribute("srcset")
                assert (shown == source) is dark
                assert heard.asked[0].startswith("file:")


@pytest.mark.outside
def test_without_scripts_all_steps_are_there(run: Run) -> None:
    with browser.chromium() as chromium:
        context = chromium.new_context(java_script_enabled=False)
        page = context.new_page()
        page.goto(run.page.as_uri())
        assert page.locator(".frame:visible").count() == 4
        assert page.locator("#step:visible").count() == 0
        context.close()


@pytest.mark.outside
def test_a_hostile_prompt_does_nothing_in_a_browser(sdcli: Sdcli) -> None:
    done = sdcli("explain", HOSTILE, "-m", "demo", "-s", "3", "--steps", "1", "-o", "page.html")
    assert done.code == 0, done.stderr
    with browser.chromium() as chromium, browser.opened(chromium, Path("page.html"), width=390) as (page, heard):
        assert "<script>alert(1)</script>" in page.locator("h1").inner_text()
        assert heard.dialogs == [] and page.locator("h1 img").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
