"""Where values come from: names, order and origins."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdcli.errors import UsageError
from sdcli.models import ModelSpec
from sdcli.request import GenerationRequest, JobOptions
from sdcli.settings import merge, names
from tests.conftest import Outcome, Sdcli


def test_the_later_source_wins_and_origins_tell() -> None:
    merged = merge(("a", {"steps": 10, "cfg": 3}), ("b", {"num_inference_steps": 20}), ("c", {"cfg": None}))
    assert merged.values == {"num_inference_steps": 20, "guidance_scale": 3.0}
    assert merged.origins == {"num_inference_steps": "b", "guidance_scale": "a"}


@pytest.mark.parametrize("name", ["num_inference_steps", "num-inference-steps", "steps"])
def test_a_field_goes_by_its_name_and_its_flags(name: str) -> None:
    assert merge(("row", {name: "12"})).values == {"num_inference_steps": 12}


def test_size_is_width_and_height() -> None:
    assert merge(("row", {"size": "640x384"})).values == {"width": 640, "height": 384}
    with pytest.raises(UsageError, match="width is given twice"):
        merge(("row", {"size": "640x384", "width": 64}))
    assert merge(("preset", {"size": "640x384"}), ("flag", {"width": 64})).values == {"width": 64, "height": 384}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"stesp": 3}, "there is no field stesp; did you mean steps"),
        ({"steps": 2.5}, "expected int"),
        ({"steps": True}, "expected int"),
        ({"prompt_": "x"}, "there is no field prompt_"),
        ({"dtype": "fp61"}, "did you mean fp16"),
        ({"vae_tiling": "perhaps"}, "expected true or false"),
        ({"tags": "red"}, "tags is a JSON object"),
        ({"negative": "a\udcff"}, "not UTF-8"),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        merge(("row", values))
    assert said in caught.value.message and caught.value.message.startswith("row: ")


def test_a_path_may_be_no_utf8() -> None:
    paths = {name: "/\udcff" for name in ("output", "model", "model_config", "vae", "wildcards")}
    assert merge(("flag", paths)).values == paths
    assert merge(("SDCLI_SIGN", {"sign": '["\udcff.pem", "k"]'})).values == {"sign": ("\udcff.pem", "k")}
    for other in ({"sign": '["\\ud800.pem", "k"]'}, {"tags": '{"a": "\udcff"}'}, {"tags": '{"a": "\\udcff"}'}):
        with pytest.raises(UsageError):
            merge(("flag", other))


def test_records_are_built_from_what_is_theirs() -> None:
    merged = merge(("flag", {"model": "demo", "steps": "3", "count": "2", "tags": '{"set": "a"}'}))
    assert merged.build(GenerationRequest, prompt="x") == GenerationRequest(prompt="x", num_inference_steps=3)
    assert merged.build(ModelSpec).model == "demo"
    assert merged.build(JobOptions) == JobOptions(count=2, tags={"set": "a"})


def test_an_option_is_declared_once() -> None:
    assert names()["steps"] is names()["num_inference_steps"]
    assert {"seed", "scheduler", "sampler", "cfg", "negative", "model", "device", "output"} <= set(names())


# The order of the sources, weakest first: the number of steps that each says, and the origin that its value then has.
CHAIN = {
    "model": (25, "model demo"),
    "user": (31, "user settings"),
    "project": (32, "project settings"),
    "variable": (33, "SDCLI_STEPS"),
    "record": (2, "a.png"),
    "preset": (34, "preset first"),
    "later preset": (35, "preset second"),
    "flag": (36, "flag"),
    "row's preset": (37, "preset third"),
    "row": (38, "rows.csv:2"),
}
# A picture is drawn again by its record; a row is drawn from nothing. They have no neighbours in common.
PAIRS = [(a, b) for a, b in itertools.pairwise(CHAIN)] + [("variable", "preset")]

Arranged = Callable[..., Outcome]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a picture of two steps, as the bundled model draws it."""
    from sdcli.cli.main import main

    path = tmp_path_factory.mktemp("drawn") / "a.png"
    assert main(["generate", "a star", "-m", "demo", "--steps", "2", "--seed", "4", "-q", "-o", str(path)]) == 0
    return path.read_bytes()


