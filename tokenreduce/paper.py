"""Where a method comes from: what its page, its tables and its citation are made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """A publication, as a strategy states it and as it is cited.

    Attributes:
        key: of its BibTeX entry.
        title: in BibTeX's spelling: braces keep capitals.
        authors: in BibTeX's form, `Last, First and Last, First`.
        year: of the venue, or of the preprint.
        arxiv: its number, `2403.06764`; empty where it is not there.
        venue: the proceedings, with the short name in brackets; empty for a preprint.
        code: the authors' implementation and its licence, `owner/name, MIT`; empty where there is
            none.
        note: what else a reader must know to find it.
    """

    key: str
    title: str
    authors: str
    year: int
    arxiv: str = ""
    venue: str = ""
    code: str = ""
    note: str = ""

    def __str__(self) -> str:
        return f"arXiv {self.arxiv}" if self.arxiv else self.plain_title

    @property
    def plain_title(self) -> str:
        """The title without BibTeX's braces."""
        return self.title.replace("{", "").replace("}", "")

    @property
    def link(self) -> str:
        """The address of the preprint; empty without one."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else ""

    @property
    def short_venue(self) -> str:
        """`CVPR 2025`; `arXiv 2024` for a preprint."""
        name = self.venue.rpartition("(")[2].rstrip(")") if "(" in self.venue else self.venue
        return f"{name or 'arXiv'} {self.year}"

    def bibtex(self) -> str:
        """The BibTeX entry: `@inproceedings` with a venue, else `@article`."""
        fields = {"title": self.title, "author": self.authors}
        if self.venue:
            fields["booktitle"] = self.venue
            fields |= {"note": f"arXiv:{self.arxiv}"} if self.arxiv else {}
        elif self.arxiv:
            fields["journal"] = f"arXiv preprint arXiv:{self.arxiv}"
        fields["year"] = str(self.year)
        width = max(map(len, fields))
        rows = ",\n".join(f"  {name:<{width}} = {{{value}}}" for name, value in fields.items())
        return f"@{'inproceedings' if self.venue else 'article'}{{{self.key},\n{rows}\n}}"
