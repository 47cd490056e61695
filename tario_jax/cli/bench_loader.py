"""tario bench loader."""

import argparse

from tario_jax.cli.options import at_least_one, config_flags, config_of, corpus_of, finish, say
from tario_jax.config import Config, DataConfig

SUMMARY = "how fast batches are made, beside bare reads and a dataset that opens its store per item"
EXAMPLES = """
    tario bench loader --corpus=corpora/cohort
    tario bench loader --corpus=corpora/cohort --config=configs/tario2_200m.py --devices=8
    tario bench loader --corpus=corpora/cohort --config=configs/tario2_50m.py --config.data.rows=1 --training-steps=5
"""
# windows of 256 µm in bins of 18 µm, H&E at 0.5 µm per px
_DEFAULT = Config(data=DataConfig(bin_um=18.0, window_um=256.0, tile_um=128.0, he_um_per_px=0.5, patch_px=32))


def flags(parser: argparse.ArgumentParser) -> None:
    config_flags(parser, required=False)
    parser.add_argument("--corpus", metavar="PLACE", help="of detections; WORKDIR/corpus by default")
    parser.add_argument("--batches", type=at_least_one, default=2, help="of each loader and round (2)")
    parser.add_argument("--rounds", type=at_least_one, default=5, help="the loaders take turns; medians are told (5)")
    parser.add_argument("--training-steps", type=int, default=0,
                        help="train the config's model for so many steps: how long does it wait? (0)")  # fmt: skip
    parser.add_argument("--devices", type=at_least_one, default=8, help="H100 of the consumer that is asked for (8)")
    parser.add_argument("--utilisation", type=float, default=0.4, help="of their peak (0.4)")


def run(options: argparse.Namespace) -> int:
    from tario_jax.bench.loader import bench_loader
    from tario_jax.corpus.read import Corpus

    config = _DEFAULT if options.config is None else config_of(options)
    config.refuse_he_alone("tario bench loader")
    corpus = Corpus.open(corpus_of(options))
    result = bench_loader(
        config, corpus, batches=options.batches, rounds=options.rounds,
        training_steps=options.training_steps, devices=options.devices, utilisation=options.utilisation, say=say,
    )  # fmt: skip
    return finish(options, result["table"], result)
