"""tario encode: features of H&E patches by a frozen encoder, into a corpus."""

import argparse
from pathlib import Path

from tario_jax.cli.options import above_0, at_least_one, finish, part_of, say

SUMMARY = "features of H&E patches by a frozen encoder, stored in a corpus; run again, it continues"
EXAMPLES = """
    tario encode --corpus=corpora/her2st --encoder=efficientnet-lite0
    tario encode --corpus=gs://tissue/corpus --encoder=efficientnet-lite0 --part=3/16
    tario encode --corpus=corpora/her2st --encoder=efficientnet-lite0 --um-per-patch=112 --name=lite0-112um
    tario encode --corpus=corpora/lung --encoder=uni --weights=models/uni
    tario encode --corpus=corpora/lung --encoder=mine --card=mine.json --weights=mine.onnx
"""
GROUPS_READ = ()


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--corpus", required=True, metavar="PLACE", help="sealed corpus (a folder, gs://… or s3://…)")
    parser.add_argument("--encoder", required=True, metavar="NAME",
                        help="of the catalogue (docs/encoders.md), of --card, or of features that some sections of "
                        "the corpus have")  # fmt: skip
    parser.add_argument("--card", type=Path, metavar="FILE.json", help="what another encoder is, and how it is read")
    parser.add_argument("--weights", type=Path, metavar="PLACE",
                        help="file, or folder as the hub has it; by default what its library finds")  # fmt: skip
    parser.add_argument("--um-per-patch", type=above_0,
                        help="side of the square that one vector describes; as the card has it by default")  # fmt: skip
    parser.add_argument("--pitch-um", type=above_0,
                        help="between neighbouring vectors; the card's share of the square by default")  # fmt: skip
    parser.add_argument("--name", help="under which the features are stored and asked for; the encoder's by default")
    parser.add_argument("--sections", help="only these, with commas; all by default")
    parser.add_argument("--part", type=part_of, default=(1, 1), metavar="K/N",
                        help="only every N-th section from the K-th on: one of N jobs of one corpus")  # fmt: skip
    parser.add_argument("--batch", type=at_least_one, default=32, help="patches that are encoded at once (32)")
    parser.set_defaults(config=None)


def run(options: argparse.Namespace) -> int:
    from tario_jax.corpus.read import Corpus
    from tario_jax.he_features.encode import encode_corpus, encoder_for
    from tario_jax.he_features.encoders import Chosen

    corpus = Corpus.open(options.corpus)
    chosen = Chosen(options.card, options.weights, options.um_per_patch, options.pitch_um, options.name)
    encoder = encoder_for(corpus, options.encoder, chosen)
    card = encoder.card
    say(f"{card.name}: {card.about}; licence: {card.licence}")
    say(f"a vector of {card.features} numbers for each square of {card.patch_um:g} µm ({card.input_px} px at "
        f"{card.um_per_px:g} µm), every {card.pitch_um:g} µm; card {card.hash}")  # fmt: skip
    sections = tuple(filter(None, (options.sections or "").split(",")))
    done = encode_corpus(corpus, encoder, batch=options.batch, part=options.part, sections=sections, say=say)
    rows = {"sections encoded": len(done.written), "had them already": len(done.kept),
            "without an H&E": len(done.without_he), "vectors": done.vectors,
            "vectors a second": round(done.vectors / done.seconds, 1) if done.vectors else 0.0}  # fmt: skip
    result = {"corpus": str(corpus.root), "card": card.to_json(), "card_hash": card.hash,
              "written": done.written, "kept": done.kept, "without_he": done.without_he, "vectors": done.vectors,
              "seconds": round(done.seconds, 1)}  # fmt: skip
    return finish(options, "\n".join(f"{name:<18} {value:,}" for name, value in rows.items()), result)