@pytest.fixture
def arranged(
    sdcli: Sdcli, tmp_path: Path, configuration: Path, monkeypatch: pytest.MonkeyPatch, drawn: bytes
) -> Arranged:
    """Set steps in each of the sources that are named, and say what would be drawn: the plans, without the model said."""

    def arrange(*sources: str, model: bool = True) -> Outcome:
        said = {source: steps for source, (steps, _) in CHAIN.items() if source in sources}
        argv = ["--model", "demo"] if model else []
        if "user" in said:
            configuration.mkdir(parents=True)
            (configuration / "sdcli.toml").write_text(f"steps = {said['user']}\n")
        if "project" in said:
            (tmp_path / "sdcli.toml").write_text(f"num-inference-steps = {said['project']}\n")
        if "variable" in said:
            monkeypatch.setenv("SDCLI_STEPS", str(said["variable"]))
        (tmp_path / "presets").mkdir()
        for source, name in (("preset", "first"), ("later preset", "second"), ("row's preset", "third")):
            if source in said:
                (tmp_path / "presets" / f"{name}.toml").write_text(f"num_inference_steps = {said[source]}\n")
                argv += ["--preset", name] if name != "third" else []
        if "flag" in said:
            argv += ["--steps", str(said["flag"])]
        if "record" in said:
            (tmp_path / "a.png").write_bytes(drawn)
            return sdcli("generate", "--from", "a.png", *argv, "--dry-run", "--json")
        if {"row", "row's preset"} & said.keys():
            preset, steps = "third" if "row's preset" in said else "", said.get("row", "")
            (tmp_path / "rows.csv").write_text(f"prompt,preset,steps\na star,{preset},{steps}\n")
            return sdcli("batch", "rows.csv", *argv, "--dry-run", "--json")
        return sdcli("generate", "a star", *argv, "--dry-run", "--json")

    return arrange


@pytest.mark.parametrize(("weaker", "stronger"), PAIRS, ids=lambda source: source.replace(" ", "-"))
def test_of_two_neighbours_the_stronger_wins(arranged: Arranged, weaker: str, stronger: str) -> None:
    done = arranged(weaker, stronger)
    assert done.code == 0, done.stderr
    (plan,) = done.events
    said = (plan["request"]["num_inference_steps"], plan["origins"]["num_inference_steps"])
    assert said == CHAIN[stronger]


@pytest.mark.parametrize("source", CHAIN, ids=lambda source: source.replace(" ", "-"))
def test_each_source_counts_and_says_its_origin(arranged: Arranged, source: str) -> None:
    """Alone over the model's defaults: a pair shows that the stronger wins, and not that the weaker would have counted."""
    (plan,) = arranged(source).events
    assert (plan["request"]["num_inference_steps"], plan["origins"]["num_inference_steps"]) == CHAIN[source]


@pytest.mark.parametrize("left_out", [("record",), ("row", "row's preset")], ids=["rows", "a-record"])
def test_the_whole_chain(arranged: Arranged, left_out: tuple[str, ...]) -> None:
    (plan,) = arranged(*(source for source in CHAIN if source not in left_out)).events
    strongest = "row" if "row" not in left_out else "flag"
    assert (plan["request"]["num_inference_steps"], plan["origins"]["num_inference_steps"]) == CHAIN[strongest]


def test_set_is_the_strongest_of_a_command(sdcli: Sdcli) -> None:
    argv = ["generate", "a star", "-m", "demo", "--steps", "3", "--set", "steps=4", "--dry-run", "--json"]
    (plan,) = sdcli(*argv).events
    assert (plan["request"]["num_inference_steps"], plan["origins"]["num_inference_steps"]) == (4, "--set")


