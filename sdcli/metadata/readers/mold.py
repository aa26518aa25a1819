"""mold: JSON under `mold:parameters` in PNG, behind the same word in JPEG's comment, and in JPEG's XMP.

Source: utensils/mold, crates/mold-inference/src/image.rs (`write_png`, `write_jpeg`, `build_xmp_packet`) and
crates/mold-core/src/types.rs (`OutputMetadata`, `Scheduler`). Its UniPC is candle's, which was not compared; it stays
unmapped.
"""

from __future__ import annotations

from contextlib import suppress

from sdcli.metadata.readers import Said, Saying, Texts, Unreadable, json_object, scheduler, xmp_text

ORDER = 15
KEYWORD = "mold:parameters"
NAMESPACE = "https://github.com/utensils/mold"


def read(texts: Texts) -> Said | None:
    values = json_object(texts.get(KEYWORD), KEYWORD)
    comment = texts.get("Comment", "")
    if values is None and comment.startswith(f"{KEYWORD} "):
        with suppress(Unreadable):  # A comment is cut at 64 KiB.
            values = json_object(comment.removeprefix(KEYWORD), KEYWORD)
    if values is None:
        values = json_object(xmp_text(texts, NAMESPACE, "parameters"), KEYWORD)
    if values is None:
        return None
    saying = Saying("mold")
    for key, field in (
        ("prompt", "prompt"), ("negative_prompt", "negative_prompt"), ("seed", "seed"), ("steps", "num_inference_steps"),
        ("guidance", "guidance_scale"), ("width", "width"), ("height", "height"),
    ):  # fmt: skip
        saying.take(field, values.pop(key, None), key)
    name = values.pop("scheduler", None)
    saying.take_scheduler(scheduler(name), {"scheduler": name})
    model = {"name": values.pop("model", None), "hash": None}
    saying.name(values)
    return saying.said(model)
