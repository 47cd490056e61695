"""Fields of view: how local, global and FOV places belong together, and the area that was imaged."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa

from tario_jax.config import InputError
from tario_jax.sources.delimited import header, numbers, read_columns
from tario_jax.sources.fov_survey import DOWN_START, GLOBAL, LOCAL, UP_START, X_START, FovSurvey

_MISS_PX = 2.0  # between a place and what its FOV says
_EDGE = 0.02  # of an FOV's side: detections thin out towards its edge


@dataclasses.dataclass(frozen=True)
class Frame:
    """From global px (y up) to the section's µm (y down). box_px_Fx4 holds each FOV's (left, bottom, right, top)."""

    um_per_px: float
    assumed: bool  # µm per px is the vendor's default, not of this file
    box_px_Fx4: np.ndarray
    fov_px: tuple[float, float]  # width and height of an FOV, as far as detections reach
    notes: tuple[str, ...]

    @property
    def width_um(self) -> float:
        return float(self.box_px_Fx4[:, 2].max() - self.box_px_Fx4[:, 0].min()) * self.um_per_px

    @property
    def height_um(self) -> float:
        return float(self.box_px_Fx4[:, 3].max() - self.box_px_Fx4[:, 1].min()) * self.um_per_px

    def to_um(self, global_px_Nx2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(x_um, y_um)."""
        left, top = self.box_px_Fx4[:, 0].min(), self.box_px_Fx4[:, 3].max()
        return (global_px_Nx2[:, 0] - left) * self.um_per_px, (top - global_px_Nx2[:, 1]) * self.um_per_px

    def measured(self, um_per_px: float, origin_um: np.ndarray, end_um: np.ndarray) -> np.ndarray:
        """As `within_boxes`, of the FOVs."""
        low_um_2xF, high_um_2xF = (self.to_um(self.box_px_Fx4[:, corner]) for corner in ([0, 3], [2, 1]))
        return within_boxes(np.transpose(low_um_2xF), np.transpose(high_um_2xF), um_per_px, origin_um, end_um)


def within_boxes(
    low_um_Fx2: np.ndarray, high_um_Fx2: np.ndarray, um_per_px: float, origin_um: np.ndarray, end_um: np.ndarray
) -> np.ndarray:
    """bool [rows, columns] of the extent at `um_per_px`: px whose centre one of the F boxes covers."""
    columns, rows = np.ceil((end_um - origin_um) / um_per_px).astype(int)
    # the last row and column reach beyond the extent: their centres are held inside it
    x_um = np.minimum(origin_um[0] + (np.arange(columns) + 0.5) * um_per_px, end_um[0])
    y_um = np.minimum(origin_um[1] + (np.arange(rows) + 0.5) * um_per_px, end_um[1])
    mask = np.zeros((rows, columns), bool)
    for low_um, high_um in zip(low_um_Fx2, high_um_Fx2, strict=True):
        columns, rows = (slice(np.searchsorted(at_um, low), np.searchsorted(at_um, high, "right"))
                         for at_um, low, high in zip((x_um, y_um), low_um, high_um, strict=True))  # fmt: skip
        mask[rows, columns] = True
    return mask


