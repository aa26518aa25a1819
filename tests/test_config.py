"""`sdcli config`: what is set, by whom, and setting it so that the rest of a file stays as it is."""

from __future__ import annotations

import os
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


REFUSED = [
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


def test_what_is_stronger_is_told(sdcli: Sdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
