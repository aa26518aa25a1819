"""Fuzzes what reads pictures, with coverage to guide it: `python -m tests.fuzz_readers -max_total_time=600`.

An input is either a file (its first byte is 255) or texts, each behind a byte that says which keyword it has. It begins with
the corpus. libFuzzer's own options set how long it runs, what a single input may take (`-timeout`) and how much memory it
may keep (`-rss_limit_mb`); whatever is raised, other than a refusal, ends it.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["sdcli.metadata"]):
    from sdcli.errors import BadInput
    from sdcli.metadata import inspecting, texts_of
    from sdcli.metadata.readers import readers

    readers()  # Now, so that they are instrumented as well.

from tests.corpus import SAMPLES
from tests.test_readers import KEYWORDS, check_any

# Between texts; UTF-8 never has it.
BETWEEN = b"\xfe"
FILE = b"\xff"


def seed(number: int, folder: Path) -> None:
    """Write a sample as a file and as its texts."""
    data = SAMPLES[number].make()
    (folder / f"{number}-file").write_bytes(FILE + data)
    texts = {k: v for k, v in texts_of(io.BytesIO(data)).items() if k in KEYWORDS}
    said = BETWEEN.join(bytes([KEYWORDS.index(k)]) + v.encode("utf-8", "replace") for k, v in texts.items())
    (folder / f"{number}-texts").write_bytes(said)


def one(data: bytes) -> None:
    if data.startswith(FILE):
        try:
            inspecting.inspect_open(io.BytesIO(data[1:]), "x", check=True)
        except BadInput:
            pass
        return
    parts = [part for part in data.split(BETWEEN) if part]
    check_any({KEYWORDS[part[0] % len(KEYWORDS)]: part[1:].decode("utf-8", "replace") for part in parts})


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for number in range(len(SAMPLES)):
            seed(number, Path(folder))
        atheris.Setup([*sys.argv, folder], one)
        atheris.Fuzz()
