"""Ask an exported learner, without torch and without pah: python serve_onnx.py birds.onnx photo.jpg ..."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1])
about = session.get_modelmeta().custom_metadata_map
channels, height, width = json.loads(about["image_shape"])
resizing = json.loads(about.get("resizing", '{"interpolation": "bilinear", "crop_share": 1}'))
resampling, bleed = Image.Resampling[resizing["interpolation"].upper()], (1 - resizing["crop_share"]) / 2
for file in sys.argv[2:]:
    image = ImageOps.exif_transpose(Image.open(file)).convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), resampling, bleed=bleed)
    pixels = np.atleast_3d(np.asarray(image))
    answers = session.run(None, {"images": pixels.transpose(2, 0, 1)[None]})
    for task, probabilities in zip(json.loads(about["tasks"]), answers, strict=True):
        best = probabilities[0].argmax()
        print(file, task["name"], task["classes"][best], f"{probabilities[0][best]:.3f}", sep="\t")