def place_fovs(
    path: Path, positions_path: Path, survey: FovSurvey, um_per_px: float | None, default_um_per_px: float
) -> Frame:
    """Checks the places of a slide's rows against their FOVs, and gives the frame.

    Inside an FOV, global x = local x + a and global y = b ± local y; a and b less the FOV's position are the same for
    all FOVs and smaller than an FOV. The sign differs between exports; global y points up in both. The measured extent
    of an FOV is the box of its own places, drawn out to the frame of all FOVs' local places where it ends within 2 %
    of it: an FOV that was cut, or that ends on glass, is not said to be zero where nothing was seen.
    """
    if not len(survey):
        raise InputError(f"{path}: no row has fov, local and global place; expected numbers in these columns")
    low_F, high_F, mean_F = survey.low_Fx7, survey.high_Fx7, survey.mean_Fx7
    low_px, high_px = np.minimum(low_F[:, LOCAL].min(0), 0), high_F[:, LOCAL].max(0)
    side_px = high_px - low_px
    sign = 1.0 if survey.miss_px(UP_START) <= survey.miss_px(DOWN_START) else -1.0
    start_column = (X_START, UP_START if sign > 0 else DOWN_START)
    start_Fx2 = mean_F[:, start_column]

    position_px_Fx2, mm_per_px = _positions(positions_path, survey.fovs, start_Fx2)
    for axis, name in ((0, "x"), (1, "y")):
        local, across, gap = axis, 2 + axis, survey.miss_px(start_column[axis])
        low, high = low_F[:, local].min(), high_F[:, local].max()
        low_global, side = low_F[:, across].min(), high_F[:, across].max()
        span = f"'{name}_local_px' ({low:.6g} to {high:.6g}), '{name}_global_px' ({low_global:.6g} to {side:.6g})"
        if low < -_MISS_PX:
            raise InputError(
                f"{path}: columns {span}: local places below 0; expected 0 up to the FOV's side; "
                "are the local and global columns swapped?"
            )
        if position_px_Fx2 is not None:
            # where y turns over, swapped columns keep their sum: then it is local, not global, that follows the FOVs
            beyond_F = (mean_F[:, local] - position_px_Fx2[:, axis]) / max(side, 1.0)
            if low_global >= -_MISS_PX and side < 0.9 * high and (np.abs(beyond_F - 0.5) <= 0.6).all():
                raise InputError(
                    f"{path}: columns {span}: the local places follow the FOV positions and the global ones do not; "
                    "expected the opposite; are the two columns swapped?"
                )
        if gap > _MISS_PX:
            raise InputError(
                f"{path}: columns {span} differ by up to {gap:.4g} px more inside one FOV than a shift explains; "
                f"expected global = local + FOV position; are columns swapped (local and global, or x and y)?"
            )
    if position_px_Fx2 is not None:
        _check_positions(path, positions_path, start_Fx2, position_px_Fx2, side_px, sign)

    notes = []
    assumed, stated_by = False, str(positions_path)
    if um_per_px is not None:
        stated_by = f"--um-per-px={um_per_px:g}"
        if mm_per_px is not None and not 0.95 < um_per_px / (1000 * mm_per_px) < 1.05:
            notes.append(f"{stated_by} is taken, the mm columns of {positions_path.name} say {1000 * mm_per_px:.4g}")
    elif mm_per_px is not None:
        um_per_px = 1000 * mm_per_px
        notes.append(f"{um_per_px:.5g} µm per px, from the mm columns of {positions_path.name}")
    else:
        um_per_px, assumed = default_um_per_px, True
        notes.append(
            f"{um_per_px} µm per px is the vendor's default: these files state none, and early instruments had other "
            f"pixels (0.18 in the first public lung data); an FOV would be at least {side_px[0] * um_per_px:.0f} x "
            f"{side_px[1] * um_per_px:.0f} µm; if yours is not, give um_per_px"
        )
    if not 0.05 <= um_per_px <= 1:
        fix = "give that of your instrument" if stated_by.startswith("--") else "are mm columns in mm?"
        raise InputError(f"{stated_by}: {um_per_px:.4g} µm per px; expected 0.05 to 1; {fix}")

    box_Fx4, cut = _extents(low_F[:, LOCAL], high_F[:, LOCAL], low_px, high_px)
    if cut:
        notes.append(
            f"{cut} of {len(survey)} FOVs hold detections in a part only; the rest of them counts as unmeasured"
        )
    left, right = start_Fx2[:, 0] + box_Fx4[:, 0], start_Fx2[:, 0] + box_Fx4[:, 2]
    near, far = start_Fx2[:, 1] + sign * box_Fx4[:, 1], start_Fx2[:, 1] + sign * box_Fx4[:, 3]
    # the offsets are means, so a place may be a rounding outside of its box: the boxes hold their places
    low_Fx2 = np.minimum(np.stack([left, np.minimum(near, far)], 1), low_F[:, GLOBAL])
    high_Fx2 = np.maximum(np.stack([right, np.maximum(near, far)], 1), high_F[:, GLOBAL])
    box_px_Fx4 = np.concatenate([low_Fx2, high_Fx2], 1)
    frame = Frame(um_per_px, assumed, box_px_Fx4, tuple(side_px.tolist()), tuple(notes))
    if min(frame.width_um, frame.height_um) < 1:
        raise InputError(f"{path}: {survey.rows} rows with a place span no area; expected a slide's detections")
    return frame


def _extents(
    first_Fx2: np.ndarray, last_Fx2: np.ndarray, low_px: np.ndarray, high_px: np.ndarray
) -> tuple[np.ndarray, int]:
    """(x0, y0, x1, y1) of each FOV's own places in local px, and how many FOVs end short of the common frame."""
    edge_px = _EDGE * (high_px - low_px)
    at_low, at_high = first_Fx2 <= low_px + edge_px, last_Fx2 >= high_px - edge_px
    first_Fx2, last_Fx2 = np.where(at_low, low_px, first_Fx2), np.where(at_high, high_px, last_Fx2)
    return np.concatenate([first_Fx2, last_Fx2], 1), int((~(at_low & at_high).all(1)).sum())


