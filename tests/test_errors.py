"""What goes wrong, and what then: each failure's code, its line on what happened and its line on what to do."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import Sdcli, record_of

DEMO = ["-m", "demo", "--steps", "1"]
ERROR_KEYS = "schema event id path line exit code message hint".split()


TABLE = [
    # Unknown options and values.
    (["generate"], 2, "there is no PROMPT"),
    (["generate", "x", "--stpes", "3"], 2, "No such option: --stpes"),
    (["generate", "x", "--steps", "many"], 2, "steps can't be 'many'"),
    (["generate", "x", "--hires", "foo"], 2, "--hires can't be 'foo'"),
    (["generate", "x", "--steps", "0"], 2, "--steps can't be '0'"),
    (["generate", "x", "--cfg", "inf"], 2, "--guidance-scale can't be 'inf'"),
    (["generate", "x", "--cfg", "nan"], 2, "--guidance-scale can't be 'nan'"),
    (["generate", "x", "--seed", "-2"], 2, "seed can't be '-2'"),
    (["generate", "x", "--count", "0"], 2, "count can't be '0'"),
    (["generate", "x", "--dtype", "fp8"], 2, "expected one of auto, fp16, bf16, fp32"),
    (["generate", "x", "--device", "gpu"], 2, "device can't be 'gpu'"),
    (["generate", "x", "--attention-slicing", "some"], 2, "--attention-slicing can't be 'some'"),
    (["generate", "x", "--offload", "disk"], 2, "offload can't be 'disk'"),
    (["generate", "x", "--scheduler", "dpm++2mm"], 2, "did you mean dpm++2m"),
    (["generate", "x", "--sampler", "Euler a Karras"], 2, "euler-a"),
    (["generate", "x", "--preset", "fats"], 2, "there is no preset fats; did you mean fast?"),
    (["generate", "x", "--set", "eat=1"], 2, "there is no field eat; did you mean eta"),
    (["generate", "x", "--set", "eta"], 2, "--set wants FIELD=VALUE"),
    (["generate", "x", "--set", "eta=2"], 2, "eta can't be '2'"),
    (["generate", "x", "--set", "eta=1", "--set", "eta=0"], 2, "eta is given twice"),
    (["paint", "x"], 2, "No such command 'paint'"),
    # Combinations that can't be.
    (["generate", "x", *DEMO, "--size", "64x64", "-W", "64"], 2, "width is given twice"),
    (["generate", "x", *DEMO, "--size", "64by64"], 2, "size is WIDTHxHEIGHT"),
    (
        ["generate", "x", *DEMO, "--scheduler", "euler", "--set", "eta=1"],
        2,
        "eta has no effect with scheduler euler",
    ),
    (["generate", "x", *DEMO, "--device", "cpu", "--dtype", "fp16"], 2, "156 times slower"),
    (["generate", "x", *DEMO, "--device", "cpu", "--offload", "model"], 2, "nothing to offload from"),
    (["generate", "x", *DEMO, "--json", "-0"], 2, "both want stdout"),
    (["generate", "x", *DEMO, "--json", "-o", "-"], 2, "both want stdout"),
    (["generate", "x", "y", *DEMO, "-o", "-"], 2, "2 pictures do not go to stdout"),
    (["generate", "x", *DEMO, "-c", "2", "-o", "x.png"], 2, "2 pictures do not go to one path"),
    (["generate", "x", *DEMO, "-o", "x"], 2, "neither a folder nor a picture"),
    (["generate", "x", *DEMO, "-o", "{pormpt}.png"], 2, "did you mean prompt"),
    (["generate", "x", *DEMO, "-o", "x.png", "--format", "jpg"], 2, "ends in .png"),
    (["generate", "x", *DEMO, "--format", "gif"], 2, "format can't be 'gif'"),
    (["generate", "x", *DEMO, "--safety-checker"], 2, "demo has no safety checker"),
    # Sizes that the model can't do.
    (["generate", "x", *DEMO, "-W", "100"], 2, "demo can't draw a width of 100"),
    (["generate", "x", *DEMO, "--size", "64x99999"], 2, "height can't be '99999'"),
    # Models.
    (["generate", "x", "--model", "dmeo"], 69, "there is no model called dmeo; did you mean demo?"),
    (["generate", "x", "--model", "./nothing"], 66, "there is no model at ./nothing"),
    (["generate", "x", "--model", "nothing.safetensors"], 66, "there is no model at nothing.safetensors"),
    (["generate", "x", "--model", "old.ckpt"], 65, "pickle"),
    (
        ["generate", "x", *DEMO, "--vae", "nothing.safetensors"],
        66,
        "there is no autoencoder at nothing.safetensors",
    ),
    # Outputs.
    (["generate", "x", *DEMO, "-o", "/proc/nothing/"], 73, "/proc/nothing"),
    (["generate", "x", *DEMO, "-o", "file/x.png"], 73, "file is not a folder"),
]


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    TABLE,
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refused_in_two_lines(sdcli: Sdcli, argv: list[str], code: int, said: str) -> None:
    Path("file").touch()
    done = sdcli(*argv)
    assert done.code == code, done.stderr
    assert [e["exit"] for e in done.events] == ([code] if "--json" in argv else [])
    lines = done.stderr.splitlines()
    errors = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    assert len(errors) == 1 and said in lines[errors[0]], done.stderr
    assert lines[errors[0] + 1].startswith("  hint: ") and len(lines) == errors[0] + 2, done.stderr
    assert not list(Path().glob("*.png"))


def test_refused_before_torch(probe: object) -> None:
    """All of the table, but for what only the system can refuse, in one process that never imports torch."""
    lines = [(argv, code) for argv, code, _ in TABLE if "/proc/nothing/" not in argv]
    code = (
        "import sys; from sdcli.cli.main import main\n"
        "open('file', 'w').close()\n"
        f"for argv, code in {lines!r}:\n"
        "    assert main(argv) == code, argv\n"
        "    assert 'torch' not in sys.modules, argv\n"
    )
    done = probe(code)  # type: ignore[operator]
    assert done.returncode == 0, done.stderr


def test_an_error_is_one_json_line(sdcli: Sdcli) -> None:
    done = sdcli("generate", "x", "-m", "dmeo", "--json")
    (event,) = done.events
    assert list(event) == ERROR_KEYS
    assert (event["schema"], event["event"], event["exit"], event["code"]) == (1, "error", 69, "model-unavailable")
    assert "demo" in event["hint"] and done.code == 69


def test_a_device_that_is_not_there(sdcli: Sdcli) -> None:
    done = sdcli("generate", "x", *DEMO, "--device", "cuda:7")
    assert done.code == 2 and "there is no device cuda:7" in done.stderr


def test_fp16_without_a_gpu(sdcli: Sdcli) -> None:
    done = sdcli("generate", "x", *DEMO, "--dtype", "fp16")
    assert done.code == 2 and "156 times slower" in done.stderr


def test_slices_finer_than_the_heads(sdcli: Sdcli) -> None:
    done = sdcli("generate", "x", *DEMO, "--attention-slicing", "9999")
    assert done.code == 2 and "slices of 9999 heads" in done.stderr


def test_what_has_no_effect_is_said(sdcli: Sdcli) -> None:
    done = sdcli("generate", "x", *DEMO, "--cfg", "1", "--negative", "red " * 100, "--json")
    assert done.code == 0
    assert done.events[0]["warnings"] == ["negative_prompt has no effect without guidance (a guidance scale over 1)"]


def test_records_do_not_tell_where_a_model_lies(sdcli: Sdcli, tmp_path: Path) -> None:
    from sdcli import models

    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "shapes").symlink_to(models.demo_folder())
    done = sdcli("generate", "x", "-m", "private/shapes", "--steps", "1", "-o", "{model}.png")
    assert done.lines == ["shapes.png"]
    assert record_of("shapes.png")["model"]["name"] == "shapes" and b"private" not in Path("shapes.png").read_bytes()
    assert (
        sdcli("generate", "x", "-m", "private/shapes", "-o", "{model}.png", "--dry-run", "-0").stdout == b"shapes.png\0"
    )


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("generate x -m demo >&-", 73, "stdout is closed"),
        ("schedulers >&-", 73, "stdout is closed"),
        ("generate - -m demo <&-", 66, "stdin is closed"),
        ("generate x --steps 0 2>&-", 2, ""),
        ("--version >/dev/full", 74, "stdout can't be written"),
        ("generate --help >/dev/full", 74, "stdout can't be written"),
    ],
)
def test_closed_and_full_streams(tmp_path: Path, command: str, code: int, said: str) -> None:
    done = subprocess.run(
        f"{sys.executable} -m sdcli {command}", shell=True, stderr=subprocess.PIPE, text=True, cwd=tmp_path, timeout=60
    )
    assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr


def test_stdin_that_is_not_text(process: Sdcli) -> None:
    done = process("generate", "-", *DEMO, stdin=b"a \xff star")
    assert done.code == 65 and "stdin is not UTF-8" in done.stderr


def test_a_prompt_that_is_not_text(process: Sdcli) -> None:
    done = process("generate", b"a \xff star".decode("utf-8", "surrogateescape"), *DEMO)
    assert done.code == 2 and "not UTF-8" in done.stderr


def test_control_characters_do_not_reach_the_terminal(sdcli: Sdcli) -> None:
    done = sdcli("generate", "x", "--model", "\x1b]0;owned\x07\x9b31m")
    assert done.code == 69 and not set(done.stderr) & {"\x1b", "\x07", "\x9b"}


def test_one_of_several_fails(sdcli: Sdcli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second picture's values are made not finite where the decoder hands them over."""
    from sdcli.errors import NotFinite
    from sdcli.pipeline.passes import StableDiffusion

    decode, calls = StableDiffusion._decode, []

    def broken(self: StableDiffusion, latent: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise NotFinite("the values are not finite", "try another")
        return decode(self, latent)

    monkeypatch.setattr(StableDiffusion, "_decode", broken)
    done = sdcli("generate", "a star", *DEMO, "-s", "1", "-c", "3", "--json")
    assert done.code == 1
    assert [(e["event"], e.get("exit")) for e in done.events] == [("image", None), ("error", 76), ("image", None)]
    (planned,) = sdcli("generate", "a star", *DEMO, "-s", "2", "--dry-run", "--json").events
    assert done.events[1]["id"] == planned["id"]
    assert [p.name for p in sorted(Path().glob("*.png"))] == ["a-star-1.png", "a-star-3.png"]


def test_a_bug_says_so(sdcli: Sdcli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdcli.jobs.runner.Runner.run", lambda *a, **k: 1 / 0)
    done = sdcli("generate", "a star", *DEMO)
    assert done.code == 70 and "Traceback" in done.stderr and "please report it" in done.stderr


def test_every_rung_is_announced_and_kept(sdcli: Sdcli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The U-Net runs out of memory as often as the ladder has rungs for a CPU; the rest is real."""
    import torch
    from diffusers import UNet2DConditionModel

    forward, fails = UNet2DConditionModel.forward, [4]

    def short(self: UNet2DConditionModel, *args: object, **kwargs: object) -> object:
        if fails[0]:
            fails[0] -= 1
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", short)
    done = sdcli("generate", "a star", *DEMO, "-s", "1", "-c", "2", "--batch-size", "2", "--json")
    assert done.code == 0, done.stderr
    rungs = ["batch-size-1", "attention-slicing", "attention-slicing-max", "vae-tiling"]
    for event in done.events:
        record = record_of(event["path"])
        assert record["fallbacks"] == rungs and record["plan"]["pack_size"] == 1
        assert record["plan"]["attention_slicing"] == "max" and record["plan"]["vae_tiling"] is True
        assert "out of memory" in record["plan"]["reasons"]["attention_slicing"]
    for said in ("drawing 1 at a time", "slicing attention", "as finely as it goes", "decoding in tiles"):
        assert done.stderr.count(f"{said}\n") == 1
    fails[0] = 99
    done = sdcli("generate", "a star", *DEMO)
    assert done.code == 75 and "after every fall-back" in done.stderr


def test_decoding_again_in_fp32_is_that_pictures_own(sdcli: Sdcli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder's values are made not finite once, in half precision; a CPU's bf16 hardly ever overflows."""
    import torch
    from diffusers import AutoencoderKL

    decode, calls = AutoencoderKL.decode, []

    def broken(self: AutoencoderKL, latent: torch.Tensor, *args: object, **kwargs: object) -> object:
        calls.append(self.dtype)
        found = decode(self, latent, *args, **kwargs)
        return (found[0] * float("nan"),) if len(calls) == 1 else found

    monkeypatch.setattr(AutoencoderKL, "decode", broken)
    done = sdcli("generate", "a star", *DEMO, "-s", "1", "-c", "2", "--dtype", "bf16", "--json")
    assert done.code == 0, done.stderr
    assert calls == [torch.bfloat16, torch.float32, torch.bfloat16]
    assert [record_of(e["path"])["fallbacks"] for e in done.events] == [["vae-fp32"], []]
    assert done.stderr.count("decoding again in fp32") == 1


def _little_memory() -> str:
    """Return code that draws with no more memory than the loaded program has and a little."""
    return (
        "import resource, sys\n"
        "from sdcli import pipeline\n"
        "from sdcli.cli.main import main\n"
        "assert main(['generate', 'x', '-m', 'demo', '--steps', '1', '-o', 'warm.png', '-q', '--threads', '1']) == 0\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + {room} * 2**20,) * 2)\n"
        "sys.exit(main(['generate', 'a red circle', '-m', 'demo', '--steps', '1', '-s', '1', '-o', 'big.png', '--json', *{more}]))"
    )


@pytest.mark.slow
def test_out_of_memory_goes_down_the_ladder(probe: object, tmp_path: Path) -> None:
    """Decoding 1600 x 1600 at once takes more than is there; in tiles it does not."""
    code = _little_memory().format(room=600, more=["--size", "1600x1600", "--threads", "1"])
    done = probe(code)  # type: ignore[operator]
    assert done.returncode == 0, done.stderr
    record = record_of(tmp_path / "big.png")
    assert record["fallbacks"] == ["vae-tiling"] and record["plan"]["vae_tiling"] is True
    assert "out of memory; decoding in tiles" in done.stderr


@pytest.mark.slow
def test_out_of_memory_after_all(probe: object, tmp_path: Path) -> None:
    code = _little_memory().format(room=300, more=["--size", "1600x1600", "--threads", "1"])
    done = probe(code)  # type: ignore[operator]
    assert done.returncode == 75, done.stderr
    event = json.loads(done.stdout.splitlines()[-1])
    assert (event["exit"], event["code"]) == (75, "out-of-memory") and "after every fall-back" in event["message"]
    assert not (tmp_path / "big.png").exists()


def test_a_full_disk(process: Sdcli, tmp_path: Path) -> None:
    """A limit on a file's size stands for a disk that fills while the picture is written."""
    done = process(
        "generate",
        "a star",
        *DEMO,
        "-o",
        "out/",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600)),
    )
    assert done.code == 74, done.stderr
    assert "was not written" in done.stderr
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()], "no half file"


