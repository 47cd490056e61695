"""Features of a regular grid of patches over a section's H&E, and of all sections of a corpus."""

import concurrent.futures
import dataclasses
import time
from collections.abc import Callable, Iterator

import numpy as np

from tario_jax.config import InputError
from tario_jax.corpus.feature_grid import FeatureGrid, grid_size, held_grid, read_seal, write_grid
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.stored_section import Section, coarser_he
from tario_jax.he_features.card import EncoderCard
from tario_jax.he_features.catalogue import CARDS
from tario_jax.he_features.encoders import AS_ITS_CARD, Chosen, Encoder, as_chosen, encoder_of, load_encoder

_BLOCK = 8  # vectors along each side of a square that is read at once: neighbours share their pixels
_READ_AHEAD = 2


def encode_section(section, encoder: Encoder, *, batch: int = 32,
                   progress: Callable[[int, int], None] = lambda done, of: None) -> np.ndarray:  # fmt: skip
    """Vectors of the grid that covers a section, float16 [rows, columns, F].

    section: with an H&E, of a corpus or an image; a vector's place is the middle of the square that its encoder sees.
    Squares that reach beyond the H&E see it mirrored at its edge. progress(done, of) counts vectors. Raises
    `InputError` where a vector is not finite.
    """
    card = encoder.card
    rows, columns = grid_size(section.width_um, section.height_um, card.pitch_um)
    vectors_RxCxF = np.empty((rows, columns, card.features), np.float16)
    waiting: list[tuple[int, int, np.ndarray]] = []
    done = 0

    def flush(least: int) -> None:
        nonlocal waiting, done
        while len(waiting) >= least and waiting:
            some, waiting = waiting[:batch], waiting[batch:]
            pixels = np.stack([patch for *_, patch in some])
            # one shape only: a program is compiled for each
            pixels = np.concatenate([pixels, np.repeat(pixels[-1:], batch - len(some), 0)])
            found = np.asarray(encoder.features(pixels))[: len(some)]
            if not (np.abs(found) <= np.finfo(np.float16).max).all():  # nor NaN
                raise InputError(f"encoder {card.name}: a vector is not finite in float16 ({section.id}); expected "
                                 "numbers within 65,504")  # fmt: skip
            for (row, column, _), vector in zip(some, found, strict=True):
                vectors_RxCxF[row, column] = vector
            done += len(some)
            progress(done, rows * columns)

    for block in _blocks(section, card, rows, columns):
        waiting += block
        flush(batch)
    flush(1)
    return vectors_RxCxF


def _blocks(section, card, rows: int, columns: int) -> Iterator[list[tuple[int, int, np.ndarray]]]:
    """(row, column, pixels) of the grid's patches, block by block, read ahead by a thread."""
    corners = [(row, column) for row in range(0, rows, _BLOCK) for column in range(0, columns, _BLOCK)]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        reading = [pool.submit(_block, section, card, *corner, rows, columns) for corner in corners[:_READ_AHEAD]]
        for number in range(len(corners)):
            if number + _READ_AHEAD < len(corners):
                reading.append(pool.submit(_block, section, card, *corners[number + _READ_AHEAD], rows, columns))
            yield reading.pop(0).result()


def _block(section, card, row0: int, column0: int, rows: int, columns: int) -> list[tuple[int, int, np.ndarray]]:
    scale, px = card.um_per_px, card.input_px
    # corners of the first patch and of all others fall on px of the square that is read, off by half a px at most
    left_um, top_um = ((at + 0.5) * card.pitch_um - card.patch_um / 2 for at in (column0, row0))
    steps = [round(k * card.pitch_um / scale) for k in range(_BLOCK)]
    side = steps[-1] + px
    pixels = section.begin_he_window(left_um, top_um, side, scale)()
    pixels = _mirrored(pixels, [(-corner / scale, (extent - corner) / scale) for corner, extent in
                                ((top_um, section.height_um), (left_um, section.width_um))])  # fmt: skip
    return [
        (row0 + down, column0 + across, pixels[steps[down] : steps[down] + px, steps[across] : steps[across] + px])
        for down in range(min(_BLOCK, rows - row0)) for across in range(min(_BLOCK, columns - column0))
    ]  # fmt: skip


def _mirrored(pixels: np.ndarray, extents: list[tuple[float, float]]) -> np.ndarray:
    """A square with what lies outside of the image (in px, by axis: where it begins and ends) mirrored from within."""
    inside, beyond = [], []
    for (begin, end), size in zip(extents, pixels.shape[:2], strict=True):
        # a px that the image covers only partly is white to a part
        first, last = max(0, int(np.ceil(begin - 1e-6))), min(size, int(np.floor(end + 1e-6)))
        last = max(last, first + 1)
        inside.append(slice(first, last))
        beyond.append((first, size - last))
    if beyond == [(0, 0), (0, 0)]:
        return pixels
    return np.pad(pixels[*inside], (*beyond, (0, 0)), mode="symmetric")


def grid_of(section, encoder: Encoder, *, batch: int = 32) -> FeatureGrid:
    """The features of a section or an image, in memory."""
    return held_grid(encoder.card.to_json(), encoder.card.hash, encode_section(section, encoder, batch=batch))


