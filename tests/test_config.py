"""`sdcli config`: what is set, by whom, and setting it so that the rest of a file stays as it is."""

from __future__ import annotations

import fcntl
import os
import pty
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest

from sdcli.options import options_of
from sdcli.settings import RECORDS
from tests.conftest import Sdcli

MINE = """# what I like
model = "demo"  # small

# and how
steps = 30    # thirty
negative = '''
blurry'''

[tags]
by = "me"  # whoever that is
"""


def put(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sdcli.toml").write_text(text)
    return folder / "sdcli.toml"


def test_show_says_each_value_and_its_origin(
    sdcli: Sdcli, tmp_path: Path, configuration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(configuration, MINE)
    put(tmp_path, "steps = 20\nwidth = 128\n")
    monkeypatch.setenv("SDCLI_CFG", "3")
    done = sdcli("config", "show")
    assert done.code == 0 and done.stderr == ""
    shown = {line.split()[0]: line.split(maxsplit=1)[1] for line in done.lines}
    assert {k: " ".join(v.split()) for k, v in shown.items()} == {
        "model": '"demo" user settings', "num_inference_steps": "20 project settings", "width": "128 project settings",
        "guidance_scale": "3.0 SDCLI_CFG", "negative_prompt": '"blurry" user settings',
        "tags": '{"by": "me"} user settings',
    }  # fmt: skip
    events = {e["key"]: e for e in sdcli("config", "show", "--json").events}
    assert set(events) == set(shown)
    assert events["num_inference_steps"] == {
        "schema": 1, "event": "setting", "key": "num_inference_steps", "value": 20, "origin": "project settings",
        "default": 25,
    }  # fmt: skip


def test_show_all_has_every_field(sdcli: Sdcli) -> None:
    assert sdcli("config", "show").lines == []
    events = sdcli("config", "show", "--all", "--json").events
    assert [e["key"] for e in events] == [o.field for record in RECORDS for o in options_of(record)]
    assert all(e["origin"] == "default" and e["value"] == e["default"] for e in events)
    assert len(sdcli("config", "show", "--all").lines) == len(events)


def test_get_says_what_is_in_force(sdcli: Sdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, 'steps = 20\nnegative = "bl\u00fcrry"\n')
    assert sdcli("config", "get", "steps").lines == ["20"]
    assert sdcli("config", "get", "num-inference-steps").lines == ["20"]
    assert sdcli("config", "get", "negative").lines == ["bl\u00fcrry"]
    assert sdcli("config", "get", "offload").lines == ["none"], "the default"
    assert sdcli("config", "get", "seed").lines == [""]
    monkeypatch.setenv("SDCLI_STEPS", "21")
    (event,) = sdcli("config", "get", "steps", "--json").events
    assert (event["value"], event["origin"], event["default"]) == (21, "SDCLI_STEPS", 25)


WRITTEN: list[tuple[str, str, dict[str, Any]]] = [
    ("steps", "30", {"num_inference_steps": 30}),
    ("cfg", "7", {"guidance_scale": 7.0}),
    ("vae-tiling", "true", {"vae_tiling": True}),
    ("model", "demo", {"model": "demo"}),
    ("size", "128x96", {"width": 128, "height": 96}),
    ("tags", '{"a": "b"}', {"tags": {"a": "b"}}),
    ("sign", '["cert.pem", "key.pem"]', {"sign": ["cert.pem", "key.pem"]}),
    ("negative", 'a "quoted" \\ \x07 text\nin lines', {"negative_prompt": 'a "quoted" \\ \x07 text\nin lines'}),
    ("batch_size", "auto", {"batch_size": "auto"}),
    ("scheduler", "Euler a", {"scheduler": "Euler a"}),
]


@pytest.mark.parametrize(("key", "value", "written"), WRITTEN, ids=[w[0] for w in WRITTEN])
def test_what_is_set_is_there(
    sdcli: Sdcli, tmp_path: Path, configuration: Path, key: str, value: str, written: dict[str, Any]
) -> None:
    assert sdcli("config", "set", key, value).code == 0
    assert tomllib.loads((configuration / "sdcli.toml").read_text()) == written
    assert not (tmp_path / "sdcli.toml").exists()
    if key == "sign":
        assert sdcli("config", "show", "--json").events[0]["value"] == written["sign"]
        return  # A project's is refused, see below.
    assert sdcli("config", "set", key, value, "--project").code == 0
    assert tomllib.loads((tmp_path / "sdcli.toml").read_text()) == written
    shown = {e["key"]: (e["value"], e["origin"]) for e in sdcli("config", "show", "--json").events}
    assert shown == {k: (v, "project settings") for k, v in written.items()}
    assert sdcli("config", "unset", key, "--project").code == 0
    assert tomllib.loads((tmp_path / "sdcli.toml").read_text()) == {}


def test_comments_and_the_rest_stay(sdcli: Sdcli, configuration: Path) -> None:
    file = put(configuration, MINE)
    assert sdcli("config", "set", "num_inference_steps", "40").code == 0
    assert file.read_text() == MINE.replace("steps = 30 ", "steps = 40 ")
    assert sdcli("config", "set", "seed", "7").code == 0
    with_seed = tomllib.loads(file.read_text())
    assert (with_seed["seed"], with_seed["tags"]) == (7, {"by": "me"}), "not inside the table"
    assert sdcli("config", "unset", "seed").code == 0
    assert sdcli("config", "set", "--", "steps", "30").code == 0
    assert file.read_text() == MINE
    assert sdcli("config", "unset", "cfg_scale").code == 2
    assert sdcli("config", "unset", "model").code == 0
    assert "# what I like" in file.read_text() and "demo" not in file.read_text()


def test_setting_the_same_again_writes_nothing(sdcli: Sdcli, tmp_path: Path) -> None:
    file = put(tmp_path, "steps = 3\n")
    before = file.stat().st_ino
    done = sdcli("config", "set", "steps", "3", "--project")
    assert done.code == 0 and "already" in done.stderr and file.stat().st_ino == before
    done = sdcli("config", "unset", "cfg", "--project")
    assert done.code == 0 and "is not set in" in done.stderr and file.stat().st_ino == before


def test_size_is_two_settings(sdcli: Sdcli, tmp_path: Path) -> None:
    file = put(tmp_path, '# square\nsize = "128x128"\n')
    assert sdcli("config", "set", "width", "64", "--project").code == 0
    assert tomllib.loads(file.read_text()) == {"width": 64, "height": 128}
    assert sdcli("config", "unset", "size", "--project").code == 0
    assert tomllib.loads(file.read_text()) == {}
    assert sdcli("config", "get", "size").code == 2


def test_size_can_be_asked_for(sdcli: Sdcli, configuration: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sdcli("config", "set", "width", "64")
    done = sdcli("config", "get", "size")
    assert done.code == 2 and "size is not set: only width is" in done.stderr
    sdcli("config", "set", "size", "128x96")
    done = sdcli("config", "get", "size")
    assert (done.code, done.lines) == (0, ["128x96"])
    monkeypatch.setenv("SDCLI_HEIGHT", "64")
    (event,) = sdcli("config", "get", "size", "--json").events
    assert event["value"] == "128x64" and event["origin"] == "user settings, SDCLI_HEIGHT"
    monkeypatch.delenv("SDCLI_HEIGHT")
    assert sdcli("config", "unset", "size").code == 0
    done = sdcli("config", "get", "size")
    assert (done.code, done.stdout) == (2, b"") and "size is not set: the model decides" in done.stderr


# A field, what it is set to in a folder that has `here/`, and whether the user's settings keep the absolute path.
RELATIVE = [
    ("model", "./here", True),
    ("model", "here", True),
    ("vae", "../vae.safetensors", True),
    ("model-config", "here", True),
    ("wildcards", "here/", True),
    ("output", "./pictures/{seed}.png", True),
    ("output", "here/", True),
    ("output", "pictures/", False),
    ("output", "-", False),
    ("model", "org/name", False),
    ("model", "demo", False),
    ("model", "mine", False),
    ("negative", "here", False),
]


@pytest.mark.parametrize(("key", "value", "absolute"), RELATIVE, ids=[f"{r[0]} {r[1]}" for r in RELATIVE])
def test_the_users_paths_are_absolute(
    sdcli: Sdcli, tmp_path: Path, configuration: Path, key: str, value: str, absolute: bool
) -> None:
    for name in ("here", "demo", "mine"):
        (tmp_path / name).mkdir()
    configuration.mkdir(parents=True)
    (configuration / "aliases.toml").write_text('mine = "org/name"\n')
    (field,) = options_by(key)
    done = sdcli("config", "set", key, value)
    written = tomllib.loads((configuration / "sdcli.toml").read_text())[field]
    assert done.code == 0
    assert written == (os.path.normpath(tmp_path / value) + "/" * value.endswith("/") if absolute else value)
    assert (f"it stands there as {written}" in done.stderr) is absolute
    sdcli("config", "set", key, value, "--project")
    assert tomllib.loads((tmp_path / "sdcli.toml").read_text()) == {field: value}


def options_by(key: str) -> set[str]:
    return {o.field for record in RECORDS for o in options_of(record) if key.replace("-", "_") in o.names}


def test_a_folder_with_braces_is_no_template(sdcli: Sdcli, tmp_path: Path, configuration: Path) -> None:
    from sdcli.cli.main import main

    (tmp_path / "{seed}").mkdir()
    os.chdir(tmp_path / "{seed}")
    assert main(["config", "set", "output", "./{width}.png"]) == 0
    (plan,) = sdcli("generate", "a star", "-m", "demo", "--seed", "4", "--dry-run", "--json").events
    assert plan["path"] == str(tmp_path / "{seed}" / "128.png")


FOREIGN = [
    ('output = "../victim.png"', "output", "../victim.png"),
    ('output = "pictures/../../{id}.png"', "output", "pictures/../../{id}.png"),
    ('output = "/gone/victim.png"', "output", "/gone/victim.png"),
    ("overwrite = true", "overwrite", "true"),
    ("overwrite = false", "overwrite", "false"),
    ('sign = ["cert.pem", "key.pem"]', "sign", '["cert.pem", "key.pem"]'),
]


@pytest.mark.parametrize(("line", "field", "value"), FOREIGN, ids=[f[0] for f in FOREIGN])
def test_whose_folder_it_is_decides_nothing_outside_of_it(
    sdcli: Sdcli, tmp_path: Path, configuration: Path, line: str, field: str, value: str
) -> None:
    file = put(tmp_path, f"steps = 3\n{line}\n")
    for argv in (["generate", "x", "-m", "demo", "--dry-run"], ["config", "show"]):
        done = sdcli(*argv)
        assert done.code == 65 and done.stderr.startswith(f"error: sdcli.toml:2: {line.split()[0]} "), done.stderr
        assert "set it in your own settings, or give the flag" in done.stderr
    assert sdcli("config", "unset", field, "--project").code == 0 and file.read_text() == "steps = 3\n"
    done = sdcli("config", "set", field, value, "--project")
    assert done.code == 2 and "in your own settings" in done.stderr and file.read_text() == "steps = 3\n"
    assert sdcli("config", "set", field, value).code == 0
    assert field in (configuration / "sdcli.toml").read_text()


@pytest.mark.parametrize("output", ["pictures/", "a..b/{id}.png", "./x.png", "..."])
def test_a_folder_of_its_own_is_a_projects_affair(sdcli: Sdcli, tmp_path: Path, output: str) -> None:
    put(tmp_path, f'output = "{output}"\n')
    assert sdcli("config", "get", "output").lines == [output]


def test_a_foreign_folder_does_not_steer_a_terminal(sdcli: Sdcli, tmp_path: Path) -> None:
    put(tmp_path, 'negative = "a\\u001b[31m\\u009b31m"\n')
    assert sdcli("config", "get", "negative").stdout == "a\x1b[31m\x9b31m\n".encode()
    for argv in (["get", "negative"], ["show"]):
        ours, theirs = pty.openpty()
        done = subprocess.run([sys.executable, "-m", "sdcli", "config", *argv], stdout=theirs, cwd=tmp_path, timeout=60)
        os.close(theirs)
        shown = os.read(ours, 10_000)
        os.close(ours)
        assert done.returncode == 0 and b"[31m" in shown
        assert b"\x1b" not in shown and "\x9b".encode() not in shown


def test_what_somebody_else_sets_meanwhile_is_kept(sdcli: Sdcli, configuration: Path) -> None:
    file = put(configuration, "steps = 3\n")
    holder = os.open(configuration, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)

    def end() -> None:
        file.write_text("steps = 3\ncfg = 2.0\n")
        os.close(holder)

    ending = threading.Timer(0.3, end)
    ending.start()
    assert sdcli("config", "set", "seed", "7").code == 0
    ending.join()
    assert tomllib.loads(file.read_text()) == {"steps": 3, "cfg": 2.0, "seed": 7}
    assert os.listdir(configuration) == ["sdcli.toml"], "nothing is left beside it"


REFUSED = [
    (("set", "device", "gpu"), "device can't be 'gpu': auto, cpu, cuda, cuda:N, mps or xpu"),
    (("set", "attention-slicing", "yes"), "can't be 'yes': auto, on, off, max or heads at once"),
    (("set", "safety-checker", "yes"), "can't be 'yes': expected true or false"),
    (("set", "batch-size", "all"), "can't be 'all': Pictures drawn in one pass: N or auto"),
    (("set", "stesp", "3"), "there is no field stesp; did you mean steps"),
    (("set", "steps", "many"), "steps can't be 'many': expected int"),
    (("set", "steps", "0"), "config set: steps can't be '0'"),
    (("set", "scheduler", "eulr"), "unknown scheduler 'eulr'; did you mean euler"),
    (("set", "prompt", "a star"), "prompt is not set here"),
    (("set", "preset", "fast"), "preset is not set here"),
    (("set", "seed", "null"), "seed can't be set to nothing"),
    (("set", "dtype", "fp61"), "did you mean fp16"),
    (("get", "stesp"), "there is no field stesp; did you mean steps"),
    (("unset", "stesp"), "there is no field stesp; did you mean steps"),
    (("frobnicate",), "frobnicate"),
    ((), "Missing command"),
]


@pytest.mark.parametrize(("argv", "said"), REFUSED, ids=[" ".join(r[0]) or "nothing" for r in REFUSED])
def test_what_cannot_be_is_refused_and_not_written(
    sdcli: Sdcli, configuration: Path, argv: tuple[str, ...], said: str
) -> None:
    done = sdcli("config", *argv)
    assert (done.code, done.stdout) == (2, b"") and said in done.stderr, done.stderr
    assert not configuration.exists()


def test_a_bad_file_can_be_mended(sdcli: Sdcli, tmp_path: Path) -> None:
    file = put(tmp_path, "stesp = 3\ncfg = 2\n")
    done = sdcli("config", "show")
    assert done.code == 65 and "sdcli.toml:1: there is no field stesp" in done.stderr
    done = sdcli("config", "set", "cfg", "3", "--project")
    assert done.code == 0 and "warning: sdcli.toml:1: there is no field stesp" in done.stderr
    assert sdcli("config", "unset", "stesp", "--project").code == 0
    assert file.read_text() == "cfg = 3.0\n"
    file.write_text("steps = \n")
    done = sdcli("config", "set", "cfg", "3", "--project")
    assert done.code == 65 and "sdcli.toml:1: it is not TOML" in done.stderr and file.read_text() == "steps = \n"


def test_what_is_stronger_is_told(
    sdcli: Sdcli, tmp_path: Path, configuration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "steps = 3\n")
    assert "comes from elsewhere, though: project settings" in sdcli("config", "set", "steps", "4").stderr
    monkeypatch.setenv("SDCLI_CFG", "3")
    assert "comes from elsewhere, though: SDCLI_CFG" in sdcli("config", "set", "cfg", "4", "--project").stderr
    assert "elsewhere" not in sdcli("config", "set", "steps", "5", "--project").stderr


def test_where_says_the_paths(
    sdcli: Sdcli, tmp_path: Path, configuration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "")
    places = {e["name"]: (e["path"], e["exists"]) for e in sdcli("config", "where", "--json").events}
    assert places["user settings"] == (str(configuration / "sdcli.toml"), False)
    assert places["project settings"] == ("sdcli.toml", True)
    assert places["user presets"] == (str(configuration / "presets"), False)
    assert places["shipped presets"][1] and places["project presets"] == ("presets", False)
    monkeypatch.setenv("SDCLI_CONFIG", str(tmp_path / "here"))
    assert str(tmp_path / "here" / "sdcli.toml") in sdcli("config", "where").stdout.decode()


def test_a_link_stays_a_link(sdcli: Sdcli, tmp_path: Path, configuration: Path) -> None:
    kept = put(tmp_path / "dotfiles", "steps = 3\n")
    configuration.mkdir(parents=True)
    (configuration / "sdcli.toml").symlink_to(kept)
    assert sdcli("config", "set", "steps", "4").code == 0
    assert (configuration / "sdcli.toml").is_symlink() and kept.read_text() == "steps = 4\n"
    assert os.listdir(kept.parent) == ["sdcli.toml"], "nothing is left beside it"


def test_a_folder_that_cannot_be_made(sdcli: Sdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SDCLI_CONFIG", str(tmp_path / "file" / "below"))
    done = sdcli("config", "set", "steps", "4")
    assert done.code == 73 and "error: " in done.stderr


def test_a_failure_is_json_where_json_is_wanted(sdcli: Sdcli, tmp_path: Path) -> None:
    put(tmp_path, "stesp = 3\n")
    (event,) = sdcli("config", "show", "--json").events
    assert (event["event"], event["exit"], event["code"]) == ("error", 65, "bad-input")
    (tmp_path / "sdcli.toml").unlink()
    assert sdcli("config", "get", "cfgg", "--json").events[0]["exit"] == 2


def test_each_part_has_examples(sdcli: Sdcli) -> None:
    for part in ("show", "get", "set", "unset", "where"):
        done = sdcli("config", part, "-h")
        assert done.code == 0 and b"Examples:" in done.stdout and f"sdcli config {part}".encode() in done.stdout
