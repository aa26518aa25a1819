"""What a shell is told on Tab: commands, options and values, quickly, and never a word of what went wrong."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from sdcli.cli import completing
from sdcli.device import DevicePlan
from sdcli.models import ALIASES, ModelSpec, adapters, aliases
from sdcli.options import options_of, plain_type
from sdcli.output import OutputPlan
from sdcli.request import Adapter, GenerationRequest, JobOptions
from sdcli.schedulers import SCHEDULERS
from sdcli.settings import presets, presets_folder

RECORDS = (GenerationRequest, JobOptions, ModelSpec, DevicePlan, OutputPlan)


@dataclass
class User:
    """A user's folders, and the shells' side of completing."""

    folder: Path

    def env(self, **more: str) -> dict[str, str]:
        hidden = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "SDCLI_CONFIG", "PYTHONWARNINGS")
        own = {k: v for k, v in os.environ.items() if k not in hidden and not k.startswith(("COMP_", "_TYPER", "XDG_"))}
        folders = {
            "HOME": self.folder,
            "XDG_CACHE_HOME": self.folder / "cache",
            "XDG_CONFIG_HOME": self.folder / "config",
        }
        path = f"{self.folder / 'bin'}{os.pathsep}{own['PATH']}"
        return {**own, **{k: str(v) for k, v in folders.items()}, "PATH": path, "TERM": "xterm", **more}

    def ask(self, *words: str, shell: str = "bash", **more: str) -> subprocess.CompletedProcess[str]:
        """Ask as a shell does: the last word is the one that is typed."""
        env = self.env(**{completing.VARIABLE: f"complete_{shell}"}, **more)
        if shell == "bash":
            env |= {"COMP_WORDS": "\n".join(("sdcli", *words)), "COMP_CWORD": str(len(words))}
        else:
            env |= {"_TYPER_COMPLETE_ARGS": " ".join(("sdcli", *words)), "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
        return self.run([sys.executable, "-m", "sdcli"], env)

    def run(self, command: Sequence[str | Path], env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        env = self.env() if env is None else env
        return subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=self.folder, env=env, timeout=60
        )

    def answer(self, *words: str, shell: str = "bash", **more: str) -> list[str]:
        done = self.ask(*words, shell=shell, **more)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.split()


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> User:
    """A user with an index that has been made, and a `sdcli` on the path."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "bin").mkdir()
    program = folder / "bin" / "sdcli"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sdcli "$@"\n')
    program.chmod(0o755)
    found = User(folder)
    assert found.answer("gen") == ["generate"]
    assert (folder / "cache" / "sdcli" / "completion.json").is_file()
    return found


PLAIN = re.compile(r"\w[\w./@+-]*")
EULER = [s.name for s in SCHEDULERS if s.name.startswith("eul")]
PRESETS = sorted(f.stem for f in presets_folder().glob("*.toml"))


TABLE: list[tuple[list[str], list[str]]] = [
    (["ver"], ["verify"]),
    (["generate", '"a star"', "--model", "de"], [a for a in ALIASES if a.startswith("de")]),
    (["generate", '"it\'s"', "it\\'s", "--model", "dem"], ["demo"]),
    (["generate", "--model", "=", "dem"], ["demo"]),
    (["generate", "--model=dem"], ["demo"]),
    (["generate", "--model", "="], list(filter(PLAIN.fullmatch, ALIASES))),
    (["verify", "x.png", "-m", "dem"], ["demo"]),
    (["generate", "--seed", "3", "--scheduler", "eul"], EULER),
    (["grid", "--sampler", "eul"], EULER),
    (["batch", "x.txt", "--preset", "fa"], [n for n in PRESETS if n.startswith("fa")]),
    (["generate", "-p", "fast", "-p", ""], PRESETS),
    (["generate", "--format", ""], ["png", "jpg", "webp", "avif"]),
    (["generate", "--device", "c"], ["cpu", "cuda"]),
    (["generate", "--dtype", "b"], ["bf16"]),
    (["generate", "--sched"], ["--scheduler"]),
    (["generate", "--vae-t"], ["--vae-tiling"]),
    (["generate", "--no-vae-t"], ["--no-vae-tiling"]),
    (["generate", "--prompt-syntax", ""], ["a1111", "compel", "plain"]),
    (["tokens", "--prompt-syntax", "c"], ["compel"]),
    (["tokens", "--long-prompt", ""], ["chunk", "cut", "error"]),
    (["batch", "--long-prompt", ""], ["chunk", "cut", "error"]),
    (["generate", "--resize", ""], ["fit", "fill", "stretch"]),
    (["grid", "--control-preprocess", ""], ["none", "canny", "blur", "gray", "invert"]),
    (["generate", "--upscale", ""], ["lanczos"]),
    (["config", "ge"], ["get"]),
    (["config", "set", "num_inf"], ["num_inference_steps"]),
    # Files: what sdcli says nothing of, bash completes as files.
    (["batch", "pro"], []),
    (["inspect", ""], []),
    (["generate", "--output", "pic"], []),
    (["generate", "--init-image", "pic"], []),
    (["generate", "--mask", ""], []),
    (["generate", "--vary", ""], []),
    # A path to an adapter, and the picture that one reads; bash makes a word of the =.
    (["generate", "--lora", "./"], []),
    (["generate", "--controlnet", "edges", "=", "pic"], []),
    (["generate", "--steps", ""], []),
    # No such command, and no such option.
    (["nothing", "--mod"], []),
    (["generate", "--nothing", "de"], []),
]
# What `python -m sdcli` does with each, in one process.
EACH = """
import contextlib, io, json, os, sys
from sdcli.cli import completing

for words in json.load(sys.stdin):
    os.environ |= {"COMP_WORDS": "\\n".join(["sdcli", *words]), "COMP_CWORD": str(len(words))}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert completing.complete() == 0
    print(json.dumps(out.getvalue().split()))
"""


