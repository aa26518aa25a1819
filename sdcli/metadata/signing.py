"""Content Credentials: a picture signed as made by sdcli, and whether it is still as it was when it was signed (C2PA 2.3).

The library that signs and checks is c2pa-python. Nothing here asks the network.
"""

from __future__ import annotations

import io
import os
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import msgspec

from sdcli import __version__
from sdcli.errors import BadInput, InputMissing, OutputFailed, UsageError
from sdcli.metadata import jpeg
from sdcli.metadata.xmp import MADE_BY_AI

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from cryptography.x509 import Certificate

INSTALL = "pip install 'sdcli[c2pa]'"
TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp", "avif": "image/avif"}
# Bytes of a file of certificates or of a key.
MOST_PEM = 2**20
KINDS = "what works: EC keys (P-256, P-384, P-521), RSA keys of 2048 bits or more, Ed25519"

# What is claimed. Nothing of the prompt: where the picture has its record, that is signed with it.
_AGENT = {"name": "sdcli", "version": __version__}
_CREATED = {"action": "c2pa.created", "digitalSourceType": MADE_BY_AI, "softwareAgent": _AGENT}
_CLAIM = {
    "claim_generator_info": [_AGENT],
    "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [_CREATED]}}],
}

# What a certificate may be for that signs pictures (extendedKeyUsage): e-mail, documents, Content Credentials.
_PURPOSES = ("1.3.6.1.5.5.7.3.4", "1.3.6.1.5.5.7.3.36", "1.3.6.1.4.1.311.76.59.1.9", "1.3.6.1.4.1.62558.2.1")
# And those that others' time stamps and revocations are signed with.
_ALL_PURPOSES = (*_PURPOSES, "1.3.6.1.5.5.7.3.8", "1.3.6.1.5.5.7.3.9")
_SETTINGS = {
    # Of its own the library takes fewer.
    "trust": {"trust_config": "\n".join(_ALL_PURPOSES)},
    "builder": {"thumbnail": {"enabled": False}},
    # Identities in a picture are looked up in the network, whatever the allowed hosts are.
    "core": {
        "allowed_network_hosts": [],
        "decode_identity_assertions": False,
        "max_decompressed_manifest_size_in_mb": 1,
    },
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
}

# The smallest PNG: what credentials are tried on.
_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c636000000002000148afa4710000000049454e44ae426082"
)


# Signing


class Signer:
    """Signs pictures with one certificate and its private key: one at a time, in whatever thread."""

    def __init__(self, algorithm: str, chain: bytes, key: bytes) -> None:
        """Take certificates and a key that `signer` has looked at, as PEM."""
        c2pa = _library()
        self._c2pa = c2pa
        self._context = c2pa.Context.from_dict(_SETTINGS)
        # No address of an authority that would stamp the time.
        self._signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(algorithm, chain, key, None))

    def signed(self, data: bytes, format: str) -> bytes:
        """Return a picture's file with Content Credentials in it; its pixels and texts stay as they are.

        No two are alike, since each has an id of its own. Raises OutputFailed: what can't be signed now, as when the
        certificate has expired meanwhile, is not to be signed later in this run either.
        """
        try:
            return self._signed(data, format)
        except self._c2pa.C2paError as error:
            raise OutputFailed(
                f"the picture can't be signed: {_said(error)}", "check the certificate of --sign"
            ) from None

    def _signed(self, data: bytes, format: str) -> bytes:
        signed = io.BytesIO()
        with self._c2pa.Builder(_CLAIM, context=self._context) as builder:
            builder.sign(self._signer, TYPES[format], io.BytesIO(data), signed)
        return signed.getvalue()


