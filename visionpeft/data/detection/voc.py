"""Pascal VOC: one XML file a picture, splits as lists of names."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from visionpeft.data.detection.raw import UNREADABLE, Corners, RawObject, RawScene, RawScenes
from visionpeft.data.detection.settings import VocSource
from visionpeft.data.given import SPLITS, inside, text_of
from visionpeft.data.pictures import SUFFIXES
from visionpeft.errors import DataError
from visionpeft.progress import Progress

_MOST_BYTES, _DEEPEST = 16 << 20, 32
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_SHOWN = 5


def read_voc(source: VocSource, progress: Progress) -> RawScenes:
    """Return the scenes of a VOC folder, in the order of their names.

    Raises:
        DataError: a folder or file is missing or broken; a file is no XML, declares a document type or entities;
            a name stands in two splits.
    """
    annotations = source.folder / "Annotations"
    files = {path.stem: path for path in sorted(annotations.glob("*.xml"))}
    if not files:
        raise DataError(f"{annotations} holds no .xml files: name the folder with Annotations and JPEGImages in it")
    splits = _splits(source.folder, files)
    pictures = _pictures(source.folder / "JPEGImages")
    unlisted = sorted(set(files) - set(splits)) if splits else []
    if unlisted:
        progress.say(f"{source.folder}: {_some(unlisted)} stand in no split of ImageSets/Main and are left out.")
    undescribed = sorted(set(pictures) - set(files))
    if undescribed:
        progress.say(f"{source.folder}: {_some(undescribed)} have no file in Annotations and are left out.")
    stems = [stem for stem in files if not splits or stem in splits]
    return RawScenes(tuple(_scene(source, files[stem], pictures, splits.get(stem)) for stem in stems))


def _splits(folder: Path, files: dict[str, Path]) -> dict[str, str]:
    """Stem -> split, from the lists of a split each; "trainval" only stands for train where neither part is there."""
    lists = {path.stem: path for path in sorted((folder / "ImageSets" / "Main").glob("*.txt"))}
    whole = [name for name in lists if name in SPLITS]
    if "trainval" in lists and not {"train", "validation"} & {SPLITS[name] for name in whole}:
        whole.append("trainval")
    found: dict[str, str] = {}
    for name in whole:
        split = SPLITS.get(name, "train")
        for number, line in enumerate(text_of(lists[name], _MOST_BYTES).splitlines(), 1):
            if not line.strip():
                continue
            stem = line.split()[0]
            if stem not in files:
                raise DataError(f"{lists[name]}:{number} names '{stem}', which has no file in {folder / 'Annotations'}")
            if found.setdefault(stem, split) != split:
                raise DataError(f"{lists[name]}:{number} names '{stem}', which stands in the split {found[stem]} too")
    return found


def _pictures(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*")) if path.suffix.lower() in SUFFIXES}


def _scene(source: VocSource, file: Path, pictures: dict[str, Path], split: str | None) -> RawScene:
    root = _parsed(file)
    picture = pictures.get(file.stem)
    if picture is None:
        named = root.findtext("filename", "").strip()
        if not named:
            raise DataError(f"{file} has no picture '{file.stem}' in {source.folder / 'JPEGImages'} and names none")
        picture = inside(source.folder / "JPEGImages", named, file)
    objects = (_object(source, element, f"object {number}") for number, element in enumerate(root.findall("object"), 1))
    return RawScene(f"JPEGImages/{picture.name}", picture, file, tuple(objects), _size(root), split)


def _size(root: Element) -> tuple[int, int] | None:
    """The picture's size as the file says; 0, as some tools write, says nothing."""
    try:
        width, height = (int(root.findtext(f"size/{key}", "0")) for key in ("width", "height"))
    except ValueError:
        return None
    return (width, height) if width > 0 and height > 0 else None


def _object(source: VocSource, element: Element, where: str) -> RawObject:
    label = element.findtext("name", "").strip()
    crowd = source.difficult == "ignore" and element.findtext("difficult", "0").strip() == "1"
    box, fault = _corners(element)
    if not label:
        fault = fault or "it has no <name>"
    # Counting from 1 with the last pixel inside, the left edge lies one before the first pixel's number. A box whose
    # two corners are one and the same pixel is a slip of the mouse: it stays without area, and is found as such.
    shift = source.first_pixel if box[0] != box[2] and box[1] != box[3] else 0
    return RawObject(where, label, (box[0] - shift, box[1] - shift, box[2], box[3]), crowd, fault)


def _corners(element: Element) -> tuple[Corners, str]:
    box = element.find("bndbox")
    if box is None:
        return UNREADABLE, "it has no <bndbox>"
    texts = [box.findtext(key) for key in _CORNERS]
    for key, text in zip(_CORNERS, texts, strict=True):
        if text is None:
            return UNREADABLE, f"its <bndbox> has no <{key}>"
    try:
        left, top, right, bottom = (float(text or "") for text in texts)
    except ValueError:
        return UNREADABLE, f"its <bndbox> holds {texts}: expected four numbers"
    return (left, top, right, bottom), ""


def _parsed(path: Path) -> Element:
    """Parse XML that may be hostile: no document type, so no entities; bounded in size and depth."""
    text = text_of(path, _MOST_BYTES)
    builder, parser = TreeBuilder(), expat.ParserCreate()
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            raise DataError(f"{path} is nested deeper than {_DEEPEST} elements: it is no VOC annotation")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise DataError(f"{path} declares a document type: an annotation needs none, and it is not opened with one")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(text.encode(), True)
        root = builder.close()
    except expat.ExpatError as error:
        raise DataError(f"{path} is no XML: {error}") from error
    if root.tag != "annotation":
        raise DataError(f"{path} holds <{root.tag[:40]}>: expected <annotation>")
    return root


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
