"""Builds the tokenizer of a checkpoint directory, with the tokens and texts of transformers' tokenizer.

It is read from tokenizer.json, from spiece.model (T5), or from vocab.json and merges.txt (CodeT5). ByT5's tokens are bytes;
its tokenizer needs only the class name ByT5Tokenizer in tokenizer_config.json or config.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from foredraft.engine.models.sentencepiece_file import CONTROL, USER_DEFINED, read_sentencepiece
from foredraft.errors import UserError
from foredraft.json_file import read_object

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

# Every file that a tokenizer may be read from.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "spiece.model",
                   "vocab.json", "merges.txt")
# transformers' clean_up_tokenization, in its order.
_CLEAN_UP = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"),
             (" 've", "'ve"), (" 're", "'re"))


def load_tokenizer(path: Path) -> Tokenizer | None:
    """Read the tokenizer of a checkpoint directory.

    Parameters
    ----------
    path : Path
        A directory with tokenizer.json, spiece.model, or vocab.json and merges.txt, or of a ByT5.

    Returns
    -------
    tokenizers.Tokenizer or None
        Without truncation and padding; None if the directory has none of these.

    Raises
    ------
    UserError
        A file cannot be read, or an added token cannot have the id that its file says.
    """
    from tokenizers import Tokenizer

    settings = _entries_of(path / "tokenizer_config.json")
    if (path / "tokenizer.json").exists():
        try:
            tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path / 'tokenizer.json'}: not a readable tokenizer ({error}); copy it again") from None
    else:
        try:
            tokenizer = _from_parts(path, settings)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}: tokenizer_config.json, added_tokens.json or special_tokens_map.json has an entry of "
                            f"the wrong kind ({type(error).__name__}: {error}); copy or download them again") from None
        if tokenizer is None:
            return None
    return _configured(tokenizer, bool(settings.get("clean_up_tokenization_spaces")))


def _from_parts(path: Path, settings: dict[str, Any]) -> Tokenizer | None:
    """A tokenizer without tokenizer.json."""
    if (path / "spiece.model").exists():
        return _from_sentencepiece(path, settings)
    if (path / "vocab.json").exists() and (path / "merges.txt").exists():
        return _from_merges(path)
    if "ByT5Tokenizer" in (settings.get("tokenizer_class"), _entries_of(path / "config.json").get("tokenizer_class")):
        return _of_bytes(path, settings)
    return None


def adopt_tokenizer(tokenizer: Any) -> Tokenizer | None:
    """Convert a tokenizer in memory to what `load_tokenizer` returns.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase, tokenizers.Tokenizer or None
        It is copied, not changed.

    Returns
    -------
    tokenizers.Tokenizer or None

    Raises
    ------
    UserError
        It is neither a fast tokenizer nor a ByT5Tokenizer.
    """
    from tokenizers import Tokenizer

    if tokenizer is None:
        return None
    if type(tokenizer).__name__ == "ByT5Tokenizer":
        return _of_bytes(Path("the tokenizer in memory"), {"added_tokens_decoder": {
            number: {"content": token.content, "special": token.special}
            for number, token in tokenizer.added_tokens_decoder.items()}})
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(backend, Tokenizer):
        raise UserError(f"the tokenizer is of type {type(tokenizer).__name__}; give a fast tokenizer of transformers, or a "
                        "tokenizers.Tokenizer")
    return _configured(Tokenizer.from_str(backend.to_str()), getattr(tokenizer, "clean_up_tokenization_spaces", False))


def _configured(tokenizer: Tokenizer, cleans_up: bool) -> Tokenizer:
    """Turn truncation and padding off, and clean_up_tokenization_spaces on if the checkpoint has it."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # transformers ignores the entry for BPE
    if cleans_up and type(tokenizer.model).__name__ != "BPE":
        _clean_up(tokenizer)
    return tokenizer


def _entries_of(path: Path) -> dict[str, Any]:
    """The entries of a JSON file; none where there is no file."""
    return read_object(path) if path.exists() else {}