# Which model is drawn with, and who says so: all sources count.
MODELS = [
    ((), "stable-diffusion-v1-5/stable-diffusion-v1-5", "default"),
    (("user",), "demo", "user settings"),
    (("user: nowhere", "project"), "demo", "project settings"),
    (("project: nowhere", "variable"), "demo", "SDCLI_MODEL"),
    (("variable: nowhere", "record"), "demo", "picture"),
    (("variable: nowhere", "preset"), "demo", "preset mine"),
    (("variable: nowhere", "flag"), "demo", "flag"),
    (("preset: nowhere", "flag"), "demo", "flag"),
]


@pytest.mark.parametrize(("sources", "model", "origin"), MODELS)
def test_the_model_is_found_from_all_sources(
    sdcli: Sdcli, tmp_path: Path, configuration: Path, monkeypatch: pytest.MonkeyPatch, drawn: bytes,
    sources: tuple[str, ...], model: str, origin: str,
) -> None:  # fmt: skip
    argv = ["generate", "a star"]
    for source, _, name in (s.partition(": ") for s in sources):
        named = f'model = "./{name}"\n' if name else 'model = "demo"\n'
        if source == "user":
            configuration.mkdir(parents=True)
            (configuration / "sdcli.toml").write_text(named)
        elif source == "project":
            (tmp_path / "sdcli.toml").write_text(named)
        elif source == "variable":
            monkeypatch.setenv("SDCLI_MODEL", f"./{name}" if name else "demo")
        elif source == "record":
            (tmp_path / "a.png").write_bytes(drawn)
            argv += ["--from", "a.png"]
        elif source == "preset":
            (tmp_path / "mine.toml").write_text(named)
            argv += ["--preset", "./mine.toml"]
        else:
            argv += ["--model", f"./{name}" if name else "demo"]
    done = sdcli(*argv, "--dry-run", "--json")
    assert done.code == 0, done.stderr
    (plan,) = done.events
    assert (plan["model"]["name"], plan["origins"]["model"].replace("./mine.toml", "mine")) == (model, origin)