def signer(certificate: str, key: str) -> Signer:
    """Return what signs with a certificate, after which those may stand that vouch for it, and its private key: PEM files.

    Each is read once, so that a key can come through a pipe. What the certificate must be like is said in C2PA 2.3, section
    14.5.1. Raises UsageError where c2pa-python is not installed, InputMissing, and BadInput for what can't sign.
    """
    c2pa = _library()
    from cryptography.hazmat.primitives import serialization

    chain = _chain(certificate)
    private = _private(key)
    algorithm = _algorithm(private, key)
    _check(chain[0], certificate)
    public = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if chain[0].public_key().public_bytes(*public) != private.public_key().public_bytes(*public):
        raise BadInput(
            f"{key} is not the key of the first certificate in {certificate}", "give the two that belong together"
        )
    pem = serialization.Encoding.PEM
    plain = private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    try:
        ready = Signer(algorithm, b"".join(one.public_bytes(pem) for one in chain), plain)
        ready._signed(_PIXEL, "png")
    except c2pa.C2paError as error:
        raise BadInput(f"{certificate} can't sign: {_said(error)}", "take another certificate") from None
    return ready


def _library() -> Any:
    try:
        import c2pa
        import cryptography.x509  # noqa: F401
    except ImportError:
        raise UsageError("Content Credentials need c2pa-python, which is not installed", INSTALL) from None
    except (OSError, RuntimeError) as error:  # It has no binary for this system.
        raise UsageError(f"c2pa-python does not run here: {_said(error)}", "leave --sign out") from None
    return c2pa


def _said(error: Exception) -> str:
    """Return what the library says, in one line; it quotes nothing of a key."""
    return " ".join(str(error).split()).removeprefix("Signature: ")


def _pem(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MOST_PEM)
    except (FileNotFoundError, NotADirectoryError):
        raise InputMissing(f"{path} is not there", "--sign wants the paths of a certificate and of its key") from None
    except IsADirectoryError:
        raise BadInput(f"{path} is a folder", "--sign wants the paths of a certificate and of its key") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} can't be read: {getattr(error, 'strerror', None) or error}", "check the file") from None


def _chain(path: str) -> list[Certificate]:
    from cryptography import x509

    data = _pem(path)
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError:
        raise BadInput(
            f"{path} has no certificate that can be read", "--sign wants two PEM files, the certificate first"
        ) from None


def _private(path: str) -> PrivateKeyTypes:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _pem(path)
    try:
        return load_pem_private_key(data, None)
    except TypeError:
        # Nothing ever waits for a keypress.
        raise BadInput(
            f"the key in {path} is encrypted", f"decrypt it: --sign CERT <(openssl pkey -in {path})"
        ) from None
    except UnsupportedAlgorithm:
        raise BadInput(f"{path} has a key of a kind that can't sign", KINDS) from None
    except ValueError:
        raise BadInput(
            f"{path} has no private key that can be read", "--sign wants two PEM files, the key second"
        ) from None


def _algorithm(key: PrivateKeyTypes, path: str) -> str:
    """Return the algorithm that a key signs with (C2PA 2.3, section 13.2). Raises BadInput if there is none."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    if isinstance(key, EllipticCurvePrivateKey):
        curves = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
        if key.curve.name in curves:
            return curves[key.curve.name]
    elif isinstance(key, RSAPrivateKey) and key.key_size >= 2048:
        return "ps256"
    elif isinstance(key, Ed25519PrivateKey):
        return "ed25519"
    raise BadInput(f"{path} has a key of a kind that can't sign", KINDS)


def _check(certificate: Certificate, path: str) -> None:
    """Refuse a certificate that can't sign, with a plain reason."""
    from cryptography import x509

    now, days = datetime.now(UTC), (certificate.not_valid_before_utc, certificate.not_valid_after_utc)
    if now > days[1]:
        raise BadInput(f"{path} expired on {days[1]:%Y-%m-%d}", "renew it")
    if now < days[0]:
        raise BadInput(f"{path} is not valid before {days[0]:%Y-%m-%d}", "take another, or set the clock")
    hint = "see Signing in the README for a command that makes a certificate"
    try:
        said = {extension.oid.dotted_string: extension.value for extension in certificate.extensions}
    except (ValueError, x509.DuplicateExtension):
        raise BadInput(f"{path} has extensions that can't be read", hint) from None
    constraints = said.get(x509.BasicConstraints.oid.dotted_string)
    if isinstance(constraints, x509.BasicConstraints) and constraints.ca:
        raise BadInput(f"{path} is the certificate of an authority, and signs certificates, no pictures", hint)
    usage, purposes = (said.get(kind.oid.dotted_string) for kind in (x509.KeyUsage, x509.ExtendedKeyUsage))
    lacks = []
    if not (isinstance(usage, x509.KeyUsage) and usage.digital_signature):
        lacks.append("keyUsage=digitalSignature")
    if not (isinstance(purposes, x509.ExtendedKeyUsage) and {p.dotted_string for p in purposes} & {*_PURPOSES}):
        lacks.append("extendedKeyUsage=emailProtection")
    if x509.AuthorityKeyIdentifier.oid.dotted_string not in said:
        lacks.append("authorityKeyIdentifier")
    if lacks:
        raise BadInput(f"{path} can't sign pictures: it is without {', '.join(lacks)}", hint)


