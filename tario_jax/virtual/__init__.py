"""Virtual patients: a cohort whose true expression is known.

What is modelled: tumours of three cancer types (lung adenocarcinoma with glands, breast carcinoma in nests and files,
melanoma in sheets) with stroma, vessels, normal ducts and lymphoid aggregates; some 2,000 to 3,000 cells of 14 types
in a section of 512 µm, with states that follow the tissue (proliferation, hypoxia away from vessels, EMT at the
tumour's border), that spread from neighbours (interferon, TGF-beta) or that nothing shows (subclone, stress,
metabolism); their H&E, with stain, thickness, focus and scanner of each patient; and detections of 635 genes with real
symbols, overdispersed, at sub-micron places, over a diffuse background. What is not modelled: any measured expression
profile (which gene marks which cell is textbook knowledge, its strength is drawn at random), genotypes, copy number,
necrosis, fat, nerves, tissue folds, segmentation, optical crowding, dropout of fields, misregistration, and the
differences between real laboratories. A model that does well here has learnt this simulator, not biology.

Truth. T is the expected number of detections of a bin, given the section's cells, types, states and patient. V is
E[T | all that is drawn in the H&E]. As drawn count: the place, look, size, shape and direction of every cell; the
visible states (proliferation: larger and darker tumour nuclei, mitoses; hypoxia: paler cytoplasm; EMT: longer nuclei);
the ground plan (compartments, glands, vessels, aggregates and distances to them); and the patient's traits (grade,
immune infiltrate, fibrosis). Not drawn, and redrawn 24 times for V: the type behind a look (CD4 T, CD8 T or B cell;
fibroblast or myofibroblast; endothelial or mural cell; macrophage or dendritic cell; mast cell or neutrophil), the
subclone, stress and metabolism, what spreads from cells whose type is not seen, and the patient's levels of all these.
The patient's own gene effects, the efficiency and the fields of the null genes are factors of mean 1, averaged exactly.
Null genes are a fixed share of the RNA of every cell times a field of their own: their V is a constant composition.
V is thus the best that any reader of the H&E could do who reads every drawn feature without error: an upper bound.
"""

from tario_jax.virtual.genes import virtual_panel
from tario_jax.virtual.patients import cohort_split, patient_id, patient_number
from tario_jax.virtual.section import simulate_section

__all__ = ["cohort_split", "patient_id", "patient_number", "simulate_section", "virtual_panel"]