def test_words_are_completed(user: User) -> None:
    env = user.env(**{completing.VARIABLE: "complete_bash"})
    asked = json.dumps([words for words, _ in TABLE])
    done = subprocess.run(
        [sys.executable, "-c", EACH], input=asked, capture_output=True, text=True, env=env, timeout=60
    )
    assert done.stderr == ""
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(w, a) for (w, _), a in zip(TABLE, answers, strict=True)] == TABLE


def test_a_command_offers_every_option_that_a_field_declares(user: User) -> None:
    offered = set(user.answer("generate", "--")) | set(user.answer("generate", "-"))
    flags = {f for record in RECORDS for option in options_of(record) for f in option.flags}
    assert flags <= offered
    switches = [o for record in RECORDS for o in options_of(record) if o.flags and plain_type(o.type) is bool]
    assert {f"--no-{o.flags[0][2:]}" for o in switches} <= offered
    assert {"--preset", "--size", "--set", "--json", "--help"} <= offered


def test_commands_are_offered_with_what_they_are_for(user: User) -> None:
    from sdcli.cli.main import COMMANDS

    lines = dict(line.split("\t") for line in user.ask("", shell="fish").stdout.splitlines())
    assert set(lines) == set(COMMANDS)
    assert all(len(text) > 10 for text in lines.values())
    quality = user.ask("generate", "--qual", shell="zsh").stdout
    assert quality.startswith("_arguments") and '"--quality":"' in quality


def test_models_presets_and_aliases_of_the_user_are_known(tmp_path: Path) -> None:
    user = User(tmp_path)
    hub, config = tmp_path / "cache/huggingface/hub", tmp_path / "config/sdcli"
    for name in ("models--org--fine-model", "models--org--$(touch x)", "models--a--b;c", "datasets--org--data"):
        (hub / name).mkdir(parents=True)
    for folder in (config / "presets", tmp_path / "presets"):
        folder.mkdir(parents=True)
    (config / "aliases.toml").write_text('mine = "org/fine-model"\n"a`b" = "x/y"\n')
    (config / "presets/dusk.toml").touch()
    (tmp_path / "presets/dawn.toml").touch()
    (tmp_path / "presets/d$(touch x).toml").touch()
    assert user.answer("generate", "--model", "org") == ["org/fine-model"]
    assert {"mine", "demo", "org/fine-model"} <= set(user.answer("generate", "--model", ""))
    assert user.answer("generate", "--vae", "") == ["org/fine-model"]
    assert user.answer("generate", "--preset", "d") == ["dawn", "dusk"]
    # What a shell would evaluate is offered in none of them.
    for shell in ("bash", "zsh", "fish"):
        said = "".join(user.ask("generate", option, "", shell=shell).stdout for option in ("--model", "--preset"))
        assert "fine-model" in said and "dusk" in said
        assert not re.search(r"touch|;|`", said)
    # An unreadable table of aliases takes nothing else away.
    (config / "aliases.toml").write_text("= nonsense")
    assert user.answer("generate", "--model", "org") == ["org/fine-model"]


