"""Outputs that match a regular expression or a JSON schema, by the token masks of llguidance (`foredraft[grammar]`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from foredraft.engine.sampling.processor import Context
from foredraft.errors import UserError


class GrammarVocabulary:
    """A tokenizer as llguidance needs it. A model makes it once, in about a second.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer
    size : int
        V, the model's vocabulary, which may be larger than the tokenizer's.
    end_token : int
    """

    def __init__(self, tokenizer: Any, size: int, end_token: int):
        self.tokenizer, self.size, self.end_token = tokenizer, size, end_token

    @cached_property
    def ll_tokenizer(self) -> Any:
        """An llguidance.LLTokenizer. UserError: llguidance is not installed."""
        try:
            import llguidance
        except ImportError:
            raise UserError("regex and json_schema need llguidance: pip install 'foredraft[grammar]'") from None
        return llguidance.LLTokenizer(llguidance.TokenizerWrapper(self.tokens), n_vocab=self.size)

    @cached_property
    def tokens(self) -> TokenBytes:
        return TokenBytes(self.tokenizer, self.size, self.end_token)


class TokenBytes:
    """The bytes of every token, as llguidance.TokenizerWrapper takes them."""

    def __init__(self, tokenizer: Any, size: int, end_token: int):
        self.tokenizer, self.eos_token_id, self.bos_token_id = tokenizer, end_token, None
        added = tokenizer.get_added_tokens_decoder()
        special = {token for token, content in added.items() if content.special}
        texts = [tokenizer.id_to_token(token) for token in range(size)]
        kind = json.loads(tokenizer.to_str())
        is_bytes = "ByteLevel" in json.dumps(kind.get("decoder"))
        unknown = kind["model"].get("unk_id")
        special |= {token for token, text in enumerate(texts) if text is None or token == unknown}
        self.special_token_ids = sorted(special | {end_token})
        # a special token has no bytes, and gets a name in angle brackets
        self.tokens = [f"<|{token}|>".encode() if token in special or token == end_token
                       else _byte_level(text) if is_bytes else _piece(text) for token, text in enumerate(texts)]

        texts_only = set(range(size)) - set(self.special_token_ids)
        # in descending order, so that of tokens with equal bytes the lowest stays
        self.by_bytes = {self.tokens[token]: token for token in sorted(texts_only, reverse=True)}
        self.longest = max(map(len, self.by_bytes))

    def __call__(self, text: bytes) -> list[int]:
        """Tokens with the bytes `text`: the tokenizer's, or, where it changes the text, the longest token at each byte."""
        found = self.tokenizer.encode(text.decode(errors="replace"), add_special_tokens=False).ids
        if b"".join(self.tokens[token] for token in found) == text:
            return found
        found, at = [], 0
        while at < len(text):
            size = min(self.longest, len(text) - at)
            while size and text[at : at + size] not in self.by_bytes:
                size -= 1
            if not size:
                break
            found.append(self.by_bytes[text[at : at + size]])
            at += size
        return found


def _piece(text: str) -> bytes:
    """The bytes of a SentencePiece piece. U+2581 stands for a space, <0xNN> for a byte."""
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return bytes([int(text[3:5], 16)])
    return text.replace("\u2581", " ").encode()


def _byte_level(text: str) -> bytes:
    """The bytes of a token of a byte-level BPE: printable bytes stand for themselves, the others follow from U+0100."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return bytes(ord(one) if ord(one) < 256 else others[ord(one) - 256] for one in text)


class Grammar:
    """The matcher of one request. It advances with the output, and goes back after a draft that was rejected.

    Parameters
    ----------
    kind, text : "regex" or "json_schema", and the expression or the schema
    vocabulary : GrammarVocabulary
    context : Context
    """

    def __init__(self, kind: str, text: str, vocabulary: GrammarVocabulary, context: Context):
        if not context.end_tokens:
            raise UserError(f"{kind} needs an end token, and this model or request has none; give eos_token_id")
        ll_tokenizer = vocabulary.ll_tokenizer
        import llguidance

        if kind == "json_schema":
            # no free white space: a model could write it without end
            schema = json.loads(text)
            text = json.dumps({"x-guidance": {"whitespace_flexible": False}} | (schema if isinstance(schema, dict) else {}))
        body = f"text: /{_in_slashes(text)}/" if kind == "regex" else f"text: %json {text}"
        # a SentencePiece text begins with the space of its first word, which decoding removes
        grammar = llguidance.LLMatcher.grammar_from_lark(f'start: " "? text\n{body}\n')
        self.matcher = llguidance.LLMatcher(ll_tokenizer, grammar)
        if self.matcher.is_error():
            reason = self.matcher.get_error().strip().splitlines()[0]
            raise UserError(f"{kind} is not usable ({reason[:160]}); correct it")
        self.end_token, self.end_tokens = vocabulary.end_token, np.array(context.end_tokens, np.int64)
        self.vocabulary, self.tokens, self.consumed = context.vocabulary, vocabulary.tokens.tokens, []

    def allowed(self, tokens: Sequence[int]) -> np.ndarray | None:
        if not self._follow(tokens):
            return None
        bits = np.frombuffer(self.matcher.compute_bitmask(), np.uint8)
        allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little")[: self.vocabulary])
        if forced := self.matcher.compute_ff_bytes():
            # forced bytes that no token can write: llguidance skips them and allows the tokens after them
            allowed = np.array([token for token in allowed.tolist()
                                if self.tokens[token].startswith(forced) or forced.startswith(self.tokens[token])], np.int64)
        if self.end_token not in allowed:
            return allowed
        return np.union1d(allowed[allowed != self.end_token], self.end_tokens)

    def forced(self, tokens: Sequence[int], limit: int) -> list[int]:
        return self.matcher.compute_ff_tokens()[:limit] if self._follow(tokens) else []

    def _follow(self, tokens: Sequence[int]) -> bool:
        """Bring the matcher to the state after `tokens`; False where they do not match."""
        same = 0
        while same < min(len(tokens), len(self.consumed)) and tokens[same] == self.consumed[same]:
            same += 1
        if same < len(self.consumed):
            self.matcher.rollback(len(self.consumed) - same)
            self.consumed = self.consumed[:same]
        rest = list(tokens[same:])
        if any(token in self.end_tokens for token in rest) or self.matcher.validate_tokens(rest) < len(rest):
            return False
        self.matcher.consume_tokens(rest)
        self.consumed += rest
        return True


def _in_slashes(expression: str) -> str:
    """Escape the slashes of a regular expression, except those behind a backslash."""
    return "".join("\\/" if one == "/" and expression[i - 1 : i] != "\\" else one for i, one in enumerate(expression))
