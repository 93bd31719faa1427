"""One picture that shows every suspicious picture of a folder, worst first."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mobilenetv2.data.examination import (
    KINDS,
    UNUSABLE_KINDS,
    Examination,
    Finding,
    Kind,
    Severity,
)
from mobilenetv2.data.pictures import UnreadablePicture, read_picture

COLUMNS = 8
TILE = 168
GAP = 20
MARGIN = 40
HEADING = 58
ROW = TILE + 62
ROWS_OF_A_KIND = 2
GROUP_SHOWN = 4
EDGE = GAP // 2
BAND = COLUMNS * (TILE + GAP)
WIDTH = BAND + 2 * (MARGIN - EDGE)

PAPER, CARD, INK, FAINT = "#ffffff", "#f1f3f5", "#1d2329", "#6b7480"
ACCENTS: dict[Severity, str] = {"error": "#c92a2a", "warning": "#d9730d", "note": "#4c6e91"}
PALE: dict[Severity, str] = {"error": "#fff0f0", "warning": "#fff5e6", "note": "#f0f4f8"}
CHIPS = {"train": INK, "val": "#1971c2", "test": "#7048c8"}

LEFT_OUT = Kind("error", "Left out", "cannot be decoded")

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(examination: Examination) -> Image.Image:
    """Draws the suspicious pictures, grouped by what was found, with their names.

    Pictures of one group (copies, leaks) stand side by side in one frame. At most two rows are
    drawn for each kind; the headings give the full counts.

    Args:
        examination: The pictures are read again from where it found them.

    Returns:
        An RGB picture, 1,564 pixels wide.
    """
    split_of = {picture.path: picture.split for picture in examination.pictures}
    unusable = [f for f in examination.findings if f.kind in UNUSABLE_KINDS]
    by_kind = [(LEFT_OUT, unusable)]
    for name, kind in KINDS.items():
        if name not in UNUSABLE_KINDS:
            by_kind.append((kind, [f for f in examination.of_kind(name) if f.paths]))
    sections = [_section(examination, kind, found, split_of) for kind, found in by_kind if found]
    bands = [[_title(examination, nothing=not sections)]]
    for section in sections:
        # Two small kinds share a band.
        if sum(piece.width for piece in bands[-1]) + section.width <= BAND:
            bands[-1].append(section)
        else:
            bands.append([section])
    heights = [max(piece.height for piece in band) for band in bands]
    sheet = Image.new("RGB", (WIDTH, sum(heights) + MARGIN // 2), PAPER)
    top = 0
    for band, height in zip(bands, heights, strict=True):
        left = MARGIN - EDGE
        for piece in band:
            sheet.paste(piece, (left, top))
            left += piece.width
        top += height
    return sheet


def _title(examination: Examination, nothing: bool) -> Image.Image:
    piece = Image.new("RGB", (BAND, 116), PAPER)
    draw = ImageDraw.Draw(piece)
    usable = sum(picture.usable for picture in examination.pictures)
    words = (
        f"{len(examination.pictures):,} pictures, {len(examination.classes)} classes, "
        f"{usable:,} usable{' · nothing suspicious' if nothing else ''}"
    )
    root = examination.root.resolve()
    _line(draw, (EDGE, 32), root.name or str(root), 30, INK, BAND - 2 * EDGE, bold=True)
    _line(draw, (EDGE, 76), words, 17, FAINT, BAND - 2 * EDGE)
    return piece


def _section(
    examination: Examination, kind: Kind, found: list[Finding], split_of: dict[Path, str]
) -> Image.Image:
    """All of one kind; half as wide as a band if four tiles do."""
    tiles = sum(min(len(finding.paths), GROUP_SHOWN) for finding in found)
    width = BAND // 2 if tiles <= COLUMNS // 2 else BAND
    rows = _rows(found)
    piece = Image.new("RGB", (width, HEADING + len(rows) * ROW + 10), PAPER)
    draw = ImageDraw.Draw(piece)
    draw.rounded_rectangle((EDGE, 12, EDGE + 6, 42), 3, fill=ACCENTS[kind.severity])
    left = EDGE + 20
    left += _line(draw, (left, 14), kind.title, 20, INK, 500, bold=True) + 12
    left += _line(draw, (left, 16), f"{len(found):,}", 18, ACCENTS[kind.severity], 100) + 16
    _line(draw, (left, 17), kind.meaning, 16, FAINT, width - EDGE - left)
    for index, row in enumerate(rows):
        left = EDGE
        for finding in row:
            _group(examination, piece, (left, HEADING + index * ROW), finding, split_of)
            left += min(len(finding.paths), GROUP_SHOWN) * (TILE + GAP)
    return piece


def _rows(found: list[Finding]) -> list[list[Finding]]:
    rows: list[list[Finding]] = [[]]
    free = COLUMNS
    for finding in found:
        tiles = min(len(finding.paths), GROUP_SHOWN)
        if tiles > free:
            if len(rows) == ROWS_OF_A_KIND:
                break
            rows.append([])
            free = COLUMNS
        rows[-1].append(finding)
        free -= tiles
    return rows


def _group(
    examination: Examination,
    piece: Image.Image,
    corner: tuple[int, int],
    finding: Finding,
    split_of: dict[Path, str],
) -> None:
    """The pictures of one finding and what it says."""
    left, top = corner
    draw = ImageDraw.Draw(piece)
    shown = finding.paths[:GROUP_SHOWN]
    width = len(shown) * TILE + (len(shown) - 1) * GAP
    accent, pale = ACCENTS[finding.severity], PALE[finding.severity]
    if len(shown) > 1:
        frame = (left - 7, top - 7, left + width + 6, top + TILE + 44)
        draw.rounded_rectangle(frame, 10, pale, accent)
    more = len(finding.paths) - len(shown)
    words = finding.words + (f" (and {more} more)" if more else "")
    for place, path in enumerate(shown):
        across = left + place * (TILE + GAP)
        if not _tile(piece, (across, top), path, pale):
            # The reason in full, where the picture would be.
            _paragraph(draw, (across + 14, top + 48), words, 14, accent, TILE - 28)
            words = ""
        name = examination.relative(path)
        if len(examination.splits) > 1 and path in split_of:
            split, name = split_of[path], name.split("/", 1)[-1]
            chip = int(_font(split, 12, bold=True).getlength(split)) + 14
            draw.rounded_rectangle(
                (across + 6, top + 6, across + 6 + chip, top + 26), 10, CHIPS[split]
            )
            _line(draw, (across + 13, top + 9), split, 12, PAPER, TILE, bold=True)
        _line(draw, (across, top + TILE + 5), name, 13, INK, TILE, middle=True)
    _line(draw, (left, top + TILE + 23), words, 12, FAINT, width)


def _tile(piece: Image.Image, corner: tuple[int, int], path: Path, pale: str) -> bool:
    """Draws the picture itself; False if it cannot be read."""
    left, top = corner
    draw = ImageDraw.Draw(piece)
    box = (left, top, left + TILE - 1, top + TILE - 1)
    try:
        picture = read_picture(path, "RGB", at_least=TILE)
    except UnreadablePicture:
        draw.rounded_rectangle(box, 6, pale)
        return False
    draw.rounded_rectangle(box, 6, CARD)
    # As large as the tile allows; tiny pictures are enlarged eightfold at most, pixels visible.
    scale = min(TILE / picture.width, TILE / picture.height, 8)
    size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
    if scale > 1:
        picture = picture.resize(size, Image.Resampling.NEAREST)
    else:
        picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    piece.paste(picture, (left + (TILE - size[0]) // 2, top + (TILE - size[1]) // 2))
    return True


def _paragraph(
    draw: ImageDraw.ImageDraw, where: tuple[int, int], text: str, size: int, colour: str, width: int
) -> None:
    """Writes up to six lines, broken between words."""
    font = _font(text, size)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    for index, line in enumerate([line for line in lines if line][:6]):
        _line(draw, (where[0], where[1] + index * (size + 5)), line, size, colour, width)


def _line(
    draw: ImageDraw.ImageDraw,
    where: tuple[int, int],
    text: str,
    size: int,
    colour: str,
    width: int,
    bold: bool = False,
    middle: bool = False,
) -> int:
    """Writes one line, shortened at its end or in its middle to fit; returns its width."""
    whole = text = "".join(c if c.isprintable() else "�" for c in text)
    font = _font(text, size, bold)
    keep = len(text)
    while keep > 4 and font.getlength(text) > width:
        keep -= 1
        ahead = keep // 3 if middle else keep
        text = whole[:ahead] + "…" + whole[len(whole) - (keep - ahead) :]
    draw.text(where, text, fill=colour, font=font)
    return int(font.getlength(text))


def _font(text: str, size: int, bold: bool = False) -> Font:
    """The font that comes with matplotlib; for scripts that it lacks, one of the system's."""
    from matplotlib import font_manager, get_data_path

    if any(character >= "⺀" for character in text):
        for family in ("Noto Sans CJK SC", "PingFang SC", "Hiragino Sans", "Microsoft YaHei",
                       "SimHei", "WenQuanYi Zen Hei", "Droid Sans Fallback"):  # fmt: skip
            try:
                found = font_manager.findfont(family, fallback_to_default=False)
            except ValueError:
                continue
            return ImageFont.truetype(found, size)
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", name), size)