def test_adapters_are_known_by_their_names(tmp_path: Path) -> None:
    """Those in the folder of adapters; a ControlNet may be a folder."""
    user = User(tmp_path)
    folder = tmp_path / "config/sdcli/adapters"
    for file in (
        "oil.safetensors", "sdxl/film.v2.safetensors", "o$(touch x).safetensors", "old.pt", "edges/config.json",
        "edges/diffusion_pytorch_model.safetensors",
    ):  # fmt: skip
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    for flag in ("--lora", "--embedding", "--ip-adapter"):
        assert user.answer("generate", flag, "") == ["film.v2", "oil"]
    assert user.answer("batch", "x.txt", "--controlnet", "") == ["edges", "film.v2", "oil"]
    assert user.answer("generate", "--lora", "oil", "--lora", "fi") == ["film.v2"]
    assert user.answer("generate", "--lora", "", SDCLI_ADAPTER_DIR=str(folder / "sdxl")) == ["film.v2"]
    # They are found by these names.
    for name in ("edges", "film.v2", "oil"):
        assert adapters.find("controlnet", Adapter(name=name), [folder]).path is not None


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"HF_HOME": "~/models"},
        {"HF_HUB_CACHE": "/models/hub", "HF_HOME": "/elsewhere"},
        {"HUGGINGFACE_HUB_CACHE": "/old/hub"},
        {"XDG_CACHE_HOME": "/caches"},
    ],
    ids=str,
)
def test_the_hubs_cache_is_the_librarys(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found a second time, without an import that would take too long."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    code = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert completing.hub_cache() == Path(done.stdout.strip())


def test_names_are_those_that_the_rooms_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Presets and aliases are looked up a second time too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDCLI_CONFIG", str(tmp_path / "config"))
    assert completing.presets() == list(presets.known())
    aliases.add("mine", "org/name")
    assert "mine" in completing.models()
    for file in ("presets/dawn.toml", "config/presets/dusk.toml", "config/presets/dawn.toml", "presets/no.txt"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("steps = 3\n")
    assert completing.presets() == list(presets.known())
    assert {"dawn", "dusk"} <= set(completing.presets())


def test_an_answer_imports_no_more_than_it_needs(user: User) -> None:
    env = user.env(**{completing.VARIABLE: "complete_zsh"}, _TYPER_COMPLETE_ARGS="sdcli generate --model de")
    done = user.run([sys.executable, "-X", "importtime", "-m", "sdcli"], env)
    assert '"demo"' in done.stdout
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert {"typer", "sdcli.cli.completing"} <= imported
    assert not {m.split(".")[0] for m in imported} & {"torch", "diffusers", "huggingface_hub", "rich", "PIL", "msgspec"}
    ours = {m for m in imported if m.startswith("sdcli")}
    allowed = {"places", "errors", "cli", "cli.main", "cli.completing", "cli.results", "cli.screen", "__main__"}
    assert ours <= {"sdcli", *(f"sdcli.{name}" for name in allowed)}


def test_the_index_is_made_again_when_it_is_bad_or_old(user: User, tmp_path: Path) -> None:
    file = user.folder / "cache/sdcli/completion.json"
    good = json.loads(file.read_text())
    for bad in (b"\xff{", json.dumps({**good, "key": "an older one", "commands": {}}).encode()):
        file.write_bytes(bad)
        assert user.answer("gen") == ["generate"]
        assert json.loads(file.read_text()) == good


def test_without_a_cache_the_answer_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file is in its place")
    assert User(tmp_path).answer("generate", "--model", "dem") == ["demo"]


@pytest.mark.parametrize(
    "env",
    [
        {"COMP_WORDS": "sdcli\ngen", "COMP_CWORD": "many"},
        {"COMP_WORDS": "sdcli\ngen"},
        {completing.VARIABLE: "complete_nothing"},
        {completing.VARIABLE: "nonsense"},
        {completing.VARIABLE: "source_nothing"},
    ],
    ids=str,
)
def test_what_fails_is_silent(user: User, env: dict[str, str]) -> None:
    done = user.run([sys.executable, "-m", "sdcli"], user.env(**{completing.VARIABLE: "complete_bash", **env}))
    assert done.returncode != 0
    assert done.stderr == ""
    assert "Traceback" not in done.stdout


def test_an_import_that_fails_is_silent(user: User, tmp_path: Path) -> None:
    """As after an upgrade that was broken off."""
    (tmp_path / "platformdirs.py").write_text("raise ImportError('broken')")
    done = user.ask("gen", PYTHONPATH=str(tmp_path))
    assert (done.stdout, done.stderr) == ("", "")
    assert done.returncode == 1


# Real shells


def test_bash_completes(user: User) -> None:
    """The script that `--show-completion` prints, run as bash runs it."""
    script = user.run(["bash", "-c", "sdcli --show-completion; exit $?"])
    assert (script.returncode, script.stderr) == (0, "")
    calls = """
        COMP_WORDS=(sdcli generate --model de) COMP_CWORD=3
        _sdcli_completion sdcli; printf '%s,' "${COMPREPLY[@]}"
        COMP_WORDS=(sdcli gen) COMP_CWORD=1
        _sdcli_completion sdcli; printf '%s' "${COMPREPLY[@]}"
        complete -p sdcli
    """
    done = user.run(["bash", "--norc", "-c", script.stdout + calls])
    assert done.stderr == ""
    assert done.stdout.split("complete ")[0] == "demo,generate"
    assert "-o default -F _sdcli_completion sdcli" in done.stdout


def test_bash_installs(tmp_path: Path, user: User) -> None:
    env = {**user.env(), "HOME": str(tmp_path)}
    (tmp_path / ".bashrc").write_text("# mine\n")
    done = user.run(["bash", "-c", "sdcli --install-completion; exit $?"], env)
    assert (done.returncode, done.stderr) == (0, "")
    assert "# mine" in (tmp_path / ".bashrc").read_text()
    again = user.run(["bash", "-c", "source ~/.bashrc; complete -p sdcli"], env)
    assert "_sdcli_completion" in again.stdout


def typed(command: list[str], env: dict[str, str], cwd: Path, steps: list[tuple[bytes, str]]) -> str:
    """Type into a program on a terminal; after each text wait for what a pattern says. Return all that was shown."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(cwd)
        os.execvpe(command[0], command, env)
    shown = ""
    try:
        for keys, pattern in steps:
            os.write(terminal, keys)
            began, seen = time.monotonic(), len(shown)
            while not re.search(pattern, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown[seen:])):
                assert time.monotonic() - began < 30, f"{pattern!r} was not shown after {keys!r}: {shown[seen:]!r}"
                if select.select([terminal], [], [], 0.2)[0]:
                    shown += os.read(terminal, 65536).decode(errors="replace")
                    # fish asks what the terminal is, and waits.
                    if "\x1b[c" in shown[-200:] or "\x1b[0c" in shown[-200:]:
                        os.write(terminal, b"\x1b[?1;2c")
        return shown
    finally:
        os.close(terminal)
        os.kill(child, 9)
        os.waitpid(child, 0)


SHELLS: dict[str, tuple[list[str], Callable[[Path, str], str]]] = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], lambda folder, script: f"source {script}\n"),
    "zsh": (
        ["zsh", "-f", "-i"],
        lambda folder, script: f"autoload -Uz compinit; compinit -u -d {folder}/dump; source {script}\n",
    ),
    "fish": (["fish", "--no-config", "-i"], lambda folder, script: f"source {script}\n"),
}


@pytest.mark.outside
@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_on_a_terminal_completes(shell: str, user: User, tmp_path: Path) -> None:
    command, load = SHELLS[shell]
    shown = user.run([shell, "-c", f"sdcli --show-completion; exit {'$status' if shell == 'fish' else '$?'}"])
    assert (shown.returncode, shown.stderr) == (0, "")
    by_name = user.run(["sdcli"], user.env(**{completing.VARIABLE: f"source_{shell}"}))
    assert by_name.stdout == shown.stdout
    script = tmp_path / f"script.{shell}"
    script.write_text(shown.stdout)
    (tmp_path / "prompts-of-mine.txt").touch()
    env = user.env(PS1="ready> ", PROMPT_EOL_MARK="")
    told = typed(
        command, env, tmp_path,
        [
            (load(tmp_path, str(script)).encode() + b"echo lo''aded\n", "loaded"),
            (b"sdcli gene\t", "generate "),
            (b"--model dem\t", "demo "),
            (b"--scheduler euler-ka\t", "euler-karras "),
            (b"--preset fas\t", "fast "),
            (b"\x15sdcli batch prompts-of\t", "prompts-of-mine.txt"),
        ],
    )  # fmt: skip
    assert "Traceback" not in told and "error" not in told


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["gen"], ["generate", "--model", "de"], ["batch", "--scheduler", "eul"]], ids=" ".join
)
def test_an_answer_takes_hardly_longer_than_the_import_of_typer(user: User, words: list[str]) -> None:
    """Processor time, the least of eleven, side by side: what else the machine does takes no part in it."""
    env = user.env(
        **{completing.VARIABLE: "complete_bash"}, COMP_WORDS="\n".join(["sdcli", *words]), COMP_CWORD=str(len(words))
    )

    def seconds(command: list[str]) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        user.run(command, env)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    pairs = [
        (seconds([sys.executable, "-c", "import typer"]), seconds([sys.executable, "-m", "sdcli"])) for _ in range(11)
    ]
    ratio = min(answer for _, answer in pairs) / min(alone for alone, _ in pairs)
    assert ratio < 1.6
