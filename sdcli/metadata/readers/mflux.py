"""mflux: JSON in EXIF's UserComment; in PNG also XMP of its own namespace, which is read where there is no EXIF.

Source: filipstrand/mflux, src/mflux/utils/generated_image.py (`_get_metadata`), image_util.py (`_embed_metadata`) and
metadata_builder.py (`build_xmp_packet`). Its schedulers are not in the picture.
"""

from __future__ import annotations

from sdcli.metadata.readers import Said, Saying, Texts, json_object, xmp_text

ORDER = 35
NAMESPACE = "http://ns.mflux.ai/1.0/"
DUBLIN_CORE = "http://purl.org/dc/elements/1.1/"
# XMP's names -> the JSON's.
PROPERTIES = {
    "seed": "seed", "steps": "steps", "guidance": "guidance", "model": "model", "loras": "loras",
    "generationTimeSeconds": "generation_time_seconds",
}  # fmt: skip


def read(texts: Texts) -> Said | None:
    comment = texts.get("UserComment", "")
    values = json_object(comment, "UserComment") if '"mflux_version"' in comment else None
    if values is None:
        values = {key: xmp_text(texts, NAMESPACE, name) for name, key in PROPERTIES.items()}
        if not any(values.values()):
            return None
        values = {k: v for k, v in values.items() if v != "None"} | {
            "prompt": xmp_text(texts, DUBLIN_CORE, "description")
        }
    saying = Saying("mflux")
    for key, field in (
        ("prompt", "prompt"), ("negative_prompt", "negative_prompt"), ("seed", "seed"), ("steps", "num_inference_steps"),
        ("guidance", "guidance_scale"), ("width", "width"), ("height", "height"),
    ):  # fmt: skip
        saying.take(field, values.pop(key, None), key)
    model = {"name": values.pop("model", None), "hash": None, "base": values.pop("base_model", None)}
    saying.name(values)
    return saying.said(model)