def _positions(path: Path, fovs: np.ndarray, start_Fx2: np.ndarray) -> tuple[np.ndarray | None, float | None]:
    """(position of each FOV in global px, mm per px); None for what the file does not say.

    Where it is in mm only, mm per px comes from where the FOVs' own places start.
    """
    present = header(path)
    key = next((name for name in ("fov", "FOV") if name in present), None)
    px = ("x_global_px", "y_global_px") if {"x_global_px", "y_global_px"} <= set(present) else None
    mm = next((pair for pair in (("x_global_mm", "y_global_mm"), ("x_mm", "y_mm")) if set(pair) <= set(present)), None)
    if key is None or (px is None and mm is None):
        raise InputError(
            f"{path}: columns {', '.join(present)}; expected fov (or FOV) with x_global_px, y_global_px "
            "or x_global_mm, y_global_mm"
        )
    names = (*(px or ()), *(mm or ()))
    table = read_columns(path, {key: pa.int32(), **dict.fromkeys(names, pa.float64())})
    known = table[key].fill_null(-1).to_numpy()
    if len(np.unique(known)) < len(known):
        raise InputError(f"{path}: column {key!r} holds an FOV twice; expected each once")
    missing = np.setdiff1d(fovs, known)
    if len(missing):
        raise InputError(f"{path}: no FOV {missing[0]}, which the tx file holds; found {known[:8].tolist()}")
    order = np.argsort(known)
    row_F = order[np.searchsorted(known, fovs, sorter=order)]
    values = {name: numbers(table[name]) for name in names}
    for name in names:
        if np.isnan(values[name][row_F]).any():
            raise InputError(f"{path}: column {name!r} has an empty value; expected the place of each FOV")
    position_px_Fx2 = np.stack([values[name][row_F] for name in px], 1) if px else None
    if not mm:
        return position_px_Fx2, None
    mm_Fx2 = np.stack([values[name] for name in mm], 1)
    if not px:
        return None, _mm_per_px(path, start_Fx2, mm_Fx2[row_F])
    return position_px_Fx2, _mm_per_px(path, np.stack([values[name] for name in px], 1), mm_Fx2)


def _mm_per_px(path: Path, px_Fx2: np.ndarray, mm_Fx2: np.ndarray) -> float | None:
    """From distances between FOVs, which no origin or turn between the two frames can change."""
    px_F = np.linalg.norm(px_Fx2[1:] - px_Fx2[:1], axis=1)
    mm_F = np.linalg.norm(mm_Fx2[1:] - mm_Fx2[:1], axis=1)
    if not (px_F > 0).any():
        return None  # a single FOV has no distance
    ratio_F = mm_F[px_F > 0] / px_F[px_F > 0]
    if ratio_F.max() > 1.01 * ratio_F.min():
        raise InputError(
            f"{path}: columns in mm and px disagree: {1000 * ratio_F.min():.4g} to {1000 * ratio_F.max():.4g} µm per "
            "px between FOVs; expected one value; are columns swapped?"
        )
    return float(np.median(ratio_F))


def _check_positions(
    path: Path,
    positions_path: Path,
    start_Fx2: np.ndarray,
    position_px_Fx2: np.ndarray,
    side_px: np.ndarray,
    sign: float,
) -> None:
    """Global less local must follow the FOV positions: the same offset for every FOV, within one FOV of it."""
    offset_Fx2 = start_Fx2 - position_px_Fx2
    typical = np.median(offset_Fx2, 0)
    # where y turns over, the position may be of the lower or of the upper edge: one side, and a little
    allowed = np.array([0.5, 0.5 if sign > 0 else 1.1]) * side_px
    for axis, name in ((0, "x"), (1, "y")):
        column = f"{name}_global_px"
        spread = np.abs(offset_Fx2[:, axis] - typical[axis]).max()
        if spread > max(_MISS_PX, 0.02 * side_px[axis]) or abs(typical[axis]) > allowed[axis]:
            raise InputError(
                f"{path}: column {column!r} lies {offset_Fx2[:, axis].min():.6g} to {offset_Fx2[:, axis].max():.6g} px "
                f"from where column {column!r} of {positions_path.name} puts its FOVs; expected one offset below an "
                "FOV's side; are FOVs shifted, or columns swapped?"
            )
