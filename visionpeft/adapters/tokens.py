"""Trained words: rows beside a text encoder's frozen token embedding, and their entries in its tokenizer."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionpeft.adapters.slots import Move, keeping_float32
from visionpeft.errors import AdapterError

_WORDS = ".token."
_WORD = re.compile(r"\S+")


class MasterRows(nn.ParameterDict):
    """Parameters that stay float32 through `model.to(bfloat16)`."""

    def _apply(self, fn: Move, recurse: bool = True) -> MasterRows:
        return super()._apply(keeping_float32(fn), recurse)


class TokenEmbedding(nn.Module):
    """A token embedding whose ids from `first` on are rows of their own, float32 and trainable.

    Args:
        base: the frozen embedding [vocabulary, width].
        first: the id of the first trained row.
    """

    def __init__(self, base: nn.Embedding, first: int) -> None:
        super().__init__()
        self.base = base
        self.first = first
        self.rows = MasterRows()

    @property
    def weight(self) -> Tensor:
        """The frozen embedding's weight."""
        return self.base.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Return the embeddings [..., width] of ids [...], in the frozen embedding's type."""
        known = ids < self.first
        out = self.base(ids.masked_fill(~known, 0))
        table = torch.cat(list(self.rows.values()))
        trained = F.embedding((ids - self.first).clamp_min(0), table)
        return out.where(known.unsqueeze(-1), trained.to(out.dtype))


class TokenBook:
    """The trained words of one text encoder: its embedding, its tokenizer, and who brought which word.

    Args:
        component: the text encoder's name, for messages.
        encoder: the text encoder.
        tokenizer: its tokenizer; None where the model came without one, and then it takes no words.
    """

    def __init__(self, component: str, encoder: nn.Module, tokenizer: Any | None) -> None:
        self.component = component
        self._encoder = encoder
        self._tokenizer = tokenizer
        self._original: dict[str, Any] | None = None
        self._words: dict[str, dict[str, int]] = {}  # adapter -> word -> number of rows

    @property
    def owners(self) -> dict[str, dict[str, int]]:
        """Adapter -> word -> number of rows."""
        return {name: dict(words) for name, words in self._words.items()}

    def first_rows(self, words: Mapping[str, str]) -> dict[str, Tensor]:
        """The embeddings [n, width] of the existing words that new words start from.

        Raises:
            AdapterError: no tokenizer, a word that is known already, or a start of no tokens.
        """
        tokenizer = self._need_tokenizer()
        rows: dict[str, Tensor] = {}
        for word, start in words.items():
            self._check(word)
            ids = tokenizer(start, add_special_tokens=False).input_ids
            if not ids:
                raise AdapterError(
                    f"Token '{word}': it cannot start from {start!r}, which has no tokens; name a known word."
                )
            rows[word] = self._embedding_weight()[torch.tensor(ids)].detach().float().clone()
        self._check_spelling(rows)
        return rows

    def check_rows(self, rows: Mapping[str, Tensor]) -> None:
        """Raise AdapterError where rows of words cannot be added: a word in use, a wrong width."""
        width = self._embedding_weight().shape[1]
        self._need_tokenizer()
        for word, row in rows.items():
            self._check(word)
            if row.ndim != 2 or row.shape[1] != width or not len(row):
                raise AdapterError(f"Token '{word}': rows of shape {tuple(row.shape)} do not fit a width of {width}.")
        self._check_spelling(rows)

    def put(self, name: str, rows: Mapping[str, Tensor], trainable: bool) -> None:
        """Add an adapter's words."""
        if not rows:
            return
        tokenizer = self._need_tokenizer()
        if self._original is None:
            self._original = copy.deepcopy(vars(tokenizer))
        table = self._mount()
        self._words[name] = {word: len(row) for word, row in rows.items()}
        self._enter(self._words[name])
        for word, row in rows.items():
            device = self._embedding_weight().device
            table.rows[_key(name, word)] = nn.Parameter(row.float().to(device), requires_grad=trainable)

    def drop(self, name: str) -> None:
        """Remove an adapter's words; the last one gone, the embedding and the tokenizer are the original ones."""
        if name not in self._words:
            return
        table = self._table()
        for word in self._words.pop(name):
            del table.rows[_key(name, word)]
        vars(self._tokenizer).clear()
        vars(self._tokenizer).update(copy.deepcopy(self._original or {}))
        if not self._words:
            self._original = None
            self._set_embedding(table.base)
        for words in self._words.values():
            self._enter(words)

    def rows(self, name: str) -> dict[str, nn.Parameter]:
        """The trained rows of an adapter, by word."""
        return {word: self._table().rows[_key(name, word)] for word in self._words.get(name, {})}

    def _enter(self, words: Mapping[str, int]) -> None:
        from tokenizers import AddedToken

        spelled = [piece for word, count in words.items() for piece in pieces_of(word, count)]
        tokens = [AddedToken(piece, single_word=True, normalized=False) for piece in spelled]
        self._need_tokenizer().add_tokens(tokens)

    def _mount(self) -> TokenEmbedding:
        current = self._embedding()
        if isinstance(current, TokenEmbedding):
            return current
        table = TokenEmbedding(current, len(self._need_tokenizer()))
        self._set_embedding(table)
        return table

    def _table(self) -> TokenEmbedding:
        table = self._embedding()
        if not isinstance(table, TokenEmbedding):
            raise AdapterError(f"'{self.component}' has no trained words.")
        return table

    def _check(self, word: str) -> None:
        tokenizer = self._need_tokenizer()
        taken = [name for name, words in self._words.items() if word in words]
        if taken:
            raise AdapterError(f"Token '{word}' belongs to the adapter '{taken[0]}'; choose another word.")
        if not _WORD.fullmatch(word):
            raise AdapterError(f"Token {word!r}: a trained word is one word without spaces; '<robot>' would do.")
        pieces = tokenizer.convert_ids_to_tokens(tokenizer(word, add_special_tokens=False).input_ids)
        if [piece.removesuffix("</w>") for piece in pieces] == [word]:
            raise AdapterError(f"Token '{word}' is a word of the model already; '<{word}>' would do.")

    def _check_spelling(self, rows: Mapping[str, Tensor]) -> None:
        spelled = [piece for word, row in rows.items() for piece in pieces_of(word, len(row))]
        known = self._need_tokenizer().get_vocab()
        if taken := [piece for piece in spelled if piece in known or spelled.count(piece) > 1]:
            raise AdapterError(f"Token '{taken[0]}' would be in the tokenizer twice; choose another word.")

    def _need_tokenizer(self) -> Any:
        if self._tokenizer is None:
            raise AdapterError(f"Trained words need the tokenizer of '{self.component}'; manage the whole pipeline.")
        return self._tokenizer

    def _embedding_weight(self) -> Tensor:
        return self._embedding().weight

    def _embedding(self) -> Any:
        return self._holder().token_embedding

    def _set_embedding(self, module: nn.Module) -> None:
        self._holder().token_embedding = module

    def _holder(self) -> Any:
        encoder: Any = self._encoder
        return getattr(encoder, "text_model", encoder).embeddings


