"""`--sign`: pictures say by Content Credentials that sdcli made them, and any later change of them shows."""

from __future__ import annotations

import io
import json
import re
import shutil
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import c2pa
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID
from PIL import Image

from sdcli import __version__, metadata, settings
from sdcli.errors import BadInput, OutputFailed, SdcliError, UsageError
from sdcli.metadata import signing
from sdcli.metadata.signing import Signer, check, signer
from sdcli.output import OutputPlan
from tests.conftest import Sdcli
from tests.test_metadata import PICTURE, chunks, record

FORMATS = list(metadata.FORMATS)
DRAW = ("--model", "demo", "--dtype", "fp32", "--steps", "1")
SECRET = "a prompt that is nobody's business"


# Certificates


def new_key(kind: str) -> Any:
    if kind.startswith("rsa"):
        return rsa.generate_private_key(65537, int(kind[3:] or 2048))
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    curves = {"p256": ec.SECP256R1, "p384": ec.SECP384R1, "p521": ec.SECP521R1, "secp256k1": ec.SECP256K1}
    return ec.generate_private_key(curves[kind]())


@dataclass
class Authority:
    """Makes certificates: `issue` says in what one differs from what signs pictures."""

    key: Any
    name: x509.Name

    def issue(
        self,
        key: Any,
        *,
        name: str = "Jane Doe",
        starts: timedelta = timedelta(days=-1),
        ends: timedelta = timedelta(days=30),
        purposes: tuple[x509.ObjectIdentifier, ...] = (ExtendedKeyUsageOID.EMAIL_PROTECTION,),
        signs: bool = True,
        authority: bool = False,
        identifies_issuer: bool = True,
        self_signed: bool = False,
        more: tuple[x509.ExtensionType, ...] = (),
    ) -> bytes:
        now = datetime.now(UTC)
        subject = self.name if authority else named(name)
        issuer, issuing = (subject, key) if self_signed else (self.name, self.key)
        usage = dict.fromkeys(
            (
                "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
                "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
            ),
            False,
        )  # fmt: skip
        usage |= {"key_cert_sign": authority, "digital_signature": signs, "key_agreement": not (signs or authority)}
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca=authority, path_length=None), True),
            (x509.KeyUsage(**usage), True),
            *((extension, False) for extension in more),
        ]
        if purposes:
            extensions.append((x509.ExtendedKeyUsage(purposes), False))
        if identifies_issuer:
            extensions.append((x509.AuthorityKeyIdentifier.from_issuer_public_key(issuing.public_key()), False))
        builder = x509.CertificateBuilder(
            issuer, subject, key.public_key(), x509.random_serial_number(), now + starts, now + ends
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        digest = None if isinstance(issuing, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        return builder.sign(issuing, digest).public_bytes(Encoding.PEM)


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def pem(key: Any, form: PrivateFormat = PrivateFormat.PKCS8, password: bytes | None = None) -> bytes:
    lock = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, form, lock)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority(new_key("p256"), named("Authority"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Callable[..., tuple[str, str]]:
    """Write a certificate and a key, and return their paths."""
    folder = tmp_path_factory.mktemp("pem")
    count = 0

    def write(certificate: bytes, key: bytes) -> tuple[str, str]:
        nonlocal count
        count += 1
        paths = folder / f"cert{count}.pem", folder / f"key{count}.pem"
        for path, data in zip(paths, (certificate, key), strict=True):
            path.write_bytes(data)
        return str(paths[0]), str(paths[1])

    return write


@pytest.fixture(scope="module")
def good(authority: Authority, files: Callable[..., tuple[str, str]]) -> tuple[str, str]:
    """Return the paths of a certificate, that of its authority behind it, and of its key."""
    key = new_key("p256")
    chain = authority.issue(key) + authority.issue(authority.key, authority=True, self_signed=True, purposes=())
    return files(chain, pem(key))


@pytest.fixture(scope="module")
def jane(good: tuple[str, str]) -> Signer:
    return signer(*good)


def state(data: bytes) -> str | None:
    found = check(io.BytesIO(data))
    return found.state if found else None


def encoded(format: str, how: Any = "full", prompt: str = SECRET) -> bytes:
    return metadata.encoded(PICTURE, record(prompt), format, how).data


def decoded(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB").tobytes()


def claim(data: bytes) -> dict[str, Any]:
    """Return what an outside reader finds claimed."""
    with c2pa.Reader(None, io.BytesIO(data)) as reader:
        found: dict[str, Any] = reader.get_active_manifest()
        return found


@pytest.fixture(scope="module")
def brief(authority: Authority, files: Callable[..., tuple[str, str]]) -> tuple[Signer, bytes, float]:
    """Return a signer whose certificate soon expires, what it has signed, and when that will be."""
    key, seconds = new_key("p256"), 4
    ready = signer(*files(authority.issue(key, ends=timedelta(seconds=seconds)), pem(key)))
    return ready, ready.signed(encoded("png"), "png"), time.time() + seconds + 0.1


# What is signed


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("how", ["full", "minimal"])
@pytest.mark.usefixtures("brief")  # Whose certificate expires while the other tests run.
def test_a_signed_picture_is_the_same_picture(tmp_path: Path, jane: Signer, format: str, how: str) -> None:
    plain = encoded(format, how)
    signed = jane.signed(plain, format)
    found = check(io.BytesIO(signed))
    assert found is not None and (found.state, found.by) == ("valid", "Jane Doe")
    assert decoded(signed) == decoded(plain)
    assert metadata.texts_of(io.BytesIO(signed)) == metadata.texts_of(io.BytesIO(plain))
    path = tmp_path / "x"
    path.write_bytes(signed)
    kept = metadata.read(path)
    assert (kept.request.prompt if kept else None) == (SECRET if how == "full" else None)
    assert metadata.identity(path) is not None
    # No picture of the picture is in it.
    assert len(signed) - len(plain) < 5000
    assert state(plain) is None


@pytest.mark.parametrize("format", FORMATS)
def test_the_claim_is_made_by_ai_and_no_more(jane: Signer, format: str) -> None:
    said = claim(jane.signed(encoded(format, "none"), format))
    agent = {"name": "sdcli", "version": __version__}
    (info,) = said["claim_generator_info"]
    assert info | agent == info and set(info) == {"name", "version", "org.contentauth.c2pa_rs"}
    (actions,) = [one for one in said["assertions"] if not one["label"].startswith("c2pa.hash.")]
    assert (actions["label"], actions["data"]) == ("c2pa.actions.v2", {
        "actions": [{
            "action": "c2pa.created", "softwareAgent": agent,
            "digitalSourceType": "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
        }],
    })  # fmt: skip
    assert "thumbnail" not in said and "title" not in said and "time" not in said["signature_info"]


def test_the_credentials_hold_nothing_of_the_prompt(jane: Signer) -> None:
    words = (b"nobody", b"business")
    assert not any(word in jane.signed(encoded("png", "minimal"), "png") for word in words)
    held = [content for kind, content in chunks(jane.signed(encoded("png"), "png")) if kind == "caBX"]
    assert len(held) == 1 and not any(word in held[0] for word in words)


@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [("p256", "Es256"), ("p384", "Es384"), ("p521", "Es512"), ("rsa", "Ps256"), ("ed25519", "Ed25519")],
)
def test_keys_of_each_kind_sign(
    authority: Authority, files: Callable[..., tuple[str, str]], kind: str, algorithm: str
) -> None:
    key = new_key(kind)
    certificate = authority.issue(key)
    forms = [PrivateFormat.PKCS8] if kind == "ed25519" else [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL]
    for form in forms:
        signed = signer(*files(certificate, pem(key, form))).signed(encoded("png"), "png")
        assert state(signed) == "valid" and claim(signed)["signature_info"]["alg"] == algorithm


def test_certificates_and_files_that_sign(authority: Authority, files: Callable[..., tuple[str, str]]) -> None:
    key = new_key("p256")
    both = authority.issue(key) + pem(key)
    path, _ = files(both, b"")
    assert state(signer(path, path).signed(encoded("jpg"), "jpg")) == "valid"
    for certificate in (
        authority.issue(key, self_signed=True),
        authority.issue(key, purposes=(x509.ObjectIdentifier("1.3.6.1.5.5.7.3.36"),)),
        # What the C2PA's own authorities issue.
        authority.issue(key, purposes=(x509.ObjectIdentifier("1.3.6.1.4.1.62558.2.1"),)),
        b"a text before it\n" + authority.issue(key),
    ):
        signed = signer(*files(certificate, b"and before the key\n" + pem(key))).signed(encoded("jpg"), "jpg")
        assert state(signed) == "valid"


# What is refused, and why


DAY = timedelta(days=1)
REFUSED: dict[str, tuple[str, Callable[[Authority], tuple[bytes, bytes]]]] = {}


def refused(words: str) -> Callable[[Callable[[Authority, Any], tuple[bytes, bytes]]], None]:
    """Put what makes a certificate and a key into the table of those that are refused with these words."""

    def add(make: Callable[[Authority, Any], tuple[bytes, bytes]]) -> None:
        REFUSED[make.__name__] = words, lambda authority: make(authority, new_key("p256"))

    return add


@refused("is not the key of the first certificate in")
def wrong_key(of: Authority, key: Any) -> tuple[bytes, bytes]:
    return of.issue(key), pem(new_key("p256"))


@refused("is not the key of the first certificate in")
def key_of_another_kind(of: Authority, key: Any) -> tuple[bytes, bytes]:
    return of.issue(key), pem(new_key("ed25519"))


@refused("is encrypted")
def encrypted(of: Authority, key: Any) -> tuple[bytes, bytes]:
    return of.issue(key), pem(key, password=b"x")


@refused("is encrypted")
def encrypted_in_the_old_way(of: Authority, key: Any) -> tuple[bytes, bytes]:
    return of.issue(key), pem(key, PrivateFormat.TraditionalOpenSSL, b"x")


@refused("has no private key that can be read")
def no_key(of: Authority, key: Any) -> tuple[bytes, bytes]:
    return of.issue(key), b""


@refused("has no private key that can be read")
def cut_key(of: Authority, key: Any) -> tuple[bytes, bytes]:
    return of.issue(key), pem(key)[:100]


@refused("has no private key that can be read")
def public_key(of: Authority, key: Any) -> tuple[bytes, bytes]:
    return of.issue(key), key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@refused("has no private key that can be read")
def key_of_ssh(of: Authority, key: Any) -> tuple[bytes, bytes]:
    return of.issue(key), pem(key, PrivateFormat.OpenSSH)


@refused("has no private key that can be read")
def key_that_is_no_pem(of: Authority, key: Any) -> tuple[bytes, bytes]:
    return of.issue(key), key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


@refused("has no certificate that can be read")
def the_wrong_way_round(of: Authority, key: Any) -> tuple[bytes, bytes]:
    return pem(key), of.issue(key)


@refused("has no certificate that can be read")
def no_certificate(of: Authority, key: Any) -> tuple[bytes, bytes]:
    return b"hello", pem(key)


@refused("has no certificate that can be read")
def broken_certificate(of: Authority, key: Any) -> tuple[bytes, bytes]:
    return of.issue(key).replace(b"\nMII", b"\nMIX"), pem(key)


@refused("has a key of a kind that can't sign")
def short_rsa_key(of: Authority, key: Any) -> tuple[bytes, bytes]:
    short = new_key("rsa1024")
    return of.issue(short), pem(short)


@refused("has a key of a kind that can't sign")
def other_curve(of: Authority, key: Any) -> tuple[bytes, bytes]:
    other = new_key("secp256k1")
    return of.issue(other), pem(other)


@refused(r"expired on \d{4}-\d\d-\d\d")
def expired(of: Authority, key: Any) -> tuple[bytes, bytes]:
    return of.issue(key, starts=-9 * DAY, ends=-DAY), pem(key)


@refused(r"is not valid before \d{4}-\d\d-\d\d")
def not_yet_valid(of: Authority, key: Any) -> tuple[bytes, bytes]:
    return of.issue(key, starts=DAY), pem(key)


@refused("is the certificate of an authority")
def what_openssl_makes_unasked(of: Authority, key: Any) -> tuple[bytes, bytes]:
    return of.issue(key, authority=True, self_signed=True, purposes=()), pem(key)


@refused("is without extendedKeyUsage=emailProtection$")
def for_no_purpose(of: Authority, key: Any) -> tuple[bytes, bytes]:
    return of.issue(key, purposes=(), self_signed=True), pem(key)


@refused("is without extendedKeyUsage=emailProtection$")
def for_a_server(of: Authority, key: Any) -> tuple[bytes, bytes]:
    return of.issue(key, purposes=(ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CODE_SIGNING)), pem(key)


@refused("is without keyUsage=digitalSignature, authorityKeyIdentifier$")
def signs_nothing(of: Authority, key: Any) -> tuple[bytes, bytes]:
    return of.issue(key, signs=False, identifies_issuer=False), pem(key)


@refused("can't sign: the certificate is invalid")
def what_only_the_library_refuses(of: Authority, key: Any) -> tuple[bytes, bytes]:
    purposes = (ExtendedKeyUsageOID.EMAIL_PROTECTION, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)
    return of.issue(key, purposes=purposes), pem(key)


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_sign_is_refused_with_a_reason(
    authority: Authority, files: Callable[..., tuple[str, str]], case: str
) -> None:
    words, make = REFUSED[case]
    certificate, key = files(*make(authority))
    with pytest.raises(BadInput, match=words) as refusal:
        signer(certificate, key)
    said = refusal.value
    assert said.hint and (certificate in said.message or key in said.message)
    assert "PRIVATE" not in f"{said.message}{said.hint}" and said.__cause__ is None


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("--sign", "nothing.pem", "{key}"), 66, "nothing.pem is not there"),
        (("--sign", "{cert}", "nothing.pem"), 66, "nothing.pem is not there"),
        (("--sign", "{cert}", "."), 65, "is a folder"),
        (("--sign", "{cert}", "{cert}"), 65, "no private key"),
        (("--sign", "{cert}"), 2, "requires 2 arguments"),
        (("--sign", "{cert}", "{key}", "--metadata", "none"), 2, "--metadata none"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "batch", "grid"])
def test_refused_at_the_front_door(
    sdcli: Sdcli, tmp_path: Path, good: tuple[str, str], command: str, argv: tuple[str, ...], code: int, words: str
) -> None:
    (tmp_path / "p.txt").write_text("a star\n")
    what = {"generate": ("a star",), "batch": ("p.txt",), "grid": ("a star", "--x", "seed=1,2")}[command]
    done = sdcli(command, *what, *DRAW, *(arg.format(cert=good[0], key=good[1]) for arg in argv))
    assert (done.code, done.stdout) == (code, b"") and words in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["p.txt"]


def test_what_is_not_installed_is_said(
    sdcli: Sdcli, monkeypatch: pytest.MonkeyPatch, good: tuple[str, str], jane: Signer
) -> None:
    signed = jane.signed(encoded("png"), "png")
    monkeypatch.setitem(sys.modules, "c2pa", None)
    done = sdcli("generate", "a star", *DRAW, "--sign", *good)
    assert done.code == 2 and "pip install 'sdcli[c2pa]'" in done.stderr
    assert state(signed) == "unchecked"
    assert state(encoded("png")) is None


def test_a_system_that_the_library_is_not_for(process: Sdcli, good: tuple[str, str]) -> None:
    done = process("generate", "a star", *DRAW, "--sign", *good, env={"C2PA_LIBRARY_NAME": "missing.so"})
    assert done.code == 2 and "c2pa-python does not run here: Could not find missing.so" in done.stderr


def test_it_costs_nothing_unasked_and_is_refused_before_torch(
    probe: Callable[[str], subprocess.CompletedProcess[str]], good: tuple[str, str]
) -> None:
    code = f"""
import sys
from sdcli.cli.main import main
draw = ("generate", "a star", "--model", "demo", "-q", "--dry-run")
assert main(draw) == 0
assert not {{"c2pa", "cryptography"}} & set(sys.modules)
assert main((*draw, "--sign", {good[0]!r}, {good[0]!r})) == 65
assert main((*draw, "--sign", *{good!r})) == 0
assert "c2pa" in sys.modules and "torch" not in sys.modules
"""
    done = probe(code)
    assert done.returncode == 0, done.stderr


def test_where_else_it_can_be_set() -> None:
    merged = settings.merge(("preset mine", {"sign": ["cert.pem", "key.pem"]}))
    assert merged.build(OutputPlan).sign == ("cert.pem", "key.pem")
    assert settings.convert("sign", '["a,b.pem", "key.pem"]', "--set") == ("a,b.pem", "key.pem")
    for value in (["cert.pem"], "cert.pem,key.pem", '["cert.pem"]'):
        with pytest.raises(UsageError, match="sign "):
            settings.merge(("preset mine", {"sign": value}))


# What changes later


def resummed(data: bytes, change: Callable[[str, bytes], list[tuple[str, bytes]]]) -> bytes:
    """Return a PNG whose chunks are changed, with the sums that they then have."""
    changed = b"".join(
        struct.pack(">I4s", len(content), kind.encode())
        + content
        + struct.pack(">I", zlib.crc32(kind.encode() + content))
        for chunk in chunks(data)
        for kind, content in change(*chunk)
    )
    return data[:8] + changed


def test_changed_texts_show(jane: Signer) -> None:
    signed = jane.signed(encoded("png", prompt="a red circle"), "png")

    def edited(kind: str, content: bytes) -> list[tuple[str, bytes]]:
        return [(kind, content.replace(b"a red circle", b"a RED circle") if kind == "tEXt" else content)]

    assert resummed(signed, lambda kind, content: [(kind, content)]) == signed
    assert metadata.texts_of(io.BytesIO(resummed(signed, edited)))["parameters"].startswith("a RED circle")
    assert state(resummed(signed, edited)) == "invalid"
    for name in ("tEXt", "iTXt", "IDAT"):
        left = resummed(signed, lambda kind, content, name=name: [] if kind == name else [(kind, content)])  # type: ignore[misc]
        assert state(left) == "invalid"


@pytest.mark.parametrize(
    ("format", "added"),
    [
        ("png", lambda data: resummed(data, lambda k, c: [(k, c)] if k != "IEND" else [("tEXt", b"a\0b"), (k, c)])),
        ("png", lambda data: resummed(data, lambda k, c: [(k, c)] if k != "IEND" else [(k, c), ("tEXt", b"a\0b")])),
        ("png", lambda data: data + b"\0"),
        ("jpg", lambda data: data[:2] + b"\xff\xfe\0\x03a" + data[2:]),
        ("jpg", lambda data: data[:-2] + b"\xff\xfe\0\x03a" + data[-2:]),
        ("jpg", lambda data: data + b"\0"),
        ("webp", lambda data: data[:4] + struct.pack("<I", len(data) + 2) + data[8:] + b"abcd\x02\0\0\0ab"),
        ("avif", lambda data: data + b"\0\0\0\x0aabcdab"),
    ],
)
def test_what_is_added_shows(jane: Signer, format: str, added: Callable[[bytes], bytes]) -> None:
    longer = added(jane.signed(encoded(format), format))
    assert decoded(longer) == decoded(encoded(format))
    assert state(longer) == "invalid"


@pytest.mark.parametrize("format", FORMATS)
def test_every_byte_counts(jane: Signer, format: str) -> None:
    """But for those of the credentials themselves, which have room to spare, and the list of names that an AVIF begins with,
    which its standard leaves out."""
    signed = jane.signed(encoded(format), format)
    start, end = place(signed)
    first = int.from_bytes(signed[:4], "big") if format == "avif" else 0
    outside = [*range(first, start), *range(end, len(signed))]
    assert len(outside) > len(encoded(format)) - 40
    for at in outside[:: max(1, len(outside) // 60)] + outside[-8:]:
        changed = bytearray(signed)
        changed[at] ^= 1
        assert state(bytes(changed)) == "invalid", at


def place(data: bytes) -> tuple[int, int]:
    """Return where the credentials begin and end, with the head of the chunk, segment or box that they are in."""
    (found,) = re.finditer(rb"(?s)(.{4})jumb.{4}jumdc2pa", data)
    end = found.start() + int.from_bytes(found[1], "big")
    head = {b"\x89PNG": 8, b"\xff\xd8\xff\xe0": 12, b"RIFF": 8}.get(data[:4], 57)
    # A PNG's chunk ends with its sum, and a WebP's at an even place.
    return found.start() - head, end + (4 if head == 8 and data[:4] == b"\x89PNG" else data[:4] == b"RIFF" and end % 2)


@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_saved_again_has_lost_it(jane: Signer, format: str) -> None:
    signed = jane.signed(encoded(format), format)
    with Image.open(io.BytesIO(signed)) as image:
        again = io.BytesIO()
        image.save(again, image.format)
    assert state(again.getvalue()) is None and state(signed) == "valid"
    # Nor do its credentials pass for another's.
    start, end = place(signed)
    other = io.BytesIO()
    Image.new("RGB", PICTURE.size).save(other, {"jpg": "JPEG"}.get(format, format))
    if format == "png":
        moved = other.getvalue()[:33] + signed[start:end] + other.getvalue()[33:]
        assert state(moved) == "invalid"


def test_credentials_that_begin_otherwise_are_not_gone(jane: Signer) -> None:
    """Where the library sees none any more, they are still there and don't hold."""
    signed = jane.signed(encoded("png"), "png")
    assert state(signed.replace(b"caBX", b"cbBX")) == "invalid"
    assert state(signed[: place(signed)[0] + 200]) == "invalid"


def test_the_network_is_not_asked(authority: Authority, files: Callable[..., tuple[str, str]]) -> None:
    """By certificates that name who could be asked of them, and a picture whose credentials lie elsewhere."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        about = x509.AuthorityInformationAccess(
            [
                x509.AccessDescription(method, x509.UniformResourceIdentifier(f"{url}/{name}"))
                for method, name in (
                    (AuthorityInformationAccessOID.OCSP, "ocsp"), (AuthorityInformationAccessOID.CA_ISSUERS, "issuers"),
                )
            ]
        )  # fmt: skip
        key = new_key("p256")
        ready = signer(*files(authority.issue(key, more=(about,)), pem(key)))
        assert state(ready.signed(encoded("png"), "png")) == "valid"
        elsewhere = io.BytesIO()
        with c2pa.Builder(signing._CLAIM) as builder:
            builder.set_remote_url(f"{url}/credentials")
            builder.set_no_embed()
            builder.sign(ready._signer, "image/png", io.BytesIO(encoded("png")), elsewhere)
        assert state(elsewhere.getvalue()) is None
        assert asked == []
        # And whoever asks, is heard.
        with pytest.raises(c2pa.C2paError):
            c2pa.Reader(None, io.BytesIO(elsewhere.getvalue()))
        assert asked == ["/credentials"]
        server.shutdown()


def test_a_store_that_is_too_large_is_not_opened(jane: Signer) -> None:
    signed = bytearray(jane.signed(encoded("png"), "png"))
    (found,) = re.finditer(rb"(?s).{4}jumb.{4}jumdc2pa", bytes(signed))
    for size in (2**20 + 1, 2**32 - 1, 0, 1):
        signed[found.start() : found.start() + 4] = size.to_bytes(4, "big")
        with pytest.raises(BadInput, match="1 MiB of Content Credentials"):
            state(bytes(signed))
    whole = jane.signed(encoded("jpg"), "jpg")
    start, end = place(whole)
    with pytest.raises(BadInput, match="1 MiB of Content Credentials"):
        state(whole[:start] + whole[start:end] * 17 + whole[end:])
    with pytest.raises(BadInput, match="larger than 64 MiB"):
        state(whole + bytes(2**26))


def test_what_looks_like_segments_of_credentials_is_text(jane: Signer) -> None:
    """In UTF-16, as EXIF has it, this arrow is the marker of such a segment."""
    signed = jane.signed(encoded("jpg", prompt="\uffeb" * 1000), "jpg")
    assert signed.count(b"\xff\xeb") > 1000 and state(signed) == "valid"
    # Some cameras put a film behind the picture.
    assert state(signed + b"\xff\xeb" * 1000) == "invalid"


def test_segments_between_scans_count_too(jane: Signer) -> None:
    signed = jane.signed(encoded("jpg"), "jpg")
    start, end = place(signed)
    behind = signed.rindex(b"\xff\xd9")
    for more in (signed[start:end] * 20, b"\xff\xeb\0\2" * 20):
        with pytest.raises(BadInput, match="1 MiB of Content Credentials"):
            state(signed[:behind] + more + signed[behind:])
    with pytest.raises(BadInput, match="parts"):
        state(signed[:behind] + b"\xff\xe9\0\2" * 200_000 + signed[behind:])


def test_a_store_is_found_wherever_it_lies(jane: Signer) -> None:
    """A file is looked through a block at a time."""
    head = signing._STORE_HEAD
    start = jane.signed(encoded("png"), "png")[place(jane.signed(encoded("png"), "png"))[0] + 8 :][:head]
    for before in range(2**20 - head - 1, 2**20 + 2):
        sizes = signing._stores(io.BytesIO(bytes(before) + start + bytes(100)))
        assert len(sizes) == 1 and sizes[0] == int.from_bytes(start[:4], "big")


# Through the front door


def test_a_picture_on_stdout_is_signed(sdcli: Sdcli, good: tuple[str, str]) -> None:
    done = sdcli("generate", "a star", *DRAW, "--seed", "7", "--sign", *good, "--format", "webp", "-o", "-", "-vv")
    assert done.code == 0, done.stderr
    assert state(done.stdout) == "valid"
    plain = sdcli("generate", "a star", *DRAW, "--seed", "7", "--format", "webp", "-o", "-")
    assert decoded(done.stdout) == decoded(plain.stdout)
    # Of the key nothing is told, and of both files nothing is recorded.
    said = done.stderr + repr(metadata.texts_of(io.BytesIO(done.stdout)))
    secret = Path(good[1]).read_text().split("\n")
    assert not any(line in said for line in (*filter(None, secret), *good))


def test_a_batch_signs_each_picture_and_goes_on(sdcli: Sdcli, tmp_path: Path, good: tuple[str, str]) -> None:
    lines = ["prompt,seed,format", "a star,1,png", "a circle,2,jpg", "a square,3,webp", "a cat,4,avif"]
    (tmp_path / "p.csv").write_text("\n".join(lines))
    batch = ("batch", "p.csv", *DRAW, "--sign", *good, "-o", "out/", "--json")
    done = sdcli(*batch)
    assert done.code == 0, done.stderr
    paths = sorted(e["path"] for e in done.events if e["event"] == "image")
    assert len(paths) == 4 and {state(Path(path).read_bytes()) for path in paths} == {"valid"}
    journal = tmp_path / "out" / "sdcli-batch.jsonl"
    assert not any(path in journal.read_text() for path in good)
    # Killed between a picture and its line.
    journal.write_text("".join(line + "\n" for line in journal.read_text().splitlines()[:-1]))
    before = {path: Path(path).read_bytes() for path in paths}
    again = sdcli(*batch)
    assert again.code == 0, again.stderr
    assert [e["event"] for e in again.events].count("skipped") == 3
    assert sorted(p for e in again.events if (p := e.get("path"))) == paths
    assert {path: Path(path).read_bytes() for path in paths} == before
    assert len(list((tmp_path / "out").iterdir())) == 5


def test_rows_with_outputs_of_their_own_are_signed_by_the_run(
    sdcli: Sdcli, tmp_path: Path, good: tuple[str, str]
) -> None:
    """A key out of a pipe is read once; and what is wrong with it is no fault of the rows."""
    (tmp_path / "p.csv").write_text("prompt,output\na star,one/\na circle,two.jpg\n")
    done = sdcli("batch", "p.csv", *DRAW, "--sign", good[0], "nothing.pem")
    assert done.code == 66 and "p.csv" not in done.stderr
    with open(good[1], "rb") as key, subprocess.Popen(["cat"], stdin=key, stdout=subprocess.PIPE) as pipe:
        assert pipe.stdout is not None
        done = sdcli("batch", "p.csv", *DRAW, "--sign", good[0], f"/dev/fd/{pipe.stdout.fileno()}")
    assert done.code == 0, done.stderr
    assert len(done.lines) == 2 and {state(Path(path).read_bytes()) for path in done.lines} == {"valid"}


def test_a_grid_and_its_sheet_are_signed(sdcli: Sdcli, good: tuple[str, str]) -> None:
    done = sdcli("grid", "a star", "--x", "seed=1,2", *DRAW, "--sign", *good)
    assert done.code == 0, done.stderr
    assert len(done.lines) == 3 and {state(Path(path).read_bytes()) for path in done.lines} == {"valid"}


@pytest.mark.parametrize("format", FORMATS)
def test_inspect_says_whether_the_signature_holds(
    sdcli: Sdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jane: Signer, format: str
) -> None:
    path, signed = tmp_path / f"x.{format}", jane.signed(encoded(format), format)

    def inspected(data: bytes, *more: str) -> tuple[int, Any]:
        path.write_bytes(data)
        done = sdcli("inspect", "--check", "--json", *more, str(path))
        return done.code, done.events[0]["check"]

    assert inspected(signed) == (0, {"pixels": "match", "signature": "valid"})
    assert sdcli("inspect", str(path), "--json").events[0]["check"] is None
    assert (
        "SIGNATURE              valid: nothing has changed since Jane Doe"
        in sdcli("inspect", "--check", str(path)).stdout.decode()
    )
    assert inspected(encoded(format)) == (0, {"pixels": "match", "signature": None})
    # Neither pixels nor record: what a JPEG, say, has between its segments.
    start = place(signed)[0] if format != "avif" else len(signed)
    added = {"png": b"\0\0\0\2abCdab" + struct.pack(">I", zlib.crc32(b"abCdab")), "jpg": b"\xff\xfe\0\3a"}
    if format in added:
        changed = signed[:start] + added[format] + signed[start:]
        assert inspected(changed) == (1, {"pixels": "match", "signature": "invalid"})
        assert b"SIGNATURE              invalid" in sdcli("inspect", "--check", str(path)).stdout
    monkeypatch.setitem(sys.modules, "c2pa", None)
    # Neither good nor bad: as with `--sign`, what is not installed is named.
    assert inspected(signed) == (2, {"pixels": "match", "signature": "unchecked"})
    done = sdcli("inspect", "--check", str(path))
    assert "match" in done.stdout.decode() and "SIGNATURE              unchecked" in done.stdout.decode()
    assert done.stderr.count("error: ") == 1 and "pip install 'sdcli[c2pa]'" in done.stderr
    assert inspected(signed, str(path))[0] == 2, "of several"
    assert sdcli("inspect", "--check", str(path), "gone.png").code == 1
    said = " ".join(sdcli("inspect", "--help").stdout.decode().split())
    assert "with 2 if all that is wrong is that a signature can't be checked" in said
    assert sdcli("inspect", str(path)).code == 0


def test_a_name_in_a_certificate_steers_no_terminal(
    sdcli: Sdcli, tmp_path: Path, authority: Authority, files: Callable[..., tuple[str, str]]
) -> None:
    key = new_key("p256")
    certificate = authority.issue(key, name="\x1b[2J\u202eMallory")
    path = tmp_path / "x.png"
    path.write_bytes(signer(*files(certificate, pem(key))).signed(encoded("png"), "png"))
    said = sdcli("inspect", "--check", str(path)).stdout.decode()
    assert "Mallory" in said and not {"\x1b", "\u202e"} & set(said)


def test_a_row_does_not_sign(sdcli: Sdcli, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "a star", "sign": ["cert.pem", "key.pem"]}))
    done = sdcli("batch", "p.jsonl", *DRAW)
    assert done.code == 65 and "sign is set for the whole run" in done.stderr


# At last, since it waits


def test_a_certificate_that_expires(brief: tuple[Signer, bytes, float]) -> None:
    ready, signed, ends = brief
    # Its last second is one of its own.
    time.sleep(max(0, ends + 1.5 - time.time()))
    assert state(signed) == "expired"
    changed = bytearray(signed)
    changed[-20] ^= 1
    assert state(bytes(changed)) == "invalid"
    # It ends the run: the next picture could not be signed either.
    with pytest.raises(OutputFailed, match="not valid at time of signing") as failure:
        ready.signed(encoded("png"), "png")
    assert isinstance(failure.value, SdcliError) and failure.value.exit_code == 74


# With other programs

RECIPE = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 -subj".split()
    + ["/O=Jane Doe/CN=Jane Doe"]
    + "-addext basicConstraints=critical,CA:FALSE -addext keyUsage=critical,digitalSignature".split()
    + "-addext extendedKeyUsage=emailProtection -addext authorityKeyIdentifier=keyid:always".split()
    + "-keyout key.pem -out cert.pem".split()
)


def run(*command: str, **more: Any) -> str:
    assert shutil.which(command[0]), f"{command[0]} is not installed"
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.outside
def test_the_recipe_makes_what_signs(tmp_path: Path) -> None:
    run(*RECIPE, cwd=tmp_path)
    ready = signer(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    found = check(io.BytesIO(ready.signed(encoded("png"), "png")))
    assert found is not None and (found.state, found.by) == ("valid", "Jane Doe")


@pytest.mark.outside
@pytest.mark.parametrize("format", FORMATS)
def test_exiftool_reads_it_and_finds_no_fault(tmp_path: Path, jane: Signer, format: str) -> None:
    path = tmp_path / f"x.{format}"
    path.write_bytes(jane.signed(encoded(format), format))
    (read,) = json.loads(run("exiftool", "-json", "-validate", "-warning", "-error", "-a", "-G1", "-all", str(path)))
    assert read["ExifTool:Validate"] == "OK" and not {"ExifTool:Warning", "ExifTool:Error"} & set(read)
    assert json.loads(read["PNG:Sdcli" if format == "png" else "XMP-sdcli:Record"])["request"]["prompt"] == SECRET
    if format in ("png", "jpg"):
        assert read["JUMBF:JUMDLabel"] == "c2pa"
    run("exiftool", "-q", "-overwrite_original", "-XMP-dc:Title=another", str(path))
    assert state(path.read_bytes()) in ("invalid", None)  # Some of its edits take the credentials out.


@pytest.mark.outside
def test_pngcheck_finds_no_fault(tmp_path: Path, jane: Signer) -> None:
    (tmp_path / "x.png").write_bytes(jane.signed(encoded("png"), "png"))
    assert "chunk caBX" in run("pngcheck", "-v", str(tmp_path / "x.png"))
