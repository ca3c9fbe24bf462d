"""The ChArUco board: drawn to be printed, and found in pictures (before hop 1)."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.errors import CalibrationError
from contract.images import PNG, Pixels, encode_png

DICTIONARIES = tuple(f"{bits}x{bits}_{count}" for bits in (4, 5, 6) for count in (50, 100, 250, 1000))
MM_PER_INCH = 25.4
PX_PER_MM = 12  # of the printed picture: 305 dots an inch
RIM_MM = 10
BAR_MM = 100
LEAST_CORNERS = 12  # of one view
WINDOW = 0.85  # of the way from a corner to the nearest marker, within which a corner is refined
LEAST_WINDOW, MOST_WINDOW = 3, 15  # pixels to each side: from fewer it says less than the detector, more only cost time
UNTIL = cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 100, 1e-4  # rounds, and pixels of the last step

Points = NDArray[np.float64]


class Board(NamedTuple):
    """Squares along x and y, their side and their markers' in millimetres, and which markers."""

    columns: int = 10
    rows: int = 7
    square_mm: float = 25.0
    marker_mm: float = 18.0
    dictionary: str = "5x5_100"

    @property
    def corners(self) -> int:
        return (self.columns - 1) * (self.rows - 1)

    def text(self) -> str:
        return (
            f"{self.columns} x {self.rows} squares of {self.square_mm:g} mm, markers {self.dictionary} of "
            f"{self.marker_mm:g} mm"
        )

    def made(self) -> cv2.aruco.CharucoBoard:
        """OpenCV's board. Raises CalibrationError where no such board can be."""
        if self.dictionary not in DICTIONARIES:
            raise CalibrationError(f"--markers {self.dictionary!r}: expected one of {', '.join(DICTIONARIES)}")
        if min(self.columns, self.rows) < 4 or max(self.columns, self.rows) > 60:
            raise CalibrationError(f"--squares {self.columns}x{self.rows}: expected 4x4 to 60x60, columns by rows")
        if not (0 < self.marker_mm < self.square_mm <= 1000 and np.isfinite(self.square_mm)):
            raise CalibrationError(
                f"--square-mm {self.square_mm:g} with --marker-mm {self.marker_mm:g}: expected the marker smaller than "
                "its square, and the square at most 1000 mm"
            )
        dictionary = cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, f"DICT_{self.dictionary.upper()}"))
        if self.columns * self.rows // 2 > len(dictionary.bytesList):
            raise CalibrationError(
                f"--markers {self.dictionary}: has {len(dictionary.bytesList)} markers, and {self.columns} x "
                f"{self.rows} squares need {self.columns * self.rows // 2}"
            )
        return cv2.aruco.CharucoBoard((self.columns, self.rows), self.square_mm, self.marker_mm, dictionary)


class Found(NamedTuple):
    """Corners of the board in one picture: pixels [N, 2] and millimetres on the board [N, 3]."""

    name: str
    pixels: Points
    board_mm: Points


def find_board(board: Board, picture: Pixels, name: str) -> Found:
    """Corners found in a grey picture, perhaps none."""
    made = board.made()
    corners, numbers, _, _ = cv2.aruco.CharucoDetector(made).detectBoard(picture)
    if corners is None or numbers is None or not len(numbers):
        return Found(name, np.zeros((0, 2)), np.zeros((0, 3)))
    known = np.asarray(made.getChessboardCorners(), np.float64)[np.asarray(numbers).ravel()]
    return Found(name, _refined(board, picture, np.asarray(corners, np.float32).reshape(-1, 2), known), known)


def _refined(board: Board, picture: Pixels, corners: NDArray[np.float32], known: Points) -> Points:
    """Corners found in the widest window without a marker: half as far off as the detector's own."""
    free_mm = (board.square_mm - board.marker_mm) / 2
    half = int(WINDOW * free_mm * _least_px_per_mm(corners, known, board.square_mm))
    if half < LEAST_WINDOW:
        return corners.astype(np.float64)
    window = min(half, MOST_WINDOW)
    refined = cv2.cornerSubPix(picture, corners.reshape(-1, 1, 2).copy(), (window, window), (-1, -1), UNTIL)
    last = np.array(picture.shape[1::-1]) - 1
    whole = ((corners > window + 1) & (corners < last - window - 1)).all(axis=1, keepdims=True)
    return np.where(whole, np.asarray(refined).reshape(-1, 2), corners).astype(np.float64)


def _least_px_per_mm(corners: NDArray[np.float32], known: Points, square_mm: float) -> float:
    """Of corners beside one another, where the board is farthest away; 0 where none are neighbours."""
    apart = np.linalg.norm(known[:, np.newaxis] - known, axis=2)
    first, second = np.nonzero(np.triu(np.abs(apart - square_mm) < 0.1 * square_mm))
    shown = np.linalg.norm(corners[first] - corners[second], axis=1)
    return float(shown.min()) / square_mm if len(shown) else 0.0


def board_picture(board: Board, px_per_mm: float = PX_PER_MM) -> Pixels:
    """The board alone, uint8 [H, W], without a rim."""
    size = round(board.columns * board.square_mm * px_per_mm), round(board.rows * board.square_mm * px_per_mm)
    return np.asarray(board.made().generateImage(size, marginSize=0, borderBits=1), np.uint8)


def printable(board: Board) -> bytes:
    """A PNG that knows its size: printed at 100 % a square has its millimetres, and a bar below says how to check."""
    drawn = board_picture(board)
    rim = RIM_MM * PX_PER_MM
    page = np.full((drawn.shape[0] + 3 * rim, max(drawn.shape[1], BAR_MM * PX_PER_MM) + 2 * rim), 255, np.uint8)
    page[rim : rim + drawn.shape[0], rim : rim + drawn.shape[1]] = drawn
    bottom = drawn.shape[0] + 2 * rim
    page[bottom : bottom + PX_PER_MM, rim : rim + BAR_MM * PX_PER_MM] = 0
    said = f"{BAR_MM} mm when printed at 100 %. {board.text()}."
    cv2.putText(page, said, (rim, bottom + 6 * PX_PER_MM), cv2.FONT_HERSHEY_SIMPLEX, 1.4, 0, 3, cv2.LINE_AA)
    return _with_resolution(encode_png(page), PX_PER_MM)


def _with_resolution(png: bytes, px_per_mm: float) -> bytes:
    """The same with a pHYs chunk before its pixels, which programs that print read."""
    content = b"pHYs" + struct.pack(">IIB", round(1000 * px_per_mm), round(1000 * px_per_mm), 1)
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    after_header = len(PNG) + 25
    return png[:after_header] + chunk + png[after_header:]


def draw_board(board: Board, path: Path) -> None:
    """Write the printable picture. Raises CalibrationError."""
    try:
        path.write_bytes(printable(board))
    except OSError as error:
        raise CalibrationError(f"--draw-board {path}: cannot be written ({error.strerror or error})") from error
