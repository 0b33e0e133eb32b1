"""Where the tokens of a row come from."""

from __future__ import annotations

from typing import NamedTuple


class TokenOrigin(NamedTuple):
    """Tokens that lie together in one file and one document.

    Attributes:
        file: The file, or which array of the corpus.
        begin: The first token, counted in the file.
        end: One after the last token.
        document: The document, counted in the corpus; None if the corpus doesn't know its documents (with ``eos`` the
            first use of ``TokenCorpus.documents`` finds them).
        offset: Which token of the document ``begin`` is; None as ``document``.
    """

    file: str
    begin: int
    end: int
    document: int | None
    offset: int | None
