"""Names that all of the simulator shares: cell types, their looks, and their states."""

TYPES = (
    "tumour", "epithelium", "fibroblast", "myofibroblast", "endothelial", "mural", "cd4_t", "cd8_t", "treg", "nk",
    "b_cell", "plasma", "macrophage", "dendritic", "mast", "neutrophil", "adipocyte",
)  # fmt: skip
LOOKS = (
    "tumour",
    "epithelium",
    "spindle",
    "vessel_wall",
    "lymphocyte",
    "plasma",
    "myeloid",
    "granulocyte",
    "adipocyte",
)
"""All that is drawn of a cell's type. Types that share a look are told apart only by `hidden.py`."""
TUMOUR, EPITHELIUM, SPINDLE, VESSEL_WALL, LYMPHOCYTE, PLASMA, MYELOID, GRANULOCYTE, ADIPOCYTE = range(len(LOOKS))
TYPES_OF_LOOK = {
    "tumour": ("tumour",), "epithelium": ("epithelium",), "spindle": ("fibroblast", "myofibroblast"),
    "vessel_wall": ("endothelial", "mural"), "lymphocyte": ("cd4_t", "cd8_t", "treg", "nk", "b_cell"),
    "plasma": ("plasma",), "myeloid": ("macrophage", "dendritic"), "granulocyte": ("mast", "neutrophil"),
    "adipocyte": ("adipocyte",),
}  # fmt: skip
VISIBLE_STATES = ("proliferation", "hypoxia", "keratinisation", "emt")
"""Drawn: larger and darker tumour nuclei and mitoses; paler cytoplasm far from vessels; pink cytoplasm; long nuclei."""
UNSEEN_STATES = ("interferon", "tgf_beta", "subclone", "stress", "metabolism")
"""The first two spread from cells around, over some 300 µm; nothing shows the others."""
STATES = VISIBLE_STATES + UNSEEN_STATES
STATE_LIMIT = 3.0
"""States are clipped to ± this, so that the rates that they turn up have a bound."""
