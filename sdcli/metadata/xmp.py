"""XMP: the mark "made by AI", sdcli's own record beside it, and a property out of anybody's packet."""

from __future__ import annotations

import hashlib
import html
import re
from pathlib import PurePath
from xml.parsers import expat

from sdcli.errors import BadInput
from sdcli.record import ModelRecord

PNG_KEYWORD = "XML:com.adobe.xmp"
NAMESPACES = {
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    # Our own, a name in the manner of `adobe:ns:meta/`; `record` is all that is in it.
    "sdcli": "sdcli:ns:1.0/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "xmpNote": "http://ns.adobe.com/xmp/note/",
}
MADE_BY_AI = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def mark(model: ModelRecord, version: str | None) -> dict[str, str]:
    """Return what says that a machine drew this, and which (IPTC Photo Metadata Standard 2025.1); nothing of what was asked.

    `version` is sdcli's.
    """
    return {
        "xmp:CreatorTool": f"sdcli {version}" if version else "sdcli",
        "Iptc4xmpExt:DigitalSourceType": MADE_BY_AI,
        "Iptc4xmpExt:AISystemUsed": model.name if model.repo else PurePath(model.name).name,
        "Iptc4xmpExt:AISystemVersionUsed": _version(model),
    }


def _version(model: ModelRecord) -> str:
    """Return what pins a model: its commit; or the SHA-256 of its only file; or of the list that `sha256sum` prints of its
    files, sorted by their paths (as `LC_ALL=C sort -k2` does)."""
    files = sorted((name, sha256) for name, sha256 in model.files.items() if not name.startswith("--"))
    if model.commit or not files:
        return model.commit or ""
    if len(files) == 1:
        return files[0][1]
    return hashlib.sha256("".join(f"{sha256}  {name}\n" for name, sha256 in files).encode()).hexdigest()


def packet(properties: dict[str, str], record: str | None = None) -> str:
    """Return a packet that is marked as read-only (XMP Specification Part 1, section 7.3.2), so that it needs no room to grow.

    `record` is JSON without `&`, `<` and what is not ASCII, which needs no escapes in XML.
    """
    body = description(properties, record)
    return f'<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>{body}<?xpacket end="r"?>'


def description(properties: dict[str, str], record: str | None = None) -> str:
    """Return what is inside a packet: simple properties, those without a text left out, and sdcli's record."""
    # It brings urllib and ssl along, which no help needs.
    from xml.sax.saxutils import quoteattr

    said = {name: text for name, text in properties.items() if text}
    prefixes = dict.fromkeys(name.partition(":")[0] for name in [*said, *(["sdcli:record"] if record else [])])
    attributes = "".join(f' xmlns:{prefix}="{NAMESPACES[prefix]}"' for prefix in prefixes)
    attributes += "".join(f" {name}={quoteattr(_clean(text))}" for name, text in said.items())
    content = f"><sdcli:record>{record}</sdcli:record></rdf:Description>" if record else "/>"
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about=""{attributes}{content}</rdf:RDF></x:xmpmeta>'
    )


def _clean(text: str) -> str:
    """Return a text without the characters that XML cannot hold (XML 1.0, production 2)."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def own_record(packet: str) -> str | None:
    """Return sdcli's record out of anybody's packet, None if it is not there.

    It is matched and not parsed, since it may be longer than what `find` takes. Other programs may turn an element into an
    attribute, and put entities into it. Raises BadInput for more of them than a record needs.
    """
    match = re.search(r"""<sdcli:record>([^<]*)</sdcli:record>|\ssdcli:record=(?:"([^"<]*)"|'([^'<]*)')""", packet)
    if match is None:
        return None
    text = match[match.lastindex or 1]
    if text.count("&") > MOST_ENTITIES:
        raise BadInput(f"its XMP has more than {MOST_ENTITIES} entities in sdcli's record")
    return html.unescape(text)


# sdcli writes none; who makes an attribute of a record needs one for each quote.
MOST_ENTITIES = 200_000
# What is parsed: a hostile megabyte costs a tenth of a second and 20 MB of memory.
MOST_PARSED = 2**20
MOST_DEPTH = 100


def find(packet: str, namespace: str, name: str) -> str | None:
    """Return a simple property's text, be it an element or an attribute; None if it is not there.

    Raises BadInput for a packet that is no XML, is too long or too deep, or has a document type, which no XMP has.
    """
    if len(packet) > MOST_PARSED:
        raise BadInput("its XMP is too long")
    wanted = f"{namespace} {name}"
    values: list[str] = []
    text: list[str] = []
    depth = inside = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth, inside
        depth += 1
        if depth > MOST_DEPTH:
            raise BadInput("its XMP is too deep")
        if wanted in attributes:
            values.append(attributes[wanted])
        inside += inside > 0 or tag == wanted

    def end(tag: str) -> None:
        nonlocal depth, inside
        depth -= 1
        if inside == 1:
            values.append("".join(text))
            text.clear()
        inside -= inside > 0

    def data(piece: str) -> None:
        if inside:
            text.append(piece)

    def refuse(*_: object) -> None:
        raise BadInput("its XMP has a document type, which no XMP has")

    parser = expat.ParserCreate("utf-8", namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = data, refuse
    try:
        parser.Parse(packet.removeprefix("\ufeff").encode("utf-8", "replace"), True)
    except expat.ExpatError as error:
        raise BadInput(f"its XMP is no XML: {error}") from error
    return values[0] if values else None
