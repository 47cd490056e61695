"""Whole slides: H&E alone, each slide a section, stored block by block at about the µm per px that was asked."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tario_jax.config import InputError
from tario_jax.corpus.resample import square_means
from tario_jax.corpus.section import (
    COARSER,
    PLAUSIBLE_UM_PER_PX,
    BlockImage,
    SectionData,
    check_section_id,
    check_whose,
)
from tario_jax.panel import Panel
from tario_jax.sources.ingested import ALL_SECTIONS, Ingested, IngestReport
from tario_jax.sources.slide_files import DICOM, PLAIN, TIFF, VENDORS, SlideFile, opened_slide

FORCED_UM_PER_PX = (0.01, 100.0)  # also where it is forced
_DISAGREE = 0.05  # two scales of one slide that differ by more are not the same
_BLOCK_PX = 4096  # side of what is read at once to be averaged
_OWNER_COLUMNS = ("file", "patient", "cohort", "section")


@dataclasses.dataclass(frozen=True)
class _Owner:
    patient_id: str
    cohort: str
    section_id: str


@dataclasses.dataclass(frozen=True)
class Scale:
    """What is read of a slide and what is stored: the mean of squares of `factor` px of one level."""

    full_um_per_px: float
    level: int
    factor: int
    stored_um_per_px: float


def read_slide(
    path: str | Path,
    *,
    panel: Panel,
    patient_id: str | None = None,
    cohort: str | None = None,
    section_id: str | None = None,
    patients_file: str | Path | None = None,
    um_per_px: float | None = None,
    he_um_per_px: float = 0.5,
    force: bool = False,
) -> Ingested:
    """Reads one slide (a file, or the folder of a DICOM slide), or each slide of a folder, as H&E without detections.

    Whose tissue it is: `patient_id` and `cohort` for all of them, or `patients_file`, a table with the columns file,
    patient, cohort and, where the file's stem shall not be its name, section. µm per px of the finest level is
    `um_per_px`, else what the file says. The coarsest level that is not coarser than `he_um_per_px` (by more than 10 %)
    is read, and averaged over the largest whole number of px that stays below it. `panel` is that of the corpus; a
    slide measures none of its genes. Blocks are read while they are written: a slide is never whole in memory, but for
    PNG, JPEG and TIFF of compressed strips, which are refused above 500 million px.

    Raises `InputError` for a file that is no slide or truncated, an image that is not 8-bit RGB, µm per px that are
    stated nowhere or, without `force`, not within 0.1 to 1.2, and a slide or a patient that the other list lacks.
    """
    path = Path(path)
    _check_scale(he_um_per_px, "--he-um-per-px", force=False, fix="leave it out for 0.5")
    report = IngestReport("slide", str(path))
    slides = _slides(path, report)
    if patients_file is not None:
        owners = _owners(Path(patients_file), path, slides)
    else:
        if not patient_id or not cohort:
            raise InputError(f"{path}: no patient or no cohort; name whose tissue it is: splits go by patient")
        if section_id is not None and len(slides) > 1:
            raise InputError(f"--section={section_id}: {path} holds {len(slides)} slides; name them by --patients-file")
        owners = [_Owner(patient_id, cohort, section_id or slide.stem) for slide in slides]
    _check_names(slides, owners)
    scales = []  # all before the first is stored: a slide that cannot be read should not end a night's work
    for slide, owner in zip(slides, owners, strict=True):
        with opened_slide(slide) as file:
            scales.append(_scale_of(file, um_per_px, he_um_per_px, force, owner.section_id, report))

    def generate() -> Iterator[SectionData]:
        for slide, owner, scale in zip(slides, owners, scales, strict=True):
            with opened_slide(slide) as file:
                yield _section(file, owner, scale, len(panel))

    return Ingested(panel, generate(), len(slides), report)


def _slides(path: Path, report: IngestReport) -> list[Path]:
    """The slide at `path`, or those in it; what is no slide is counted."""
    known = (*VENDORS, *TIFF, *PLAIN)
    if not path.is_dir() or _holds_dicom(path):
        report.open("slides", ALL_SECTIONS, 1).close(1)
        return [path]
    found, of_mirax = [], {one.stem for one in path.glob("*.mrxs")}
    inside = sorted(one for one in path.iterdir() if not (one.is_dir() and one.name in of_mirax))
    tally = report.open("slides", ALL_SECTIONS, len(inside))
    for one in inside:
        if one.name.startswith("."):
            tally.drop("a hidden file", 1)
        elif one.is_dir() and not _holds_dicom(one):
            tally.drop(f"a folder without {DICOM}", 1)
        elif one.is_file() and one.suffix.lower() not in known:
            tally.drop(f"{one.suffix or one.name}: not a slide", 1)
        else:
            found.append(one)
    if not found:
        raise InputError(f"{path}: holds no slide; expected files that end in {', '.join(known)}, or folders of DICOM")
    tally.close(len(found))
    return found


def _holds_dicom(folder: Path) -> bool:
    """Whether it is a DICOM slide. Raises `InputError` beside other slides: which is meant would be a guess."""
    files = [one for one in folder.iterdir() if not one.name.startswith(".")]
    dicom = sorted(one.name for one in files if one.suffix.lower() == DICOM)
    others = sorted(one.name for one in files if one.suffix.lower() in (*VENDORS, *TIFF, *PLAIN))
    if dicom and others:
        raise InputError(f"{folder}: holds {dicom[0]} of a DICOM slide and {others[0]}; expected one DICOM slide, or "
                         "slides of other kinds; take the one or the other into a folder of its own")  # fmt: skip
    return bool(dicom)


def _owners(table: Path, path: Path, slides: list[Path]) -> list[_Owner]:
    """Whose each slide is. Raises `InputError` for a slide without a line, and a line without a slide."""
    try:
        lines = table.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--patients-file={table}: cannot be read ({type(error).__name__}); expected a table of text "
                         "with tabs") from None  # fmt: skip
    columns = tuple(lines[0].split("\t")) if lines else ()
    if columns not in (_OWNER_COLUMNS[:3], _OWNER_COLUMNS):
        raise InputError(f"{table}: first line is {lines[:1]}; expected file<TAB>patient<TAB>cohort, and <TAB>section "
                         "where sections get other names than their files")  # fmt: skip
    owner_of: dict[str, _Owner] = {}
    for number, line in enumerate(lines[1:], 2):
        cells = line.split("\t")
        if len(cells) != len(columns) or not all(cells) or cells[0] in owner_of:
            raise InputError(f"{table}, line {number}: {line!r}; expected {', '.join(columns)}, each file once")
        owner_of[cells[0]] = _Owner(cells[1], cells[2], cells[3] if len(cells) == 4 else Path(cells[0]).stem)
    without = [slide.name for slide in slides if slide.name not in owner_of]
    if without:
        raise InputError(f"{table}: no line for {_some(without)} of {path}; expected every slide, since splits go by "
                         "patient")  # fmt: skip
    missing = sorted(set(owner_of) - {slide.name for slide in slides})
    if missing:
        raise InputError(f"{path}: no slide {_some(missing)}, which {table} names; take the line out or add the file")
    return [owner_of[slide.name] for slide in slides]


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _check_names(slides: list[Path], owners: list[_Owner]) -> None:
    slide_of: dict[str, Path] = {}
    for slide, owner in zip(slides, owners, strict=True):
        other = slide_of.setdefault(owner.section_id, slide)
        if other != slide:
            raise InputError(f"{slide.name} and {other.name}: both would be section {owner.section_id!r}; name them in "
                             "the column 'section' of --patients-file")  # fmt: skip
        try:
            check_section_id(owner.section_id)
        except InputError as error:
            raise InputError(f"{slide}: {error}; give --section, or the column 'section' of --patients-file") from None
        check_whose(str(slide), owner.patient_id, owner.cohort)


def _check_scale(um_per_px: float, what: str, force: bool, fix: str) -> None:
    low, high = PLAUSIBLE_UM_PER_PX
    if force and not FORCED_UM_PER_PX[0] <= um_per_px <= FORCED_UM_PER_PX[1]:
        low, high = FORCED_UM_PER_PX
        raise InputError(f"{what}: {um_per_px:.4g} µm per px; expected {low} to {high}, also with --force")
    if not (0 < um_per_px < np.inf and (force or low <= um_per_px <= high)):
        raise InputError(f"{what}: {um_per_px:.4g} µm per px; expected {low} to {high}; {fix}")


def full_um_per_px(file: SlideFile, given: float | None, *, force: bool, flag: str = "--um-per-px"
                   ) -> tuple[float, list[str]]:  # fmt: skip
    """µm per px of the finest level: the flag, else the file, else an error; and what is to be said of it."""
    stated = None if file.um_per_px is None else float(np.sqrt(file.um_per_px[0] * file.um_per_px[1]))
    if given is not None:
        _check_scale(given, flag, force, "--force takes it where it is right")
        if stated is not None and abs(given / stated - 1) > _DISAGREE:
            return given, [f"{flag}={given:g} is taken, the file says {stated:.4g}"]
        return given, []
    if stated is None:
        raise InputError(f"{file.path}: does not say its µm per px; give {flag}")
    x_um, y_um = file.um_per_px
    if not abs(x_um / y_um - 1) <= _DISAGREE:
        raise InputError(f"{file.path}: says {x_um:.4g} µm per px across and {y_um:.4g} down; expected squares; give "
                         f"{flag}")  # fmt: skip
    _check_scale(stated, str(file.path), force, f"give {flag}, or --force where the file is right")
    return stated, []


def _scale_of(
    file: SlideFile, given: float | None, he_um_per_px: float, force: bool, name: str, report: IngestReport
) -> Scale:
    full_um, notes = full_um_per_px(file, given, force=force)
    report.notes += [f"{name}: {note}" for note in notes]
    scale = stored_scale(file, full_um, he_um_per_px)
    level, factor, stored_um, coarsest_um = scale.level, scale.factor, scale.stored_um_per_px, he_um_per_px * COARSER
    image = file.levels[level]
    report.notes += [f"{name}: {note}" for note in file.notes]
    how = f"in means of {factor} × {factor} px" if factor > 1 else "as it is"
    coarser = f", coarser than the {he_um_per_px:g} that was asked" if stored_um > coarsest_um else ""
    report.notes.append(
        f"{name}: stored at {stored_um:.4g} µm per px{coarser}: {image.width_px // factor:,} × "
        f"{image.height_px // factor:,} px, level {level + 1} of {len(file.levels)}, {how}; the file has {full_um:.4g}"
    )
    return scale


def stored_scale(file: SlideFile, full_um_per_px: float, he_um_per_px: float) -> Scale:
    """What is stored of a slide where he_um_per_px is asked. Raises `InputError` where the file is hardly an image."""
    coarsest_um = he_um_per_px * COARSER
    level_um = [full_um_per_px * file.downsample(level) for level in range(len(file.levels))]
    level = max((number for number, um in enumerate(level_um) if um <= coarsest_um), default=0)
    factor = max(1, int(coarsest_um / level_um[level]))
    image = file.levels[level]
    if factor > min(image.shape[:2]):
        raise InputError(f"{file.path}: {image.width_px} × {image.height_px} px; expected a slide")
    return Scale(full_um_per_px, level, factor, level_um[level] * factor)


def _section(file: SlideFile, owner: _Owner, scale: Scale, genes: int) -> SectionData:
    he = averaged(file.levels[scale.level], scale.factor)
    low, high = PLAUSIBLE_UM_PER_PX
    forced = {} if low <= scale.stored_um_per_px <= high * COARSER else {"he_um_per_px_forced": 1.0}
    return SectionData(
        section_id=owner.section_id,
        patient_id=owner.patient_id,
        cohort=owner.cohort,
        width_um=he.width_px * scale.stored_um_per_px,
        height_um=he.height_px * scale.stored_um_per_px,
        he_um_per_px=scale.stored_um_per_px,
        he=he,
        measured_gene_G=np.zeros(genes, bool),
        quality={"he_full_um_per_px": scale.full_um_per_px} | forced,
    )


def averaged(image: BlockImage, factor: int) -> BlockImage:
    """`image` in means of squares of `factor` px, computed as it is read; what does not fill a square is left out."""
    if factor == 1:
        return image
    step = max(1, _BLOCK_PX // factor)

    def read(rows: slice, columns: slice) -> np.ndarray:
        out = np.empty((rows.stop - rows.start, columns.stop - columns.start, 3), np.uint8)
        for top in range(rows.start, rows.stop, step):
            for left in range(columns.start, columns.stop, step):
                bottom, right = min(top + step, rows.stop), min(left + step, columns.stop)
                block = image[top * factor : bottom * factor, left * factor : right * factor]
                target = (
                    slice(top - rows.start, bottom - rows.start),
                    slice(left - columns.start, right - columns.start),
                )
                out[target] = square_means(block, factor)
        return out

    return BlockImage(image.height_px // factor, image.width_px // factor, read)