def test_a_model_that_is_nowhere_is_told_with_who_named_it(sdcli: Sdcli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDCLI_MODEL", "./nowhere")
    done = sdcli("generate", "a star")
    assert done.code in (66, 69) and "nowhere" in done.stderr and "the model is named by: SDCLI_MODEL" in done.stderr


def test_every_record_can_be_set(sdcli: Sdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sdcli.toml").write_text(
        'size = "128x96"\ncount = 2\nmodel = "demo"\ndtype = "fp32"\noutput = "pictures/"\n[tags]\nset = "a"\n'
    )
    monkeypatch.setenv("SDCLI_THREADS", "1")
    plans = sdcli("generate", "a star", "--seed", "4", "--dry-run", "--json").events
    assert [p["path"] for p in plans] == ["pictures/a-star-4.png", "pictures/a-star-5.png"]
    (plan, _) = plans
    assert (plan["request"]["width"], plan["request"]["height"], plan["plan"]["dtype"]) == (128, 96, "fp32")
    origins = plan["origins"]
    assert {origins[f] for f in ("width", "height", "dtype", "model")} == {"project settings"}
    assert (plan["plan"]["threads"], origins["threads"], origins["seed"]) == (1, "SDCLI_THREADS", "flag")
    done = sdcli("generate", "a star", "--steps", "1", "--count", "1", "--json")
    from tests.conftest import record_of

    assert record_of(done.events[0]["path"])["tags"] == {"set": "a"}


def test_settings_reach_batches_and_grids(sdcli: Sdcli, tmp_path: Path) -> None:
    (tmp_path / "sdcli.toml").write_text('model = "demo"\nsteps = 3\n')
    (tmp_path / "p.txt").write_text("a star\na heart --steps 4\n")
    steps = [e["request"]["num_inference_steps"] for e in sdcli("batch", "p.txt", "--dry-run", "--json").events]
    assert steps == [3, 4]
    cells = sdcli("grid", "a star", "--x", "cfg=1,2", "--dry-run", "--json").events
    assert [c["request"]["num_inference_steps"] for c in cells] == [3, 3]
    (tmp_path / "sdcli.toml").write_text('model = "demo"\ncount = 3\n')
    done = sdcli("grid", "a star", "--x", "cfg=1,2", "--dry-run")
    assert done.code == 2 and "project settings says 3" in done.stderr


BAD_FILES = [
    ("a value that does not fit", "# mine\n\nsteps = 0\n", 3, "steps can't be 0", "Steps from noise"),
    ("an unknown key", 'model = "demo"\nstesp = 3\n', 2, "there is no field stesp; did you mean steps", "fields are"),
    ("a key inside a text", 'negative = """\nstesp = 1\n"""\nstesp = 3\n', 4, "there is no field stesp", "fields are"),
    ("a key in quotes", '"stesp" = 3\n', 1, "there is no field stesp", "fields are"),
    ("a table", "steps = 3\n\n[generation]\nseed = 3\n", 3, "there is no field generation", "fields are"),
    ("a dotted key", "generation.seed = 3\n", 1, "there is no field generation", "fields are"),
    ("no TOML", "steps = 3\ncfg = = 7\n", 2, "it is not TOML: Invalid value", "FIELD = VALUE"),
    ("an open text", 'steps = 3\nnegative = """\nbad\n', 4, "it is not TOML", "FIELD = VALUE"),
    ("a key said twice", "steps = 3\nsteps = 4\n", 2, "it is not TOML: Cannot overwrite", "FIELD = VALUE"),
    ("a field said twice", "steps = 3\nnum_inference_steps = 4\n", 2, "num_inference_steps is given twice", "once"),
    ("size and width", 'width = 64\nsize = "64x64"\n', 2, "width is given twice", "once"),
    ("no UTF-8", b'steps = 3\nnegative = "\xff"\n', 2, "it is not UTF-8", "UTF-8"),
    ("a prompt", 'prompt = "a star"\n', 1, "prompt is not set here", "given to a command"),
    ("a preset", 'steps = 3\npreset = "fast"\n', 2, "preset is not set here", "--preset"),
    ("a scheduler", 'scheduler = "eulr"\n', 1, "unknown scheduler 'eulr'; did you mean euler", "sdcli schedulers"),
    ("no number", "cfg = nan\n", 1, "cfg can't be nan", "How closely"),
    ("a date", "steps = 2024-01-01\n", 1, "steps can't be", "Steps from noise"),
    ("a list", "seed = [1, 2]\n", 1, "seed can't be [1, 2]", "Start of the random"),
]


@pytest.mark.parametrize("place", ["user", "project"])
@pytest.mark.parametrize(("text", "line", "reason", "hint"), [b[1:] for b in BAD_FILES], ids=[b[0] for b in BAD_FILES])
def test_bad_settings_are_named_by_file_and_line(
    sdcli: Sdcli, tmp_path: Path, configuration: Path, place: str, text: str | bytes, line: int, reason: str, hint: str
) -> None:
    file = configuration / "sdcli.toml" if place == "user" else tmp_path / "sdcli.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    done = sdcli("generate", "a star", "-m", "demo", "--dry-run")
    shown = file if place == "user" else "sdcli.toml"
    assert done.code == 65 and done.stdout == b""
    assert done.stderr.startswith(f"error: {shown}:{line}: {reason}"), done.stderr
    assert hint in done.stderr.splitlines()[1]


def test_settings_that_cannot_be_read(sdcli: Sdcli, tmp_path: Path) -> None:
    import os

    file = tmp_path / "sdcli.toml"
    file.mkdir()
    assert "sdcli.toml: it is a folder" in sdcli("generate", "a star", "-m", "demo", "--dry-run").stderr
    file.rmdir()
    os.mkfifo(file)
    done = sdcli("generate", "a star", "-m", "demo", "--dry-run")
    assert done.code == 65 and "sdcli.toml: it is no regular file" in done.stderr
    file.unlink()
    file.write_text("# x\n" * 2**19)
    done = sdcli("generate", "a star", "-m", "demo", "--dry-run")
    assert done.code == 65 and "sdcli.toml: it has more than 1 MiB" in done.stderr
    file.write_text("steps = " + "[" * 5000)
    done = sdcli("generate", "a star", "-m", "demo", "--dry-run")
    assert done.code == 65 and "sdcli.toml" in done.stderr
    file.write_bytes(b"\xef\xbb\xbfsteps = 3\r\ncfg = 2\r\n")  # as some editors save it
    assert sdcli("generate", "a star", "-m", "demo", "--dry-run", "--json").events[0]["request"]["guidance_scale"] == 2


BAD_VARIABLES = [
    ({"SDCLI_STESP": "3"}, "SDCLI_STESP sets nothing; did you mean SDCLI_STEPS"),
    ({"SDCLI_STEPS": "many"}, "SDCLI_STEPS: steps can't be 'many'"),
    ({"SDCLI_SCHEDULER": "eulr"}, "SDCLI_SCHEDULER: unknown scheduler 'eulr'"),
    ({"SDCLI_PROMPT": "a star"}, "SDCLI_PROMPT is not looked for"),
    ({"SDCLI_CFG": "2", "SDCLI_GUIDANCE_SCALE": "3"}, "SDCLI_CFG and SDCLI_GUIDANCE_SCALE both set guidance_scale"),
    ({"SDCLI_SIZE": "64x64", "SDCLI_WIDTH": "64"}, "SDCLI_SIZE and SDCLI_WIDTH both set width"),
    ({"SDCLI_TAGS": "red"}, "SDCLI_TAGS: tags is a JSON object"),
    ({"SDCLI_SIZE": "big"}, "SDCLI_SIZE: size is WIDTHxHEIGHT"),
]


@pytest.mark.parametrize(("variables", "said"), BAD_VARIABLES, ids=lambda v: " ".join(v) if isinstance(v, dict) else "")
def test_bad_variables_are_usage_errors(
    sdcli: Sdcli, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = sdcli("generate", "a star", "-m", "demo", "--dry-run")
    assert done.code == 2 and done.stderr.startswith(f"error: {said}"), done.stderr
    assert "  hint: " in done.stderr


def test_a_variable_goes_by_any_name_and_an_empty_one_by_none(sdcli: Sdcli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDCLI_NUM_INFERENCE_STEPS", "3")
    monkeypatch.setenv("SDCLI_SEED", "")
    (plan,) = sdcli("generate", "a star", "-m", "demo", "--dry-run", "--json").events
    assert plan["origins"]["num_inference_steps"] == "SDCLI_NUM_INFERENCE_STEPS"
    assert plan["origins"]["seed"] == "decided at run time"


def test_the_version_and_help_read_no_settings(sdcli: Sdcli, tmp_path: Path) -> None:
    (tmp_path / "sdcli.toml").write_text("this is not TOML")
    assert sdcli("--version").code == 0 and sdcli("generate", "--help").code == 0


def test_the_environment_can_name_the_folder(
    sdcli: Sdcli, tmp_path: Path, configuration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, steps in ((configuration, 5), (tmp_path / "other", 6)):
        folder.mkdir(parents=True)
        (folder / "sdcli.toml").write_text(f"steps = {steps}\n")
    argv = ["generate", "a star", "-m", "demo", "--dry-run", "--json"]
    assert sdcli(*argv).events[0]["request"]["num_inference_steps"] == 5
    monkeypatch.setenv("SDCLI_CONFIG", str(tmp_path / "other"))
    assert sdcli(*argv).events[0]["request"]["num_inference_steps"] == 6
    monkeypatch.setenv("SDCLI_CONFIG", str(tmp_path / "sdcli.txt" / "below a file"))
    (tmp_path / "sdcli.txt").write_text("")
    assert sdcli(*argv).events[0]["request"]["num_inference_steps"] == 25


def test_a_process_reads_them_too(process: Sdcli, tmp_path: Path) -> None:
    (tmp_path / "sdcli.toml").write_text("steps = 5\n")
    done = process("generate", "a star", "-m", "demo", "--dry-run", "--json", env={"SDCLI_CFG": "3"})
    request = done.events[0]["request"]
    assert (request["num_inference_steps"], request["guidance_scale"]) == (5, 3.0)
