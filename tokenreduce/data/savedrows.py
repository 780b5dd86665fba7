"""Rows of a folder written by `datasets`, read from the disk one by one."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tokenreduce.data.images import decode_image
from tokenreduce.data.rows import Conversation, Unusable, image_path, read_row
from tokenreduce.errors import BadOption, did_you_mean

TEXTS = ("conversations", "messages")
IMAGES = ("images", "image")
CHUNK = 1000
"""Rows that are checked at a time."""


class SavedRows:
    """Reads the row at an index; pictures are decoded here and not by `datasets`.

    That way they go through the same checks of format and size as files do.
    """

    def __init__(self, table: Any, folder: Path, images: str | None) -> None:
        self.table = table  # a datasets.Dataset that gives Arrow tables, mapped from the disk
        self.folder = folder
        self.images = images
        self._rows: Sequence[int] = range(len(table))

    def keep(self, indices: Sequence[int]) -> None:
        """Forget all rows but these."""
        self._rows = array("Q", indices)

    def __call__(self, index: int) -> Conversation:
        """The conversation of a row.

        Raises:
            Unusable: what is wrong with it.
        """
        place = self._rows[index]
        [row] = self.table[place : place + 1].to_pylist()
        name = self._name(row, place)
        return read_row(row, name, [self._image(image, name) for image in self._of(row)])

    def check(self) -> Iterator[tuple[str, str, Unusable | None]]:
        """What is wrong with every row, without a look at the pictures themselves.

        Yields:
            name, place in words, and the fault or None.
        """
        texts = [c for c in self.table.column_names if c != self.images]
        place = 0
        for chunk in self.table.iter(batch_size=CHUNK):
            listed = self._listed(chunk)
            for row, images in zip(chunk.select(texts).to_pylist(), listed, strict=True):
                name, fault = self._name(row, place), None
                try:
                    read_row(row, name, [self._checked(image) for image in images])
                except Unusable as error:
                    fault = error
                yield name, f"{self.folder} row {place} ({name})", fault
                place += 1

    def _listed(self, chunk: Any) -> list[list[Any]]:
        """What stands for the images of each row: names, or of stored pictures only their number.

        Counting reads no pictures: a list's length is known from where it begins and ends.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        if self.images is None:
            return [[]] * len(chunk)
        column = chunk.column(self.images)
        kind = column.type
        single = not (pa.types.is_list(kind) or pa.types.is_large_list(kind))
        of = kind if single else kind.value_type
        if pa.types.is_string(of) or pa.types.is_large_string(of):
            return [self._of({self.images: value}) for value in column.to_pylist()]
        if single:
            return [[b""] * there for there in column.is_valid().to_pylist()]
        return [[b""] * (n or 0) for n in pc.list_value_length(column).to_pylist()]

    def _of(self, row: dict[str, Any]) -> list[Any]:
        found = None if self.images is None else row[self.images]
        return [] if found is None else found if isinstance(found, list) else [found]

    def _checked(self, image: Any) -> Any:
        return image if isinstance(image, bytes) else image_path(image, self.folder)

    def _image(self, image: Any, name: str) -> Image.Image | Path:
        stored = image.get("bytes") if isinstance(image, dict) else None
        if stored is None:
            return image_path(image.get("path") if isinstance(image, dict) else image, self.folder)
        try:
            return decode_image(stored, f"image of {name}")
        except ValueError as error:
            raise Unusable("an image cannot be opened", str(error)) from None

    def _name(self, row: dict[str, Any], place: int) -> str:
        own = row.get("id")
        return f"{self.folder.name}:{place}" if own is None else str(own)


def open_saved(folder: Path, split: str | None) -> SavedRows:
    """The rows of a saved dataset, or of one split of several.

    Raises:
        ValueError: `datasets` is not installed, the folder is not one of its, the split or a
            column is not there.
    """
    try:
        import datasets
    except ImportError:
        raise BadOption(
            'reading saved datasets needs the package datasets: pip install "tokenreduce[train]"'
        ) from None
    if not ((folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file()):
        raise BadOption(
            f"{str(folder)!r} is not a saved dataset: give a folder that "
            "datasets.Dataset.save_to_disk has written"
        )
    table = datasets.load_from_disk(str(folder))
    if isinstance(table, datasets.DatasetDict):
        if split is None or split not in table:
            known = ", ".join(table)
            hint = did_you_mean(str(split), list(table))
            raise BadOption(f"{str(folder)!r} has no split {split!r}{hint} (known: {known})")
        table, folder = table[split], folder / split
    elif split is not None:
        raise BadOption(f"{str(folder)!r} has no splits: leave split={split!r} away")
    columns = table.column_names
    if not set(TEXTS) & set(columns):
        raise BadOption(
            f"{str(folder)!r} has neither a column 'conversations' nor 'messages' "
            f"(it has: {', '.join(columns)}): rename one with Dataset.rename_column"
        )
    images = next((name for name in IMAGES if name in columns), None)
    used = [c for c in (*TEXTS, "id", images) if c in columns]
    return SavedRows(table.select_columns(used).with_format("arrow"), folder, images)
