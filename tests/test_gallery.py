"""`sdcli gallery`: what is on the page, and what the page does in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote_to_bytes

import msgspec
import pytest
from PIL import Image

from sdcli import metadata
from sdcli.errors import NotFinite, OutOfMemory, SdcliError
from sdcli.explain import commands
from sdcli.explain.columns import MOST_COLUMNS, Columns
from sdcli.jobs import events, journal
from sdcli.record import ModelRecord, TokenRecord, pixels_of
from sdcli.request import Adapter, File, Hires, Outpaint, Upscale, Variation
from tests.browser import chromium, opened
from tests.conftest import Sdcli
from tests.test_again import a1111
from tests.test_metadata import record

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

TAKEN = (
    "Object.defineProperty(navigator, 'clipboard', { value: { writeText: async (text) => { window.taken = text } } })"
)
DEMO = ModelRecord(name="demo", family="stable-diffusion")
HOSTILE = (
    "<script>window.hit = 1</script>",
    '"><img src=x onerror="window.hit = 1">',
    "</script><script>window.hit = 1</script><!--",
    "{{ 7 * 7 }} {% raw %} &lt;b&gt; \u2028\u2029 javascript:window.hit=1",
)


def put(
    path: Path | str,
    prompt: str = "a red circle",
    colour: tuple[int, int, int] = (200, 30, 30),
    size: tuple[int, int] = (24, 16),
    **changes: Any,
) -> Path:
    """Write a small picture of one colour with a record; `changes` are those of `record`, but for the scheduler: a name."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, colour)
    scheduler = changes.pop("scheduler", None)
    made = record(prompt, **{"model": DEMO, "pixels": pixels_of(image), "width": size[0], "height": size[1]} | changes)
    if scheduler is not None:
        ran = msgspec.structs.replace(made.scheduler, name=scheduler)
        asked = msgspec.structs.replace(made.request, scheduler=scheduler)
        made = msgspec.structs.replace(made, scheduler=ran, request=asked)
    path.write_bytes(metadata.encoded(image, made, path.suffix[1:], "full").data)
    return path


class Parts(HTMLParser):
    """A page's elements with their attributes, and the texts of its scripts and styles."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page.read_text("utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] in ("script", "style"):
            self.texts[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.elements.append((f"/{tag}", {}))


def told(page: Path) -> dict[str, Any]:
    """Return the data that a page's script gets."""
    _, data, _ = Parts(page).texts
    loaded: dict[str, Any] = json.loads(data)
    return loaded


def field(data: dict[str, Any], name: str) -> list[Any]:
    """Return a field's value in each picture, None where it has none, a list where a field can have several."""
    (column,) = [c for c in data["columns"] if c["name"] == name]
    rows, values = len(data["pictures"]["url"]), column["values"]
    if "per" in column:
        return values * rows if column["per"] == "folder" else values
    return [[values[i] for i in at] if isinstance(at, list) else None if at < 0 else values[at] for at in column["at"]]


def gallery(sdcli: Sdcli, folder: str = "pictures", *options: str) -> dict[str, Any]:
    done = sdcli("gallery", folder, *options)
    assert done.code == 0, done.stderr
    return told(Path(done.lines[0]))


# What is on the page


def test_a_page_has_what_pictures_say(sdcli: Sdcli, tmp_path: Path) -> None:
    put("pictures/a.png", "a star", seed=2**63 - 1, tags={"set": "one"}, lora=(Adapter(name="ink", scale=0.7),))
    put("pictures/inside/b.jpg", "a heart", negative_prompt="text")
    a1111(tmp_path / "pictures" / "c.png")
    Image.new("RGB", (40, 30)).save("pictures/d.webp")
    done = sdcli("gallery", "pictures")
    assert (done.code, done.lines) == (0, ["pictures/gallery.html"]) and "4 pictures" in done.stderr
    data = told(Path("pictures/gallery.html"))
    assert data["pictures"]["url"] == ["a.png", "c.png", "d.webp", "inside/b.jpg"]
    assert field(data, "prompt") == ["a star", "a red circle on a blue background", None, "a heart"]
    # As a text: a number of JavaScript's would be another one.
    assert field(data, "seed") == [str(2**63 - 1), 11, None, 7]
    assert field(data, "made by") == ["sdcli", "a1111", None, "sdcli"]
    assert field(data, "size") == ["24x16", "8x8", "40x30", "24x16"]
    assert field(data, "lora") == [["ink"], [], [], []] and field(data, "lora.scale")[0] == ["ink: 0.7"]
    assert field(data, "tags.set")[0] == "one" and field(data, "negative_prompt")[3] == "text"
    assert field(data, "other")[1] == ["ENSD: 31337"]
    for url in data["pictures"]["thumb"]:
        with Image.open(Path("pictures") / url) as thumbnail:
            assert thumbnail.format == "WEBP" and max(thumbnail.size) <= 320
    assert field(data, "clip_skip") == [None, 1, None, None]


def test_the_policy_lets_its_own_script_and_style_run_and_nothing_else(sdcli: Sdcli, tmp_path: Path) -> None:
    put("pictures/a.png")
    gallery(sdcli)
    parts = Parts(tmp_path / "pictures/gallery.html")
    (policy,) = [a["content"] for _, a in parts.elements if a.get("http-equiv") == "Content-Security-Policy"]
    style, _, script = parts.texts
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    assert policy is not None
    assert {f"style-src 'sha256-{digests[0]}'", f"script-src 'sha256-{digests[1]}'"} <= set(policy.split("; "))
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    for tag, attributes in parts.elements:
        assert not [a for a in attributes if a.startswith("on") or a == "style"], tag
        assert not (
            tag in ("script", "img", "iframe", "link")
            and re.match("https?:|//", attributes.get("src") or attributes.get("href") or "")
        )
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|fetch\(|https?://", script
    )


def test_hostile_texts_are_data(sdcli: Sdcli, tmp_path: Path) -> None:
    folder = "<b>&\"'"
    for number, text in enumerate(HOSTILE):
        put(f"{folder}/{number}.png", text, negative_prompt=text, tags={text: text})
    data = gallery(sdcli, folder)
    assert field(data, "prompt") == list(HOSTILE)
    parts = Parts(tmp_path / folder / "gallery.html")
    assert [tag for tag, _ in parts.elements].count("script") == 2
    assert not [tag for tag, _ in parts.elements if tag in ("b", "img")]
    # Nothing that HTML, or a line of JavaScript, could end at.
    assert not set(parts.texts[1]) & set("<>&\u2028\u2029")