def test_a_full_stdout(tmp_path: Path) -> None:
    for options in (["-o", "-"], ["--json"]):
        with open("/dev/full", "wb") as full:
            command = [sys.executable, "-m", "sdcli", "generate", "a star", *DEMO, *options]
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, cwd=tmp_path, check=False, timeout=240)
        assert done.returncode == 74, done.stderr
        assert b"error: stdout" in done.stderr and b"Traceback" not in done.stderr


def _running(tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    """Start a run that takes long, and wait until it draws."""
    command = [sys.executable, "-m", "sdcli", "generate", "a star", "-m", "demo", "-v", "-o", "out/", *options]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert running.stderr is not None
    for line in running.stderr:
        if line.startswith("vae_tiling"):  # the last of the reasons that -v gives, once the model is loaded
            break
    return running


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_at_once(tmp_path: Path, number: signal.Signals, code: int) -> None:
    running = _running(tmp_path, "--steps", "1000", "--size", "512x512")
    time.sleep(0.5)
    began = time.monotonic()
    running.send_signal(number)
    out, err = running.communicate(timeout=60)
    assert running.returncode == code
    assert time.monotonic() - began < 10
    assert out == "" and "Traceback" not in err and "error: interrupted" in err
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()], "nothing half-written"


def test_ctrl_c_while_libraries_load(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sdcli", "generate", "a star", *DEMO, "--json"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert running.stderr is not None
    assert "loading demo" in running.stderr.readline()
    time.sleep(0.3)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130 and "error: interrupted" in err and "Traceback" not in err
    assert json.loads(out)["exit"] == 130


def test_a_closed_pipe_is_silent(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "sdcli", "generate", "a star", *DEMO, "-c", "3", "-q"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, cwd=tmp_path, check=False, timeout=240)
    os.close(write)
    assert done.returncode == 141 and done.stderr == b""
    read, write = os.pipe()
    os.close(read)
    for argv in (["schedulers"], ["generate", "--help"]):
        done = subprocess.run(
            [sys.executable, "-m", "sdcli", *argv], stdout=write, stderr=subprocess.PIPE, check=False, timeout=60
        )
        assert done.returncode == 141 and done.stderr == b""
    os.close(write)
