"""Virtual patients: a cohort whose true expression is known.

What is modelled: tumours of eight cancer types in 23 diagnoses, with stroma, vessels, normal epithelium, lymphoid
aggregates, necrosis, mucin, keratin and fat; cells of 17 types with states that follow the tissue (proliferation,
hypoxia away from vessels, keratinisation, EMT at the tumour's border), that spread from neighbours (interferon,
TGF-beta) or that nothing shows (subclone, stress, metabolism); patients with sex, smoking, genotype, site, scanner,
treatment and response; their H&E, with each patient's stain, light, focus, compression and registration error; and
detections of 18,963 genes with real symbols, overdispersed, at sub-micron places, with false negatives, dim edges, lost
pools of genes and a diffuse background. What is not modelled: any measured expression profile (which gene marks which
cell is textbook knowledge, its strength is drawn at random), copy number, clonal history, nerves, muscle, bone, folds,
tears, pen marks, segmentation, optical crowding, and the differences between real laboratories. A model that does well
here has learnt this simulator, not biology.

Truth. T is the expected number of detections of a bin, given the section's cells, types, states, patient and assay. V
is E[T | all that is drawn in the H&E]. As drawn count: the place, look, size, shape and direction of every cell; the
visible states; the ground plan (compartments, glands, vessels, aggregates, and distances to them; also to those that
lie beyond the section's edge, which no image shows); the diagnosis; the patient's traits (grade, infiltrate, infiltrate
at the border, fibrosis, vessels), and the site, which its stain tells. Not drawn, and redrawn 24 times for V: the type
behind a look (CD4 T, CD8 T, regulatory T, NK or B cell; fibroblast or myofibroblast; endothelial or mural cell;
macrophage or dendritic cell; mast cell or neutrophil), the unseen states with all that spreads from cells whose type is
not seen, and the patient's levels of them. Averaged exactly: sex given the cancer type, and what a genotype does to its
genes, given the cancer type, the traits and the site (what it does to the unseen levels is averaged over the 24
redraws). The patient's own gene effects, the assay's efficiencies and the fields of the null genes are left out, as
factors of mean 1 (but for the dim edges of fields of view, which take 2 % of all detections). Null genes are a fixed
share of the RNA of every cell times a field of their own: their V is a constant composition. V is thus what a reader of
the tissue could say who sees every drawn feature without error, and without the registration error that the images
bear: an upper bound.
"""

from tario_jax.virtual.genes import curated_panel, virtual_panel
from tario_jax.virtual.patients import cohort_split, patient_id, patient_number
from tario_jax.virtual.section import Settings, simulate_section, truth_rates

__all__ = [
    "Settings", "cohort_split", "curated_panel", "patient_id", "patient_number", "simulate_section", "truth_rates",
    "virtual_panel",
]  # fmt: skip
