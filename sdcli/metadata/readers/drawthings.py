"""Draw Things: JSON in XMP's `exif:UserComment` (PNG), or in EXIF's UserComment itself.

Source: drawthingsai/draw-things-community, Libraries/LocalImageGenerator/Sources/ImageConverter.swift (`imageData` writes
it, `configuration` reads it) and Libraries/DataModels/Sources/Defaults.swift (the samplers' names). Apple's ImageIO
makes XMP of it; how the packet looks is from public programs that read it.
"""

from __future__ import annotations

from sdcli.metadata.readers import Said, Saying, Texts, json_object, scheduler, xmp_text

ORDER = 45
EXIF = "http://ns.adobe.com/exif/1.0/"


def read(texts: Texts) -> Said | None:
    for text in (xmp_text(texts, EXIF, "UserComment"), texts.get("UserComment")):
        if text is None or '"uc"' not in text or '"c"' not in text:
            continue
        values = json_object(text, "UserComment")
        if values is None or not {"c", "uc"} <= values.keys():
            continue
        saying = Saying("drawthings")
        saying.take("prompt", values.pop("c"), "c")
        saying.take("negative_prompt", values.pop("uc") or None, "uc")
        for key, field in (("seed", "seed"), ("steps", "num_inference_steps"), ("scale", "guidance_scale")):
            saying.take(field, values.pop(key, None), key)
        saying.take_size(values.pop("size", None), "size")
        sampler = values.pop("sampler", None)
        saying.take_scheduler(scheduler(sampler), {"sampler": sampler})
        if "clip_skip" in values and "target_size" not in values:
            # TextEncoder.swift: of Stable Diffusion 1's twelve layers 13 less this are read. SDXL, whose pictures have a
            # target size, counts each of its two encoders differently.
            saying.take_clip_skip(values.pop("clip_skip"), "clip_skip")
        model = values.pop("model", None)
        # `v2` says it all again, for the program's own scripts.
        saying.name({k: v for k, v in values.items() if k != "v2"})
        return saying.said({"name": model, "hash": None})
    return None
