"""Draws the gallery of `docs/virtual_gallery.png` again and marks the blind reading of it: `… OUT.json [--write]`.

`docs/virtual_gallery.json` holds the answers and the reading: who read, what they were given, what they named. With
--write the gallery and the answers in docs are replaced, and the reading with them: a new gallery wants a new reader.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from tario_jax.virtual.gallery import draw_gallery

GALLERY, NOTES = Path("docs/virtual_gallery.png"), Path("docs/virtual_gallery.json")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        image, answers = Path(folder) / "gallery.png", Path(folder) / "answers.json"
        draw_gallery(image, answers, seed=0)
        drawn, fields = np.asarray(Image.open(image)), json.loads(answers.read_text())
        if "--write" in sys.argv:
            GALLERY.write_bytes(image.read_bytes())
            NOTES.write_text(json.dumps({"fields": fields, "reading": {}}, indent=1) + "\n")
    notes = json.loads(NOTES.read_text())
    read = notes["reading"].get("named", {})
    known = np.asarray(Image.open(GALLERY))
    same = known.shape == drawn.shape and np.abs(known.astype(int) - drawn).mean() < 2  # JPEG decoders differ a little
    right = sum(read.get(str(field["field"])) == field["diagnosis"] for field in fields)
    result = {
        "right": right if same and notes["fields"] == fields else 0,  # a reading of another gallery says nothing
        "of": len(fields), "same_gallery": bool(same), "sha256": hashlib.sha256(drawn.tobytes()).hexdigest(),
    }  # fmt: skip
    for field in fields:
        named = read.get(str(field["field"]), "not read")
        print(f"{field['field']:>2}  {field['diagnosis']:<45} read as {named}")
    print(f"{result['right']} of {result['of']} named rightly; the gallery is that of docs: {result['same_gallery']}")
    Path(sys.argv[1]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