@dataclasses.dataclass(frozen=True)
class Encoded:
    """What `encode_corpus` did."""

    written: tuple[str, ...]  # sections
    kept: tuple[str, ...]  # had the features already
    without_he: tuple[str, ...]
    vectors: int
    seconds: float


def encode_corpus(corpus: Corpus, encoder: Encoder, *, batch: int = 32, part: tuple[int, int] = (1, 1),
                  sections: tuple[str, ...] = (), say: Callable[[str], None] = print) -> Encoded:  # fmt: skip
    """Stores the features of every section with an H&E, section by section; those that have them already are kept.

    part: (k, n) of n processes that share the sections; sections: only these, by name. Raises `InputError` where the
    place holds features of another card.
    """
    chosen = [corpus.section(name) for name in sections] or list(corpus.sections)
    with_he = [section for section in chosen if section.holds("he")]
    if not with_he:
        raise InputError(f"corpus {corpus.root}: no section has an H&E; there is nothing to encode")
    missing = {section.id for section in with_he if not _has(section, encoder)}  # all, before any is encoded
    # every N-th of all sections: what others have written meanwhile changes no one's share
    mine = [section for section in with_he[part[0] - 1 :: part[1]] if section.id in missing]
    sizes = {section.id: int(np.prod(grid_size(section.width_um, section.height_um, encoder.card.pitch_um)))
             for section in mine}  # fmt: skip
    if warning := coarser_he(mine, encoder.card.um_per_px):
        say(f"encode: {warning}")
    total, done, began = sum(sizes.values()), 0, time.monotonic()
    last = began
    for number, section in enumerate(mine, 1):

        def progress(here: int, of: int, before: int = done, number: int = number, name: str = section.id) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < 15 and before + here < total:
                return
            last = now
            rate = (before + here) / max(now - began, 1e-9)
            say(f"encode: {number}/{len(mine)} sections  {name}  {before + here:,} of {total:,} vectors, "
                f"{rate:.0f} a second, {_minutes((total - before - here) / rate)} left")  # fmt: skip

        vectors_RxCxF = encode_section(section, encoder, batch=batch, progress=progress)
        grid = held_grid(encoder.card.to_json(), encoder.card.hash, vectors_RxCxF)
        write_grid(section.place, encoder.card.name, section.seal_sha256, grid, vectors_RxCxF)
        section.close()
        done += sizes[section.id]
    kept = {section.id for section in with_he} - missing
    return Encoded(tuple(sizes), tuple(sorted(kept)), tuple(s.id for s in chosen if not s.holds("he")), total,
                   time.monotonic() - began)  # fmt: skip


def encoder_for(corpus: Corpus, encoder: str, chosen: Chosen = AS_ITS_CARD) -> Encoder:
    """As `load_encoder`; a name that it does not know is that of features which other sections of the corpus have."""
    if chosen.card is None and encoder not in CARDS and (card := _stored_card(corpus, encoder)) is not None:
        return encoder_of(as_chosen(card, chosen), chosen.weights)
    return load_encoder(encoder, chosen)


def _stored_card(corpus: Corpus, encoder: str) -> EncoderCard | None:
    with concurrent.futures.ThreadPoolExecutor(16) as pool:  # in a bucket every read is a journey
        for seal in pool.map(lambda section: read_seal(section.place, encoder), corpus.sections):
            if seal is not None:
                return EncoderCard.from_json(seal["card"], f"corpus {corpus.root}: features {encoder!r}")
    return None


def encode_missing(corpus: Corpus, encoder: str, say: Callable[[str], None] = print) -> None:
    """Encodes the sections that have no features of this name; where all have them, no encoder is needed."""
    with_he = [section for section in corpus.sections if section.holds("he")]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:  # in a bucket every read is a journey
        told = pool.map(lambda section: read_seal(section.place, encoder), with_he)
    if any(seal is None or seal["section_seal"] != section.seal_sha256
           for section, seal in zip(with_he, told, strict=True)):  # fmt: skip
        done = encode_corpus(corpus, encoder_for(corpus, encoder), say=say)
        say(f"encode: {len(done.written)} sections, {done.vectors:,} vectors of {encoder} in {done.seconds:.0f} s")


def _has(section: Section, encoder: Encoder) -> bool:
    """Whether the section has these features. Raises `InputError` where it has others under the same name."""
    card, told = encoder.card, read_seal(section.place, encoder.card.name)
    if told is None or told["section_seal"] != section.seal_sha256:  # of an earlier ingest: written anew
        return False
    if told["card_hash"] != card.hash:
        before, now = told["card"], card.to_json()
        words = ("about", "source", "licence")
        differs = [name for name in now if name not in words and before.get(name) != now[name]]
        found = ", ".join(f"{name} = {before.get(name)!r}, now {now[name]!r}" for name in differs)
        raise InputError(f"section {section.id!r}: holds features {card.name!r} of another card ({found}); delete "
                         f"{section.place}/features/{card.name}, or give --name")  # fmt: skip
    return True


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