NAMES = (
    "it's \"quoted\".png", "hash#question?percent%20.png", "new\nline.png", "-dash.png", "ünï 星 ✨.png", "a:b.png",
    "back\\slash.png",
    "$(touch hit) `touch hit` $HOME.png", "e\x1b[201~s\x07c\x9b.png", "bytes-\udcff\udcfe.png", "rtl-\u202egnp.png",
)  # fmt: skip


def test_any_name_works(sdcli: Sdcli, tmp_path: Path) -> None:
    image = put("made.png").read_bytes()
    for name in NAMES:
        (tmp_path / "pictures").mkdir(exist_ok=True)
        (tmp_path / "pictures" / name).write_bytes(image)
    data = gallery(sdcli, "pictures", "-o", "pages/p.html")
    found = {os.fsdecode(unquote_to_bytes(url)) for url in data["pictures"]["url"]}
    assert found == {f"../pictures/{name}" for name in NAMES}
    for url, line in zip(data["pictures"]["url"], data["pictures"]["from"], strict=True):
        assert re.fullmatch(r"[A-Za-z0-9_./~%-]+", url)
        # No byte of it steers a terminal that it is pasted into.
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", line)
        assert shell(line) == [b"sdcli", b"generate", b"--from", unquote_to_bytes(url)]
    assert not list(tmp_path.rglob("hit"))
    assert len({os.stat(tmp_path / "pages" / url).st_ino for url in data["pictures"]["thumb"]}) == len(NAMES)


def shell(line: str) -> list[bytes]:
    """Return the words that a shell makes of a line."""
    said = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True, timeout=60, env={"LC_ALL": "C.UTF-8"}
    )
    return said.stdout.split(b"\0")[:-1]


@pytest.mark.parametrize(
    "word",
    ["", "a b", "it's", "\x1b]0;x\x07", "\x1bab", "a'\\b\x01", "\x7f\n9", "é\u202eF", "\U0001f469\u200d\U0001f680"],
)
def test_words_survive_the_shell(word: str) -> None:
    assert shell(commands.quoted(word)) == [word.encode()]


# A picture is drawn again by its commands


REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "texts": {"prompt": "it's \"a star\", $HOME\n`x` 星", "negative_prompt": "-- 'text'"},
    "dash": {"prompt": "--seed 3", "negative_prompt": "-n"},
    "numbers": {"seed": 2**40, "num_inference_steps": 25, "guidance_scale": 7.5, "width": 256, "height": 128, "clip_skip": 1},
    "unguided": {"guidance_scale": 1.0, "scheduler": "ddim", "eta": 0.0},
    "eta": {"scheduler": "ddim", "eta": 0.5, "guidance_rescale": 0.25},
    "words": {"prompt_syntax": "compel", "long_prompt": "error"},
    "after": {"variation": Variation(seed=9, strength=0.25), "hires": Hires(factor=1.5, strength=0.75)},
    "larger": {"upscale": Upscale(name="lanczos", factor=3)},
    "outpaint": {"outpaint": Outpaint(left=16, top=8)},
    "variation that is nothing": {"variation": Variation(seed=9, strength=0.0)},
}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
def test_commands_give_the_same_request(
    sdcli: Sdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    changes = {
        "width": 128,
        "height": 128,
        "scheduler": "dpm++2m",
        "num_inference_steps": 8,
        "guidance_scale": 2.0,
    } | REQUESTS[name]
    if "outpaint" in changes:
        start = put("pictures/inside/start it's.png")
        named = File(name=start.name, sha256=hashlib.sha256(start.read_bytes()).hexdigest())
        changes |= {"init_image": named, "strength": 0.5, "width": 40, "height": 24}
    used = TokenRecord(used=5, chunks=1, syntax=changes.get("prompt_syntax") or "a1111")
    prompt = changes.pop("prompt", "a red circle")
    put("pictures/inside/it's.png", prompt, tokens=used, **changes)
    data = gallery(sdcli)
    at = data["pictures"]["url"].index("inside/it%27s.png")
    monkeypatch.chdir(tmp_path / "pictures")
    requests = []
    for kind in ("from", "full"):
        program, *argv = shlex.split(data["pictures"][kind][at])
        assert program == "sdcli"
        dashes = argv.index("--") if "--" in argv else len(argv)
        done = sdcli(*argv[:dashes], "--dry-run", "--json", *argv[dashes:])
        assert done.code == 0, done.stderr
        (plan,) = done.events
        requests.append({**plan["request"], "model": plan["model"]["name"], "id": plan["id"]})
    assert requests[0] == requests[1]
    assert requests[0]["prompt"] == prompt and requests[0]["model"] == "demo"
    assert requests[0]["seed"] == changes.get("seed", 7)


def test_a_command_says_what_is_not_as_it_is_anyway(sdcli: Sdcli, tmp_path: Path) -> None:
    put(
        "pictures/a.png",
        "a star",
        guidance_scale=2.0,
        num_inference_steps=25,
        width=None,
        height=None,
        tokens=TokenRecord(used=3, chunks=1, syntax="a1111"),
    )
    put("pictures/b.png", model=ModelRecord(name="mine.safetensors", family="stable-diffusion"))
    put("pictures/c.png", "-")
    a1111(tmp_path / "pictures" / "d.png")
    Image.new("RGB", (8, 8)).save("pictures/e.png")
    shown = gallery(sdcli)["pictures"]
    assert shown["full"][0] == "sdcli generate 'a star' --model demo --seed 7 --steps 25 --guidance-scale 2.0"
    assert "mine.safetensors" in shown["note"][1] and "--model" not in shown["full"][1]
    assert shown["full"][2] is None and shown["from"][2] == "sdcli generate --from c.png"
    assert shown["full"][3] == (
        "sdcli generate 'a red circle on a blue background' --size 128x128 --negative-prompt green --seed 11 --steps 2 "
        "--guidance-scale 3.0 --scheduler euler-a --clip-skip 1"
    )
    assert "dreamshaper" in shown["note"][3]
    assert [shown[kind][4] for kind in ("from", "full", "note")] == [None, None, None]


def test_adapters_are_written_as_they_are_typed() -> None:
    from sdcli.metadata.inspecting import Found
    from sdcli.options import options_of
    from sdcli.request import GenerationRequest
    from sdcli.settings import merge

    said: dict[str, Any] = {
        "prompt": "a star",
        "lora": [{"name": "ink", "scale": 0.5, "sha256": "0" * 64}, {"name": "a:1", "scale": 1.0}],
        "embedding": [{"name": "word.safetensors", "scale": 1.0, "token": "<w>"}],
        "controlnet": [{"name": "org/canny", "scale": 0.75, "image": {"name": "edges.png", "sha256": "0" * 64}}],
        "upscale": {"name": "swin", "sha256": "0" * 64},
    }
    found = Found(path="x/y.png", format="other", request=said, model=None, unmapped={}, raw={})
    line = commands.in_full(found, "x/y.png")
    assert line is not None
    assert " --set 'lora=[{" in line and "--controlnet org/canny=edges.png:0.75" in line
    words = shlex.split(line)[3:]
    fields = {f: o for o in options_of(GenerationRequest) for f in o.flags}
    typed: dict[str, Any] = {}
    for flag, value in zip(words[::2], words[1::2], strict=True):
        if flag == "--set":
            typed |= [value.split("=", 1)]
            continue
        option = fields[flag]
        typed[option.field] = [*typed.get(option.field, []), value] if option.many else value
    request = merge(("flag", typed)).build(GenerationRequest, prompt="a star")
    assert [(a.name, a.scale) for a in request.lora] == [("ink", 0.5), ("a:1", 1.0)]
    assert request.embedding == (Adapter(name="word.safetensors", token="<w>"),)
    assert request.controlnet == (Adapter(name="org/canny", scale=0.75, image="edges.png"),)
    assert request.upscale == Upscale(name="swin")


# What has failed, and what can't be read


def failed(error: SdcliError, id: str | None, line: int) -> dict[str, Any]:
    error.id, error.line = id, line
    return events.error(error)


def test_failures_of_a_batch_are_listed(sdcli: Sdcli, tmp_path: Path) -> None:
    picture = put("pictures/inside/a.png")
    index = journal.Index()
    book = journal.Journal(picture.parent, index)
    book.begin(seed=1, batch_size=1)
    ids = [c * 64 for c in "abc"]
    book.write(failed(OutOfMemory("<b>too large</b>", "make it smaller"), ids[0], 3))
    book.write(failed(NotFinite("values were not finite"), ids[1], 4))
    drawn = {**failed(NotFinite("x"), ids[1], 4), "event": "image", "path": str(picture), "pixels": "0" * 64}
    book.write(drawn)
    book.write(failed(OutOfMemory("again"), ids[2], 5))
    book.write(failed(OutOfMemory("once more"), ids[2], 5))
    book.close()
    with book.path.open("a") as file:
        file.write('{"schema": 1, "event": "error", "id": "tor')
    data = gallery(sdcli)
    assert [(f["code"], f["message"], f["hint"], f["line"]) for f in data["failures"]] == [
        ("out-of-memory", "<b>too large</b>", "make it smaller", 3),
        ("out-of-memory", "once more", None, 5),
    ]
    assert {f["journal"] for f in data["failures"]} == {"inside/sdcli-batch.jsonl"}
    assert all(f["time"].startswith("20") for f in data["failures"])
    picture.unlink()
    done = sdcli("gallery", "pictures", "--json")
    (event,) = done.events
    assert done.code == 0 and event.pop("seconds") >= 0
    assert event == {
        "schema": 1, "event": "gallery", "path": "pictures/gallery.html", "pictures": 0, "failures": 2, "unreadable": 0,
    }  # fmt: skip


def test_what_cannot_be_read_is_listed_and_never_fatal(sdcli: Sdcli, tmp_path: Path) -> None:
    whole = put("pictures/a.png").read_bytes()
    Path("pictures/cut.png").write_bytes(whole[: len(whole) // 2])
    Path("pictures/text.jpg").write_text("no picture")
    Path("pictures/newer.png").write_bytes(whole.replace(b'{"schema":1', b'{"schema":9'))
    os.mkfifo("pictures/pipe.png")
    # A picture whose texts are sound and whose pixels are not: it is shown, without a thumbnail.
    at = whole.index(b"IDAT")
    Path("pictures/pixels.png").write_bytes(whole[: at + 6] + bytes(4) + whole[at + 10 :])
    data = gallery(sdcli)
    listed = {one["path"]: one["code"] for one in data["unreadable"]}
    assert {"cut.png", "text.jpg", "newer.png"} <= set(listed) and set(listed.values()) == {"bad-input"}
    assert "a.png" in data["pictures"]["url"]
    assert len(listed) + len(data["pictures"]["url"]) == 5
    if "pixels.png" in data["pictures"]["url"]:
        assert data["pictures"]["thumb"][data["pictures"]["url"].index("pixels.png")] is None


def test_a_page_does_not_name_the_folder_of_its_maker(sdcli: Sdcli, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    put(folder / "a.png")
    (folder / "broken.png").write_text("no picture")
    book = journal.Journal(folder, journal.Index())
    book.begin(seed=1, batch_size=1)
    book.write(failed(OutOfMemory(f"{folder}/x.png was too much", f"look into {folder}/inside"), "a" * 64, 3))
    book.close()
    data = gallery(sdcli, str(folder))
    assert str(tmp_path) not in (folder / "gallery.html").read_text("utf-8")
    assert data["unreadable"][0]["path"] == "broken.png" and data["failures"][0]["message"] == "x.png was too much"


def test_the_heading_is_the_folders_name(sdcli: Sdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put("pictures/inside/a.png")
    monkeypatch.chdir(tmp_path / "pictures" / "inside")
    for asked, name in (("..", "pictures"), (".", "inside"), ("../inside/..", "pictures"), ("../inside", "inside")):
        assert sdcli("gallery", asked, "-o", "page.html").code == 0
        assert f"<h1>{name}</h1>" in Path("page.html").read_text("utf-8")


def test_fields_of_what_was_asked_come_first(sdcli: Sdcli, tmp_path: Path) -> None:
    put("pictures/a.png", tags={"set": "one"}, scheduler="ddim")
    a1111(tmp_path / "pictures" / "b.png")
    columns = gallery(sdcli)["columns"]
    names = {made: [c["name"] for c in columns if c["made"] is made] for made in (False, True)}
    assert [c["name"] for c in columns] == names[False] + names[True]
    assert {"prompt", "seed", "scheduler", "size", "model", "model.family", "tags.set", "clip_skip"} <= set(
        names[False]
    )
    assert {"versions.sdcli", "pixels.sha256", "scheduler.class_name", "made by", "other", "id"} <= set(names[True])


def test_endless_fields_go_into_one() -> None:
    columns = Columns()
    for row in range(300):
        columns.add([("prompt", "x" * 20_000), *((f"tags.{row} {n}", n) for n in range(5)), ("size", "1x1")])
    made = {c["name"]: c for c in columns.as_json()}
    assert len(made) == MOST_COLUMNS + 1 and made["other"]["kind"] == "text"
    assert "tags.299 4: 4" in made["other"]["values"] and made["size"]["per"] == "folder"
    assert len(made["prompt"]["values"][0]) < 10_100


# Files


def test_thumbnails_are_kept_and_no_more_than_are_needed(sdcli: Sdcli, tmp_path: Path) -> None:
    put("pictures/a.png"), put("pictures/b.png")
    first = gallery(sdcli)["pictures"]["thumb"]
    times = {url: (tmp_path / "pictures" / url).stat().st_mtime_ns for url in first}
    put("pictures/b.png", colour=(0, 0, 99), prompt="another")
    Path("pictures/gallery-files/mine.txt").write_text("not a thumbnail")
    second = gallery(sdcli)["pictures"]["thumb"]
    assert second[0] == first[0] and second[1] != first[1]
    assert (tmp_path / "pictures" / first[0]).stat().st_mtime_ns == times[first[0]]
    left = {p.name for p in Path("pictures/gallery-files").iterdir()}
    assert left == {"mine.txt", *(Path(url).name for url in second)}
    # To other commands, and to the next gallery, they are no pictures.
    assert len(list(journal.pictures(Path("pictures")))) == 2


def test_where_the_page_goes(sdcli: Sdcli, tmp_path: Path) -> None:
    put("pictures/a.png")
    for asked, page in (("pages/", "pages/gallery.html"), ("pages", "pages/gallery.html"), ("p.htm", "p.htm")):
        done = sdcli("gallery", "pictures", "-o", asked)
        assert (done.code, done.lines) == (0, [page])
        data = told(Path(page))
        assert (Path(page).parent / data["pictures"]["url"][0]).samefile("pictures/a.png")
        assert (Path(page).parent / data["pictures"]["thumb"][0]).is_file()


def test_only_a_gallery_is_overwritten(sdcli: Sdcli, tmp_path: Path) -> None:
    put("pictures/a.png")
    page = Path("pictures/gallery.html")
    page.write_text("<p>mine")
    done = sdcli("gallery", "pictures")
    assert done.code == 73 and "no gallery" in done.stderr and page.read_text() == "<p>mine"
    assert not Path("pictures/gallery-files").exists()
    assert sdcli("gallery", "pictures", "--overwrite").code == 0
    put("pictures/b.png")
    assert sdcli("gallery", "pictures").code == 0
    assert len(told(page)["pictures"]["url"]) == 2
    assert {p.name for p in page.parent.iterdir()} == {"a.png", "b.png", "gallery.html", "gallery-files"}


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["nowhere"], 66, "nowhere is not there"),
        (["pictures/a.png"], 2, "is not a folder"),
        (["empty"], 65, "nothing to show"),
        (["pictures", "-o", "page"], 2, "neither a folder nor a page"),
        (["pictures", "-o", "pictures/a.png/page.html"], 73, "cannot be created"),
        (["taken"], 73, "no gallery"),
    ],
)
def test_refusals(sdcli: Sdcli, tmp_path: Path, argv: list[str], code: int, says: str) -> None:
    put("pictures/a.png"), put("taken/a.png")
    Path("empty").mkdir(), Path("taken/gallery.html").mkdir()
    done = sdcli("gallery", *argv, "--json")
    assert done.code == code and says in done.stderr
    assert (done.events[0]["event"], done.events[0]["exit"]) == ("error", code)
    assert not list(tmp_path.rglob("*.part"))


def test_without_jinja2_it_says_what_to_install(sdcli: Sdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put("pictures/a.png")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    done = sdcli("gallery", "pictures")
    assert done.code == 2 and "pip install 'sdcli[show]'" in done.stderr


def test_torch_is_not_imported(tmp_path: Path, probe: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    put(tmp_path / "pictures/a.png")
    done = probe(
        "import sys; from sdcli.cli.main import main; main(['gallery', 'pictures', '-q']); print('torch' in sys.modules)"
    )
    assert done.stdout.split() == ["pictures/gallery.html", "False"] and done.stderr == ""


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


SHAPES = ("circle", "square", "star")
SCHEDULERS = ("ddim", "euler", "dpm++2m")


@pytest.fixture
def many(sdcli: Sdcli, tmp_path: Path) -> Path:
    """Return a page of 120 pictures, of which 4 have hostile prompts, with two failures and an unreadable one."""
    for n in range(116):
        more: dict[str, Any] = {"lora": (Adapter(name="ink", scale=0.5),)} if n % 10 == 0 else {}
        put(
            f"pictures/{n:03}.png",
            f"a {SHAPES[n % 3]} number {n}",
            (n * 2, 255 - n * 2, 90),
            seed=1000 + n,
            num_inference_steps=10 + n % 5,
            scheduler=SCHEDULERS[n % 3],
            **more,
        )
    for n, text in enumerate(HOSTILE):
        put(f"pictures/z{n}.png", text, negative_prompt=text, tags={"set": text})
    index = journal.Index()
    book = journal.Journal(Path("pictures"), index)
    book.begin(seed=1, batch_size=1)
    book.write(failed(OutOfMemory(HOSTILE[0], "make it smaller"), "a" * 64, 3))
    book.write({**failed(NotFinite("values were not finite"), "b" * 64, 4), "prompt": "a lost star", "seed": 0})
    book.close()
    Path("pictures/broken.png").write_text("no picture")
    done = sdcli("gallery", "pictures")
    assert done.code == 0, done.stderr
    return tmp_path / done.lines[0]


def counted(page: Page) -> str:
    return page.locator("#count").inner_text()


def cards(page: Page) -> list[str]:
    return page.locator(".cell .says").all_inner_texts()


@pytest.mark.outside
def test_only_the_rows_that_are_seen_are_in_the_page(browser: Browser, many: Path) -> None:
    with opened(browser, many) as (page, heard):
        page.wait_for_selector(".cell img")
        assert counted(page) == "120 pictures"
        assert cards(page)[0] == "a circle number 0" and len(cards(page)) < 60
        page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
        page.get_by_text(HOSTILE[-1].split()[0]).first.wait_for()
        assert "a circle number 0" not in cards(page) and len(cards(page)) < 60
        assert page.evaluate("[...document.querySelectorAll('.cell img')].every(i => i.complete && i.naturalWidth)")
        assert len(heard.asked) > 20


@pytest.mark.outside
def test_search_finds_words_and_phrases(browser: Browser, many: Path) -> None:
    with opened(browser, many) as (page, _):
        page.get_by_label("Search", exact=True).fill("NUMBER star")
        assert counted(page) == "38 of 120 pictures"
        page.get_by_label("Search", exact=True).fill('"number 11"')
        assert cards(page) == ["a star number 11", *(f"a {SHAPES[n % 3]} number {n}" for n in range(110, 116))]
        # 1007 is a seed: in any field, and in no prompt.
        page.get_by_label("Search", exact=True).fill("1007")
        assert cards(page) == ["a square number 7"]
        page.get_by_label("Search in").select_option("prompt")
        assert counted(page) == "0 of 120 pictures" and page.get_by_text("No picture is like that.").is_visible()
        page.get_by_label("Search", exact=True).fill("")
        assert counted(page) == "120 pictures"


@pytest.mark.outside
def test_filters_narrow_and_can_be_taken_off(browser: Browser, many: Path) -> None:
    with opened(browser, many) as (page, _):
        facet = page.get_by_role("group", name="scheduler")
        assert facet.locator("li").all_inner_texts() == ["ddim\n43", "euler\n39", "dpm++2m\n38"]
        facet.get_by_label("euler").check()
        assert counted(page) == "39 of 120 pictures" and "a square number 1" in cards(page)
        page.get_by_role("group", name="lora").get_by_label("ink").check()
        assert counted(page) == "4 of 120 pictures"
        page.get_by_label("Filter by a field").select_option("seed")
        page.get_by_role("group", name="seed").get_by_label("from").fill("1020")
        page.get_by_role("group", name="seed").get_by_label("to", exact=True).fill("1080")
        assert cards(page) == ["a square number 40", "a square number 70"]
        page.get_by_role("button", name="Remove the filter seed ≥ 1020").click()
        assert cards(page) == ["a square number 10", "a square number 40", "a square number 70"]
        page.get_by_role("button", name="Clear all").click()
        assert counted(page) == "120 pictures"


@pytest.mark.outside
def test_sorting(browser: Browser, many: Path) -> None:
    with opened(browser, many) as (page, _):
        page.get_by_label("Sort by").select_option("seed")
        page.get_by_role("button", name="Sort downwards").click()
        assert cards(page)[:2] == ["a square number 115", "a circle number 114"]
        page.get_by_role("button", name="Sort downwards").click()
        page.get_by_label("Sort by").select_option("num_inference_steps")
        assert cards(page)[:3] == ["a circle number 0", "a star number 5", "a square number 10"]


@pytest.mark.outside
def test_two_pictures_side_by_side(browser: Browser, many: Path) -> None:
    with opened(browser, many) as (page, _):
        for name in ("a circle number 0", "a square number 1"):
            page.get_by_label(f"Compare {name}", exact=True).check()
        page.get_by_role("button", name="Compare the two").click()
        table = page.locator("#pair")
        rows = {
            r.locator("th").inner_text(): r.locator("td").all_inner_texts() for r in table.locator("tbody tr").all()
        }
        assert rows["≠ prompt"] == ["a circle number 0", "a square number 1"]
        assert rows["≠ seed"] == ["1000", "1001"] and rows["≠ lora"] == ["ink", "–"]
        assert not any("guidance_scale" in name for name in rows)
        assert table.locator("mark").all_inner_texts()[:4] == ["circle", "0", "square", "1"]
        table.get_by_label("Only what differs").uncheck()
        assert table.get_by_role("row", name="guidance_scale").locator("td").all_inner_texts() == ["7.5", "7.5"]
        assert page.evaluate("[...document.querySelectorAll('#pair img')].every(i => i.naturalWidth === 24)")
        page.keyboard.press("Escape")
        assert not table.is_visible()
        page.get_by_label("Compare a star number 2", exact=True).check()
        assert not page.get_by_label("Compare a circle number 0", exact=True).is_checked()


@pytest.mark.outside
@pytest.mark.parametrize("clipboard", ["there", "refused", "missing"])
def test_commands_are_copied(browser: Browser, many: Path, clipboard: str) -> None:
    taken = "{ writeText: async (text) => { window.taken = text } }"
    refused = "{ writeText: async () => { throw new Error('no') } }"
    has = {"there": taken, "refused": refused, "missing": "undefined"}[clipboard]
    before = f"Object.defineProperty(navigator, 'clipboard', {{ value: {has} }})"
    with opened(browser, many, before=before) as (page, _):
        page.get_by_text("a star number 2", exact=True).click()
        line = page.locator("#full code").inner_text()
        assert shlex.split(line)[:3] == ["sdcli", "generate", "a star number 2"]
        page.get_by_role("button", name="Copy the command with all its options").click()
        page.wait_for_function("() => document.getElementById('copied').textContent !== ''")
        said = page.locator("#copied").inner_text()
        if clipboard == "there":
            assert page.evaluate("window.taken") == line and said.startswith("Copied")
        else:
            assert page.evaluate("getSelection().toString()") == line and said.startswith(("Copied", "Selected"))
        page.get_by_role("button", name="Copy the command that reads the picture").click()
        assert page.locator("#from code").inner_text() == "sdcli generate --from 002.png"


@pytest.mark.outside
def test_hostile_texts_are_shown_and_not_run(browser: Browser, many: Path) -> None:
    with opened(browser, many) as (page, heard):
        page.get_by_label("Search", exact=True).fill("window.hit")
        assert counted(page) == "4 of 120 pictures"
        page.get_by_label("Filter by a field").select_option("negative_prompt")
        for name in ("tags.set", "negative_prompt"):
            values = page.get_by_role("group", name=name).locator(".value")
            assert set(values.evaluate_all("all => all.map(v => v.textContent)")) == set(HOSTILE)
        for text in HOSTILE:
            page.locator(".cell .open").nth(HOSTILE.index(text)).click()
            assert page.locator("#detail-title").evaluate("e => e.textContent") == text
            page.keyboard.press("Escape")
        page.locator(".cell input").nth(0).check(force=True)
        page.locator(".cell input").nth(1).check(force=True)
        page.get_by_role("button", name="Compare the two").click()
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Failures").click()
        assert HOSTILE[0] in page.locator("#failures .entries").inner_text()
        assert page.evaluate("window.hit") is None
        # Were one to get in as HTML, the policy would still not let it run.
        page.evaluate(
            "document.body.insertAdjacentHTML('beforeend', '<img src=\"data:,\" onerror=\"window.hit = 2\">')"
        )
        page.wait_for_timeout(200)
        assert page.evaluate("window.hit") is None
        refused = [heard.said.pop() for said in heard.said[:] if "Content Security Policy" in said]
        assert len(refused) == 1


@pytest.mark.outside
def test_keys_do_all_of_it(browser: Browser, many: Path) -> None:
    with opened(browser, many) as (page, _):
        page.locator(".cell .open").first.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("c")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("c")
        assert page.get_by_role("button", name="Compare the two").is_enabled()
        page.keyboard.press("End")
        assert page.evaluate("document.activeElement.querySelector('.says').textContent") == HOSTILE[-1]
        page.keyboard.press("Home")
        page.keyboard.press("Enter")
        assert page.locator("#detail-title").inner_text() == "a circle number 0"
        page.keyboard.press("ArrowRight")
        assert page.locator("#place").inner_text() == "2 of 120"
        page.keyboard.press("Escape")
        # Back where one was, once the dialog has said that it is closed.
        page.wait_for_function(
            "() => document.activeElement.querySelector('.says')?.textContent === 'a square number 1'"
        )
        # One card is one stop, with its box.
        assert page.locator(".cell .open[tabindex='0']").count() == 1


@pytest.mark.outside
def test_back_closes_what_is_open(browser: Browser, many: Path) -> None:
    with opened(browser, many) as (page, _):
        page.get_by_label("Search", exact=True).fill("circle")
        for leave in ("back", "Escape", "back"):
            page.locator(".cell .open").first.click()
            assert page.locator("#detail").is_visible()
            page.go_back() if leave == "back" else page.keyboard.press(leave)
            page.wait_for_function(
                "() => !document.querySelector('dialog[open]') && history.scrollRestoration === 'auto'"
            )
            assert page.url.endswith("#q=circle") and counted(page) == "39 of 120 pictures"
        # Where one has walked to, one is afterwards.
        page.locator(".cell .open").first.click()
        for _ in range(30):
            page.keyboard.press("ArrowRight")
        page.keyboard.press("Escape")
        page.wait_for_function("() => !document.querySelector('dialog[open]') && history.scrollRestoration === 'auto'")
        page.wait_for_timeout(200)
        focused = "document.activeElement.getBoundingClientRect()"
        assert page.evaluate(f"{focused}.top >= 0 && {focused}.bottom <= innerHeight && scrollY > 0")
        # An open picture that was reloaded away takes no later search with it.
        page.evaluate("scrollTo(0, 0)")
        page.locator(".cell .open").first.click()
        page.reload()
        page.get_by_label("Search", exact=True).fill("star")
        page.locator(".cell .open").first.click()
        page.go_back()
        page.wait_for_timeout(200)
        assert page.get_by_label("Search", exact=True).input_value() == "star" and page.url.endswith("#q=star")
        for cell in (0, 1):
            page.locator(".cell").nth(cell).hover()
            page.locator(".cell input").nth(cell).check()
        page.get_by_role("button", name="Compare the two").click()
        assert page.locator("#pair").is_visible()
        page.go_back()
        page.wait_for_function("() => !document.querySelector('dialog[open]')")
        assert page.locator("#tray").is_visible()


@pytest.mark.outside
def test_failures_and_unreadable_pictures_are_listed(browser: Browser, many: Path) -> None:
    with opened(browser, many) as (page, _):
        page.get_by_role("button", name="Failures 2").click()
        entries = page.locator("#failures .entries li")
        first = entries.nth(0).inner_text()
        assert (
            "make it smaller" in first and "line 3 of the prompts; journal sdcli-batch.jsonl; job aaaaaaaaaaaa" in first
        )
        assert "--retry-failed" in page.locator("#failures").inner_text()
        page.get_by_label("Code").select_option("not-finite")
        assert entries.count() == 1 and "values were not finite" in entries.inner_text()
        assert "a lost star · seed 0\n" in entries.inner_text()
        page.get_by_label("Code").select_option("")
        for text, count in (
            ("seed:0", 1),
            ("seed:1", 0),
            ("prompt:lost", 1),
            ("line:3", 1),
            ("line: 4", 1),
            ("line:", 2),
            ("nobody:3", 0),
        ):
            page.get_by_label("Search", exact=True).fill(text)
            assert entries.count() == count, text
        page.get_by_label("Search", exact=True).fill("")
        page.get_by_role("button", name="Unreadable 1").click()
        assert "broken.png" in page.locator("#unreadable .entries").inner_text()


def box(page: Page, selector: str, at: int = 0) -> dict[str, float]:
    found = page.locator(selector).nth(at).bounding_box()
    assert found is not None
    return {k: float(v) for k, v in found.items()} | {"bottom": found["y"] + found["height"]}  # type: ignore[typeddict-item]


@pytest.mark.outside
@pytest.mark.parametrize("width", [390, 1300])
def test_pictures_of_any_shape_stay_in_their_place(browser: Browser, sdcli: Sdcli, tmp_path: Path, width: int) -> None:
    sizes = ((128, 192), (192, 128), (128, 128), (40, 2000), (2000, 40), (328, 349))
    for n, size in enumerate(sizes):
        put(f"pictures/{n}.png", f"a picture of {size}", size=size)
    gallery(sdcli)
    with opened(browser, tmp_path / "pictures/gallery.html", width=width) as (page, _):
        page.wait_for_function(
            "() => [...document.querySelectorAll('.cell img')].every(i => i.complete && i.naturalWidth)"
        )
        for at, (wide, high) in enumerate(sizes):
            shot, image, card = (box(page, f".cell {kind}", at) for kind in (".shot", "img", ".card"))
            assert image["y"] >= shot["y"] and image["bottom"] <= shot["bottom"] + 0.5, (wide, high)
            assert image["x"] >= shot["x"] - 0.5 and image["width"] <= shot["width"] + 0.5
            says, sub = (box(page, f".cell {kind}", at) for kind in (".says", ".sub"))
            assert shot["bottom"] <= says["y"] and says["bottom"] <= sub["y"] and sub["bottom"] <= card["bottom"]
            assert shot["height"] > 100 and says["height"] > 25 and sub["height"] > 20
        for at in range(len(sizes)):
            # The opened picture takes the room there is, and no more.
            page.locator(".cell .open").nth(at).click()
            page.wait_for_function("() => document.querySelector('#whole img').complete")
            room, image = box(page, "#whole"), box(page, "#whole img")
            assert image["bottom"] <= room["bottom"] + 0.5 and image["width"] == pytest.approx(room["width"], abs=1)
            assert image["height"] == pytest.approx(room["height"], abs=1) and room["height"] > (
                5 if width < 600 else 500
            )
            caption, title = box(page, "#caption"), box(page, "#detail-title")
            assert room["bottom"] <= caption["y"]
            assert width > 600 or caption["bottom"] <= title["y"]
            page.keyboard.press("Escape")


@pytest.mark.outside
def test_a_page_says_where_it_lies_now(browser: Browser, many: Path, tmp_path: Path) -> None:
    moved = many.parent.rename(tmp_path / "else where é%20#?")

    def copied(page: Page) -> str:
        page.locator(".cell .open").first.click()
        page.get_by_role("button", name="Copy the command that reads the picture").click()
        page.wait_for_function("() => document.getElementById('copied').textContent !== ''")
        return page.locator("#copied").inner_text()

    with opened(browser, moved / "gallery.html", before=TAKEN) as (page, _):
        assert copied(page) == f"Copied: run it in {moved}/"
    context = browser.new_context()
    try:
        page = context.new_page()
        page.add_init_script(TAKEN)
        page.route("**/*", lambda route: route.fulfill(path=moved / "gallery.html", content_type="text/html"))
        page.goto("http://gallery.test/shared/gallery.html")
        assert copied(page) == "Copied: run it in the page's folder"
    finally:
        context.close()


@pytest.mark.outside
def test_one_field_is_searched_by_its_name(browser: Browser, many: Path) -> None:
    with opened(browser, many) as (page, _):
        for query, found in (
            # What the card says can be typed.
            ('"seed 1007"', 1), ("seed 1007", 1), ('"12 steps"', 23), ("1007 · 12 steps", 1),
            ("seed:1007", 1), ("SEED:1007", 1), ("seed:100", 0), ("steps:12", 23), ("num_inference_steps:12 circle", 7),
            ('"prompt:a star number 113"', 1), ('prompt:"a star number 113"', 1), ("prompt:1007", 0), ("lora:in", 12),
            ("seed: 1007", 1), ("steps: 12 circle", 7), ("nobody: 1007", 0), ("made_by:sdcli", 120), ("made_by:nobody", 0),
            ("seed:1007 prompt:star", 0), ("file.name:007", 1), ("model:dem", 120),
            # No field has this name: it is text, and some prompt's.
            ("javascript:window.hit=1", 1), ("constructor:x", 0), (":", 120), ("seed:", 120),
        ):  # fmt: skip
            page.get_by_label("Search", exact=True).fill(query)
            assert counted(page).split()[0] == str(found), query
        page.get_by_label("Search", exact=True).fill("circle nobody:3")
        assert page.locator("#none").inner_text() == "No picture is like that. There is no field nobody."
        page.get_by_label("Search", exact=True).fill("seed:3")
        assert page.locator("#none").inner_text() == "No picture is like that."
        page.get_by_label("Search in").select_option("negative_prompt")
        page.get_by_label("Search", exact=True).fill("seed:1007")
        assert cards(page) == ["a square number 7"]


@pytest.mark.outside
def test_what_was_looked_for_outlives_a_reload(browser: Browser, many: Path) -> None:
    with opened(browser, many) as (page, _):
        page.get_by_label("Search", exact=True).fill('"a star" & #<b>')
        page.get_by_label("Search", exact=True).fill("number")
        page.get_by_label("Search in").select_option("prompt")
        page.get_by_label("Sort by").select_option("seed")
        page.get_by_role("button", name="Sort downwards").click()
        page.get_by_role("group", name="lora").get_by_label("not said").check()
        page.get_by_label("Filter by a field").select_option("seed")
        page.get_by_role("group", name="seed").get_by_label("to", exact=True).fill("1020")
        page.get_by_role("group", name="scheduler").get_by_label("euler").check()
        before = (counted(page), cards(page))
        assert before[0] == "6 of 120 pictures" and before[1][0] == "a square number 19"
        page.reload()
        assert (counted(page), cards(page)) == before
        assert page.get_by_label("Search", exact=True).input_value() == "number"
        assert page.get_by_role("group", name="seed").get_by_label("to", exact=True).input_value() == "1020"
        assert page.locator("#chips button").count() == 4
        page.get_by_role("button", name="Clear all").click()
        page.get_by_role("button", name="Failures").click()
        page.reload()
        assert page.locator("#failures").is_visible() and not page.locator("#pictures").is_visible()


@pytest.mark.outside
@pytest.mark.parametrize(
    "fragment",
    ["%E0%A4%A", "f=%7B", "f=1&f=null&f=[]&f=[%22seed%22]", "f=[%22seed%22,3]", "f=[%22seed%22,[[]],%22x%22,{}]", "sort=__proto__",
     "f=[%22model%22,%22abc%22]", "view=detail&in=nothing&down=yes", "f=[%22nothing%22,[%22x%22],1,2]", "view=%3Cb%3E", "grid"],
)  # fmt: skip
def test_a_malformed_address_is_ignored(browser: Browser, many: Path, fragment: str) -> None:
    with opened(browser, many) as (page, _):
        page.goto("about:blank")
        page.goto(f"{many.as_uri()}#{fragment}")
        assert counted(page) == "120 pictures" and cards(page)[0] == "a circle number 0"


@pytest.mark.outside
def test_an_address_is_data(browser: Browser, many: Path) -> None:
    with opened(browser, many) as (page, _):
        page.goto("about:blank")
        asked = quote(json.dumps(["scheduler", [HOSTILE[1]], None, None]))
        page.goto(f"{many.as_uri()}#q={quote(HOSTILE[0])}&f={asked}")
        assert counted(page) == "0 of 120 pictures" and page.locator("main img").count() == 0
        assert page.get_by_label("Search", exact=True).input_value() == HOSTILE[0]
        assert HOSTILE[1] in page.locator("#chips").inner_text() and page.evaluate("window.hit") is None


@pytest.mark.outside
def test_keys_lead_to_the_pictures_and_the_search(browser: Browser, many: Path) -> None:
    focused = "document.activeElement.querySelector?.('.says')?.textContent ?? document.activeElement.id"
    with opened(browser, many) as (page, _):
        page.keyboard.press("Tab")
        skip = page.get_by_role("link", name="Skip to the pictures")
        assert skip.evaluate("e => e === document.activeElement") and box(page, ".skip")["x"] >= 0
        page.keyboard.press("Enter")
        assert page.evaluate(focused) == "a circle number 0"
        page.keyboard.press("/")
        assert page.evaluate(focused) == "search"
        page.keyboard.type("a/b")
        assert page.get_by_label("Search", exact=True).input_value() == "a/b"
        page.get_by_label("Search", exact=True).fill('"number 7"')
        page.keyboard.press("ArrowDown")
        assert page.evaluate(focused) == "a square number 7"
        # Not out of an opened picture.
        page.keyboard.press("Enter")
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.closest('dialog').id") == "detail"


@pytest.mark.outside
def test_fields_are_grouped(browser: Browser, many: Path) -> None:
    with opened(browser, many) as (page, _):
        for select in ("#sort", "#field"):
            groups = {
                group.get_attribute("label"): group.locator("option").evaluate_all("all => all.map(o => o.value)")
                for group in page.locator(f"{select} optgroup").all()
            }
            assert list(groups) == ["What was asked", "How it came out"]
            assert {"prompt", "seed"} <= set(groups["What was asked"]) and "file.name" in groups["How it came out"]
        for name in ("a circle number 0", "a square number 1"):
            page.get_by_label(f"Compare {name}", exact=True).check()
        page.get_by_role("button", name="Compare the two").click()
        heads = page.locator("#pair tbody th").all_inner_texts()
        assert heads[0] == "≠ prompt" and heads.index("How it came out") < heads.index("≠ pixels.sha256")
        assert heads.index("≠ seed") < heads.index("How it came out") < heads.index("≠ file.name")
        page.keyboard.press("Escape")
        page.locator(".cell .open").first.click()
        heads = page.locator("#detail th").all_inner_texts()
        assert heads.index("seed") < heads.index("How it came out") < heads.index("file.name")


@pytest.mark.outside
def test_one_is_one(browser: Browser, sdcli: Sdcli, tmp_path: Path) -> None:
    put("pictures/a.png", "a table, seed: 7")
    Path("pictures/broken.png").write_text("no picture")
    book = journal.Journal(Path("pictures"), journal.Index())
    book.begin(seed=1, batch_size=1)
    book.write(failed(NotFinite("values were not finite"), "b" * 64, 2))
    book.close()
    gallery(sdcli)
    with opened(browser, tmp_path / "pictures/gallery.html") as (page, _):
        assert counted(page) == "1 picture"
        page.get_by_label("Search", exact=True).fill('"table, seed: 7"')
        assert counted(page) == "1 picture"
        page.get_by_label("Search", exact=True).fill("")
        page.get_by_role("button", name="Failures 1").click()
        assert page.locator("#failed").inner_text() == "1 failure"
        page.get_by_role("button", name="Unreadable 1").click()
        assert page.locator("#unreadable [role=status]").inner_text() == "1 picture that can't be read"
    Path("pictures/a.png").unlink()
    gallery(sdcli)
    with opened(browser, tmp_path / "pictures/gallery.html") as (page, _):
        assert page.locator("#failures").is_visible()
        page.get_by_role("button", name="Unreadable 1").click()
        page.reload()
        assert page.locator("#unreadable").is_visible() and not page.locator("#failures").is_visible()


@pytest.mark.outside
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_and_can_be_read(browser: Browser, many: Path, width: int, dark: bool) -> None:
    with opened(browser, many, width=width, height=800, dark=dark) as (page, _):
        page.wait_for_selector(".cell")
        fits = "document.documentElement.scrollWidth <= window.innerWidth"
        assert page.evaluate(fits)
        assert (
            contrast(page, "body") > 7 and contrast(page, ".sub") > 4.5 and contrast(page, "[aria-pressed=true]") > 4.5
        )
        # Every control has a name that can be spoken.
        names = page.evaluate("""[...document.querySelectorAll('button, input, select')].filter(e =>
            !(e.getAttribute('aria-label') || e.textContent.trim() || [...(e.labels ?? [])].some(l => l.textContent.trim()))
        ).map(e => e.outerHTML)""")
        assert names == []
        page.locator(".cell .open").first.click()
        assert page.evaluate(fits) and page.locator("#detail").bounding_box()["width"] <= width  # type: ignore[index]
        assert contrast(page, "#detail th") > 4.5


def contrast(page: Page, selector: str) -> float:
    """Return how much an element's text stands out from what is behind it (WCAG 2.2, contrast ratio)."""
    colours: list[list[float]] = page.evaluate(
        """selector => {
            const element = document.querySelector(selector);
            let under = element;
            while (getComputedStyle(under).backgroundColor === 'rgba(0, 0, 0, 0)') under = under.parentElement;
            const parts = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
            return [parts(getComputedStyle(element).color), parts(getComputedStyle(under).backgroundColor)];
        }""",
        selector,
    )

    def luminance(colour: list[float]) -> float:
        linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted(map(luminance, colours))
    return (high + 0.05) / (low + 0.05)