# Checking

# How every store of Content Credentials begins, in whatever file, after the four bytes of its length (ISO/IEC 19566-5, annex A).
_STORE = re.compile(rb"(?s)jumb.{4}jumdc2pa\0\x11\0\x10\x80\0\0\xaa\0\x38\x9b\x71")
_STORE_HEAD = 4 + 28
# JPEG's segment for such stores.
_APP11 = 0xEB
# The library has a picture's file in memory, and of each byte of the credentials up to 170 more.
MOST_FILE = 2**26
MOST_CREDENTIALS = 2**20
MOST_SEGMENTS = MOST_CREDENTIALS >> 16

State = Literal["valid", "expired", "invalid", "unchecked"]


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """How it stands with a picture's signature.

    `valid`: nothing has changed since it was signed. `expired`: neither, but its certificate has expired, and nobody vouches
    for when it was signed. `invalid`: something has changed. `unchecked`: c2pa-python is not installed. `by` is whom the
    certificate names, and may be anybody: no list says here who is to be trusted.
    """

    state: State
    by: str = ""


def check(file: BinaryIO) -> Signature | None:
    """Return how it stands with the signature in a picture, None if it has none. The network is not asked.

    Raises BadInput for one that is too large to check, and OSError.
    """
    stores = _stores(file)
    if not stores:
        return None
    if file.seek(0, os.SEEK_END) > MOST_FILE:
        raise BadInput(f"it is signed and larger than {MOST_FILE >> 20} MiB, too much to check")
    if not all(8 < size <= MOST_CREDENTIALS for size in stores) or _segments(file) > MOST_SEGMENTS:
        raise BadInput(f"it has more than {MOST_CREDENTIALS >> 20} MiB of Content Credentials, too much to check")
    try:
        c2pa = _library()
    except UsageError:
        return Signature(state="unchecked")
    file.seek(0)
    try:
        with c2pa.Context.from_dict(_SETTINGS) as context, c2pa.Reader(None, file, context=context) as reader:
            state, results = reader.get_validation_state(), reader.get_validation_results()
            by = (reader.get_active_manifest() or {}).get("signature_info", {})
    except (c2pa.C2paError, RecursionError):  # Bytes of the credentials have changed, or where they begin.
        return Signature(state="invalid")
    name = str(by.get("common_name") or by.get("issuer") or "")
    if state in ("Valid", "Trusted"):
        return Signature(state="valid", by=name)
    failures = {one["code"] for one in ((results or {}).get("activeManifest") or {}).get("failure", [])}
    gone = failures and failures <= {"signingCredential.expired", "signingCredential.untrusted"}
    return Signature(state="expired" if gone else "invalid", by=name)


def _stores(file: BinaryIO) -> list[int]:
    """Return the lengths that stores of Content Credentials say in a file."""
    sizes, last = [], b""
    file.seek(0)
    while block := file.read(2**20):
        window = last + block
        starts = (found.start() for found in _STORE.finditer(window))
        # One that begins before the window has been seen in the last.
        sizes += [int.from_bytes(window[at - 4 : at], "big") for at in starts if at >= 4]
        last = window[1 - _STORE_HEAD :]
    return sizes


def _segments(file: BinaryIO) -> int:
    """Return how many segments may hold stores, in a JPEG; elsewhere there are none."""
    file.seek(0)
    return jpeg.count(file, _APP11, MOST_SEGMENTS) if jpeg.MAGIC.match(file.read(3)) else 0