def _from_sentencepiece(path: Path, settings: dict[str, Any]) -> Tokenizer:
    """As transformers' T5Tokenizer: the sentinels <extra_id_N> follow the pieces, in descending order."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    found = read_sentencepiece(path / "spiece.model")
    sentinels = [f"<extra_id_{i}>" for i in range(settings.get("extra_ids", 100))]
    vocabulary = [(text, score) for text, score, _ in found.pieces] + [(text, 0.0) for text in reversed(sentinels)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=found.unknown, byte_fallback=False))
    if found.charsmap:
        tokenizer.normalizer = normalizers.Precompiled(found.charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(),
        pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always", split=True)])
    tokenizer.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme="always", split=True)
    special = [_content(settings.get(f"{name}_token", default))
               for name, default in (("pad", "<pad>"), ("eos", "</s>"), ("unk", "<unk>"))]
    special += [text for text, _, kind in found.pieces if kind == CONTROL] + sentinels
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False)
                          for text, _, kind in found.pieces if kind == USER_DEFINED])
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    _add_tokens(tokenizer, path, settings)
    _end_with(tokenizer, special[1])
    return tokenizer


def _from_merges(path: Path) -> Tokenizer:
    from transformers import AutoTokenizer, RobertaTokenizer

    declared = _entries_of(path / "tokenizer_config.json").get("tokenizer_class")
    kind = RobertaTokenizer if str(declared).startswith(("Roberta", "None")) else AutoTokenizer
    try:
        return kind.from_pretrained(path, local_files_only=True).backend_tokenizer
    except Exception as error:  # the library raises many types
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: no tokenizer can be made of vocab.json and merges.txt ({reason}); add "
                        "tokenizer.json") from None


def _of_bytes(path: Path, settings: dict[str, Any]) -> Tokenizer:
    """ByT5's tokenizer: byte b is token b + 3, and the sentinels follow. Bytes that are not UTF-8 decode to nothing."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    names = ("<pad>", "</s>", "<unk>")
    # ByteLevel maps a printable byte to its Latin-1 character, and the others to the characters from U+0100 on
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    characters = [chr(byte if byte in printable else next(others)) for byte in range(256)]
    vocabulary = {text: token for token, text in enumerate((*names, *characters))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("\ufffd", "")])
    tokenizer.add_special_tokens([AddedToken(name, lstrip=True, rstrip=True, normalized=False) for name in names])
    if not _add_tokens(tokenizer, path, settings):
        tokenizer.add_special_tokens([AddedToken(f"<extra_id_{i}>", normalized=False) for i in range(125)])
    _end_with(tokenizer, "</s>")
    return tokenizer


def _content(token: str | dict) -> str:
    return token["content"] if isinstance(token, dict) else token


def _add_tokens(tokenizer: Tokenizer, path: Path, settings: dict[str, Any]) -> bool:
    """Add the missing tokens of tokenizer_config.json or added_tokens.json. False: the files list none."""
    added = {int(token): _added(entry) for token, entry in settings.get("added_tokens_decoder", {}).items()}
    if not added:
        names = _entries_of(path / "special_tokens_map.json").get("additional_special_tokens") or []
        special = {_content(name) for name in names}
        added = {token: _added({"content": text, "special": text in special})
                 for text, token in _entries_of(path / "added_tokens.json").items()}
    for token, text in sorted(added.items()):
        if tokenizer.token_to_id(text.content) is None:
            (tokenizer.add_special_tokens if text.special else tokenizer.add_tokens)([text])
        if tokenizer.token_to_id(text.content) != token:
            raise UserError(f"{path}: the added token {text.content!r} should have id {token}, it would be "
                            f"{tokenizer.token_to_id(text.content)}; add tokenizer.json")
    return bool(added)


def _added(entry: dict[str, Any]) -> AddedToken:
    from tokenizers import AddedToken

    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(entry["content"], **{name: entry[name] for name in names if name in entry})


def _end_with(tokenizer: Tokenizer, end: str) -> None:
    from tokenizers import processors

    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", end], pair=["$A", end, "$B", end], special_tokens=[(end, tokenizer.token_to_id(end))])


def _clean_up(tokenizer: Tokenizer) -> None:
    """Make `decode` apply transformers' clean_up_tokenization."""
    from tokenizers import decoders

    before = [] if tokenizer.decoder is None else [tokenizer.decoder]
    tokenizer.decoder = decoders.Sequence([*before, decoders.Fuse(), *(decoders.Replace(*pair) for pair in _CLEAN_UP)])
