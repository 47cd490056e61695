"""The diagnoses of the virtual cohort: how often each occurs, and what its tissue is built from.

Frequencies are round numbers of the order that cancer registries report; they decide how long the tail is, nothing
more. One diagnosis is seen in held-out patients only.
"""

import dataclasses
from typing import Literal

Pattern = Literal[
    "glands", "lepidic", "papillae", "nests", "sheets", "files", "pools", "cribriform", "small_glands", "alveoli",
    "fascicles", "scattered",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What a tumour of this kind looks like; every field shows in the H&E."""

    name: str
    cohort: str  # cancer type
    share: float  # of the cohort's patients
    pattern: Pattern  # how tumour cells stand together
    pitch_um: float  # between neighbouring glands, nests, papillae
    compartment_um: float  # sigma of the fields that part tumour from stroma
    tumour_share: tuple[float, float]  # lowest and highest of a core region
    cell_spacing: float = 1.0  # factor on the distance between tumour cells
    nucleus_size: float = 1.0  # factors on a tumour nucleus
    nucleus_stretch: float = 1.0
    pleomorphism: float = 0.0  # added spread of the log size of tumour nuclei
    nucleolus: float = 0.25  # density that it adds to a tumour nucleus
    clear_cytoplasm: float = 0.0  # 0 eosinophilic to 1 water-clear
    eosinophilia: float = 1.0  # factor on the eosin of tumour cytoplasm
    membrane: float = 0.0  # how plainly cell borders stand out
    mucin: float = 0.0  # share of lumina and pools filled with mucin
    keratin: float = 0.0  # keratin pearls among nests
    necrosis: float = 0.0  # typical share of tumour that is necrotic
    desmoplasia: float = 0.0  # added density of collagen
    pigment: float = 0.0  # share of tumour cells with melanin
    vessels: float = 1.0  # factor on the number of vessels
    fat: float = 0.0  # share of stroma that is fat
    lymphoid: float = 1.0  # factor on aggregates and infiltrate
    fill: float = 0.5  # radius of a gland, nest, papilla or cluster, in pitches
    height_um: float = 13.0  # of the epithelium around lumina
    apical_um: float = 3.5  # of it free of nuclei, on the side of the lumen
    sieve_um: float = 40.0  # between the small lumina of a cribriform gland
    tubules: float = 0.0  # share of nests with a small lumen
    calcification: float = 0.0  # psammoma bodies per 0.01 mm²
    carbon: float = 0.0  # dust of the air in the macrophages
    held_out_only: bool = False


DIAGNOSES = (
    Diagnosis("lung adenocarcinoma, acinar", "LUAD", 0.40, "glands", 68, 75, (0.55, 0.75), desmoplasia=0.25, fill=0.42,
              height_um=12,
              carbon=0.5),
    Diagnosis("lung adenocarcinoma, lepidic", "LUAD", 0.20, "lepidic", 95, 110, (0.6, 0.85), nucleus_size=0.95,
              height_um=10, apical_um=2.5, carbon=0.5),
    Diagnosis("lung adenocarcinoma, papillary", "LUAD", 0.15, "papillae", 85, 90, (0.55, 0.8), height_um=11,
              apical_um=3, carbon=0.4),
    Diagnosis("lung adenocarcinoma, solid", "LUAD", 0.15, "sheets", 90, 80, (0.5, 0.75), nucleus_size=1.12,
              nucleolus=0.45, necrosis=0.06, carbon=0.4),
    Diagnosis("lung adenocarcinoma, mucinous", "LUAD", 0.10, "glands", 84, 90, (0.5, 0.75), nucleus_size=0.88,
              mucin=0.8, clear_cytoplasm=0.6, height_um=18, apical_um=10, carbon=0.4),
    Diagnosis("lung squamous carcinoma, keratinising", "LUSC", 0.55, "nests", 125, 90, (0.5, 0.75), nucleus_size=1.08,
              eosinophilia=1.5, membrane=0.6, keratin=0.8, necrosis=0.04, desmoplasia=0.35, fill=0.5, carbon=0.4),
    Diagnosis("lung squamous carcinoma, non-keratinising", "LUSC", 0.45, "nests", 120, 90, (0.5, 0.8),
              nucleus_size=1.05, membrane=0.35, keratin=0.08, necrosis=0.11, desmoplasia=0.2, fill=0.55, carbon=0.4),
    Diagnosis("breast carcinoma, ductal", "BRCA", 0.70, "nests", 66, 60, (0.55, 0.8), cell_spacing=0.9,
              desmoplasia=0.45, fat=0.3, fill=0.44, tubules=0.25),
    Diagnosis("breast carcinoma, lobular", "BRCA", 0.20, "files", 22, 90, (0.65, 0.9), cell_spacing=0.92,
              nucleus_size=0.95, nucleolus=0.08, desmoplasia=0.5, fat=0.3, lymphoid=0.7),
    Diagnosis("breast carcinoma, mucinous", "BRCA", 0.10, "pools", 120, 90, (0.55, 0.8), nucleus_size=0.85, mucin=1.0,
              fat=0.3, lymphoid=0.5, fill=0.2),
    Diagnosis("ovarian carcinoma, high-grade serous", "OV", 0.75, "papillae", 105, 85, (0.7, 0.95), cell_spacing=0.9,
              nucleus_size=1.22, pleomorphism=0.10, nucleolus=0.5, necrosis=0.05, height_um=21, apical_um=1.5,
              calcification=0.4),
    Diagnosis("ovarian carcinoma, endometrioid", "OV", 0.25, "glands", 74, 90, (0.6, 0.85), nucleus_stretch=1.25,
              height_um=17, apical_um=3.5, fill=0.52),
    Diagnosis("colorectal adenocarcinoma", "CRC", 0.80, "cribriform", 150, 95, (0.55, 0.8), nucleus_stretch=1.5,
              cell_spacing=0.9, necrosis=0.09, desmoplasia=0.35, height_um=18, apical_um=6, sieve_um=78, fill=0.44),
    Diagnosis("colorectal adenocarcinoma, mucinous", "CRC", 0.15, "pools", 150, 110, (0.55, 0.8), nucleus_stretch=1.35,
              mucin=1.0, height_um=18, apical_um=5, fill=0.2),
    Diagnosis("colorectal carcinoma, medullary", "CRC", 0.05, "sheets", 110, 90, (0.55, 0.8), nucleus_size=1.05,
              nucleolus=0.4, lymphoid=2.0),
    Diagnosis("melanoma, epithelioid", "SKCM", 0.60, "sheets", 66, 90, (0.6, 0.85), cell_spacing=1.08,
              nucleus_size=1.12, nucleolus=0.8, pigment=0.45),
    Diagnosis("melanoma, spindle cell", "SKCM", 0.30, "fascicles", 70, 90, (0.65, 0.9), nucleus_stretch=1.75,
              nucleolus=0.35, pigment=0.25),
    Diagnosis("melanoma, desmoplastic", "SKCM", 0.10, "scattered", 40, 100, (0.5, 0.8), nucleus_stretch=1.6,
              desmoplasia=0.9, lymphoid=1.6),
    Diagnosis("renal carcinoma, clear cell", "RCC", 0.75, "alveoli", 62, 110, (0.7, 0.95), cell_spacing=1.3,
              nucleus_size=0.85, clear_cytoplasm=1.0, membrane=0.9, vessels=1.7, lymphoid=0.7),
    Diagnosis("renal carcinoma, papillary", "RCC", 0.25, "papillae", 74, 100, (0.65, 0.9), nucleus_size=0.9,
              eosinophilia=1.25, lymphoid=0.7, height_um=10, apical_um=2.5, fill=0.7),
    Diagnosis("renal carcinoma, chromophobe", "RCC", 0.12, "sheets", 110, 120, (0.7, 0.95), cell_spacing=1.35,
              nucleus_size=0.9, clear_cytoplasm=0.45, membrane=1.0, vessels=0.7, lymphoid=0.4, held_out_only=True),
    Diagnosis("prostate adenocarcinoma, acinar", "PRAD", 0.85, "small_glands", 46, 100, (0.6, 0.85), nucleus_size=0.85,
              nucleolus=0.6, clear_cytoplasm=0.35, lymphoid=0.5, desmoplasia=0.3, height_um=9.5, apical_um=3.0,
              fill=0.41),
    Diagnosis("prostate adenocarcinoma, cribriform", "PRAD", 0.15, "cribriform", 115, 95, (0.55, 0.8),
              nucleolus=0.6, clear_cytoplasm=0.25, lymphoid=0.5, height_um=11, apical_um=2.5, sieve_um=30, fill=0.46),
)  # fmt: skip

COHORT_SHARE = {"LUAD": 0.20, "BRCA": 0.18, "CRC": 0.15, "LUSC": 0.12, "SKCM": 0.11, "OV": 0.09, "RCC": 0.08,
                "PRAD": 0.07}  # fmt: skip
COHORTS = tuple(COHORT_SHARE)
NSCLC = ("LUAD", "LUSC")