class Words:
    """The trained words of all text encoders of a model; their rows are named "text_encoder.token.<word>".

    Args:
        components: the model's components; those named "text_encoder…" take words.
        tokenizers: text encoder's name -> its tokenizer.
    """

    def __init__(self, components: Mapping[str, nn.Module], tokenizers: Mapping[str, Any]) -> None:
        encoders = {name: module for name, module in components.items() if name.startswith("text_encoder")}
        self._books = {name: TokenBook(name, encoder, tokenizers.get(name)) for name, encoder in encoders.items()}

    def of(self, adapter: str) -> list[str]:
        """An adapter's words."""
        return sorted({word for book in self._books.values() for word in book.rows(adapter)})

    def rows(self, adapter: str) -> dict[str, nn.Parameter]:
        """An adapter's rows [n, width] by name."""
        books = self._books.items()
        return {f"{part}{_WORDS}{word}": row for part, book in books for word, row in book.rows(adapter).items()}

    def first_rows(self, tokens: Mapping[str, str]) -> dict[str, Tensor]:
        """The rows that new words start from: those of existing words.

        Raises:
            AdapterError: no text encoder, no tokenizer, a word that is known already, or a start of no tokens.
        """
        if not self._books:
            raise AdapterError("Trained words need a text encoder, and this model has none.")
        books = self._books.items()
        return {f"{part}{_WORDS}{word}": row for part, book in books for word, row in book.first_rows(tokens).items()}

    def check(self, rows: Mapping[str, Tensor]) -> None:
        """Raise AdapterError where rows cannot be added: no such text encoder, a word in use, a wrong width."""
        for component, words in _by_component(rows).items():
            if component not in self._books:
                key = next(key for key in rows if key.startswith(component))
                raise AdapterError(f"The adapter brings the head '{key}', which this model has no place for.")
            self._books[component].check_rows(words)

    def put(self, adapter: str, rows: Mapping[str, Tensor], trainable: bool) -> None:
        """Add an adapter's rows."""
        for component, words in _by_component(rows).items():
            self._books[component].put(adapter, words, trainable)

    def drop(self, adapter: str) -> None:
        """Remove an adapter's words."""
        for book in self._books.values():
            book.drop(adapter)


def _by_component(rows: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    table: dict[str, dict[str, Tensor]] = {}
    for key, row in rows.items():
        component, _, word = key.partition(_WORDS)
        table.setdefault(component, {})[word] = row
    return table


def pieces_of(word: str, count: int) -> list[str]:
    """The tokens that spell a trained word of so many rows: word, word_1, word_2 and so on."""
    return [word, *(f"{word}_{place}" for place in range(1, count))]


def spell(prompt: str, tokenizer: Any) -> str:
    """Write trained words of several rows out: "<robot>" becomes "<robot> <robot>_1" where the tokenizer has both."""
    known = set(tokenizer.get_added_vocab())
    for word in sorted(known, key=len, reverse=True):
        count = 1
        while f"{word}_{count}" in known:
            count += 1
        if count > 1:
            whole = rf"(?<!\w){re.escape(word)}(?!\w)"
            prompt = re.sub(whole, " ".join(pieces_of(word, count)).replace("\\", r"\\"), prompt)
    return prompt


def _key(name: str, word: str) -> str:
    # a parameter's name takes no dots
    return f"{name}:{word}".replace(".", "\N{MIDDLE DOT}")
