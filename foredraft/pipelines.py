"""`pipeline`: summarisation, translation and text-to-text with the interface of transformers 4's pipelines."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foredraft.engine.arguments import override, settings_of, task_entries
from foredraft.engine.generate import Model
from foredraft.engine.load import load
from foredraft.engine.runtime.requests import Request
from foredraft.engine.runtime.stream import Stream
from foredraft.errors import UserError
from foredraft.json_file import read_object

# The prefix of a record's keys, by task.
KEYS = {"summarization": "summary", "translation": "translation", "text2text-generation": "generated"}
PAIR = re.compile(r"translation_([^_]+)_to_([^_]+)")


def pipeline(task: str, model: str | Path | Model | None = None, **arguments: Any) -> Pipeline:
    """Load a checkpoint for one task, as transformers 4's `pipeline` does.

    Parameters
    ----------
    task : str
        "summarization", "translation" (also "translation_xx_to_yy") or "text2text-generation".
    model : str, Path, Model or None
        A checkpoint's folder or Hugging Face name, or a loaded model; None is the embedded model.
    **arguments
        Arguments of `load` (drafter, device, dtype, ...); device may also be a number (-1 is the CPU), dtype a torch.dtype.
        Other arguments become the defaults of the pipeline's calls.

    Returns
    -------
    Pipeline

    Raises
    ------
    UserError
        The task is unknown, an argument is wrong, or the checkpoint cannot be loaded.
    """
    if not isinstance(task, str) or (task not in KEYS and not PAIR.fullmatch(task)):
        raise UserError(f"task {task!r} is not known; give 'summarization', 'translation' (or 'translation_xx_to_yy') or "
                        "'text2text-generation'")
    if arguments.pop("tokenizer", None) not in (None, model):
        raise UserError("tokenizer: the checkpoint's own is always used; leave the argument out")
    if (framework := arguments.pop("framework", None)) not in (None, "pt"):
        raise UserError(f"framework is {framework!r}; leave it out")
    if "torch_dtype" in arguments:
        arguments["dtype"] = arguments.pop("torch_dtype")
    loading = {name: arguments.pop(name) for name in inspect.signature(load).parameters
               if name in arguments and name != "path"}
    if isinstance(model, Model):
        if loading:
            raise UserError(f"{', '.join(loading)}: this model is loaded already; pass it to load instead")
        return Pipeline(task, model, arguments)
    device = loading.get("device", "cpu")
    loading["device"] = ("cpu" if device < 0 else f"cuda:{device}") if isinstance(device, int) else str(device)
    if "dtype" in loading:
        loading["dtype"] = str(loading["dtype"]).removeprefix("torch.")
    return Pipeline(task, load(model, **loading), arguments)


@dataclass(frozen=True)
class _Call:
    """The arguments of a call. `settings` are passed to the model, the others are read by the pipeline.

    outputs: number of outputs of each input. beams: whether they come from one beam search.
    """

    prefix: str
    outputs: int
    beams: bool
    truncation: bool
    has_text: bool
    has_tokens: bool
    settings: dict[str, Any]


class Pipeline:
    """One task of a checkpoint; `pipeline` makes it.

    `task_specific_params` in the checkpoint's config.json holds the prefix of the task's sources and its default settings.

    Attributes
    ----------
    task : str
    model : Model
    """

    def __init__(self, task: str, model: Model, arguments: Mapping[str, Any]):
        self.task, self.model = task, model
        self._key, self._arguments, self._warned = KEYS[task.partition("_")[0]], _given(arguments), set[str]()
        # refuse wrong arguments now, not at the first call
        self._call(self._arguments)

    def __call__(self, inputs: str | Iterable[str], *, return_text: bool | None = None, return_tensors: bool | None = None,
                 num_return_sequences: int | None = None, truncation: bool | str | None = None, src_lang: str | None = None,
                 tgt_lang: str | None = None, clean_up_tokenization_spaces: bool | None = None,
                 **settings: Any) -> Any:
        """Decode texts.

        Parameters
        ----------
        inputs : str, list of str, or another iterable of str
            An iterable that is not a list, such as a generator, is read when a sequence is free, and may be endless.
        return_text, return_tensors : bool
            Whether a record has "summary_text" ("translation_text", "generated_text"), the default, and whether it has
            "summary_token_ids", [T] int64, which begins with the start token.
        num_return_sequences : int
            Outputs of each input; more than one needs do_sample=True or num_beams.
        truncation : bool
            False refuses a source that is too long; otherwise it is truncated, with a warning.
        src_lang, tgt_lang : str
            Translation only: use the checkpoint's entry "translation_SRC_to_TGT".
        clean_up_tokenization_spaces : bool
            Only False.
        **settings
            Arguments of `Model.generate`. Their defaults are those of the checkpoint's entry for the task.

        Returns
        -------
        list or iterator
            For a text: a list of num_return_sequences records. For a list: a list of records, or of lists of records if
            num_return_sequences is above 1. For another iterable: an iterator with a list of records for each text.

        Raises
        ------
        UserError
            An argument or an input is wrong.
        """
        own = {"return_text": return_text, "return_tensors": return_tensors, "num_return_sequences": num_return_sequences,
               "truncation": truncation, "src_lang": src_lang, "tgt_lang": tgt_lang,
               "clean_up_tokenization_spaces": clean_up_tokenization_spaces}
        call = self._call(override(self._arguments, _given(settings | own)))
        if isinstance(inputs, str):
            return self._all([inputs], call)[0]
        if isinstance(inputs, (list, tuple)):
            records = self._all(inputs, call)
            return [several[0] for several in records] if call.outputs == 1 else records
        try:
            if isinstance(inputs, (bytes, bytearray, Mapping)):
                raise TypeError
            texts = iter(inputs)
        except TypeError:
            raise UserError(f"the input is of type {type(inputs).__name__}; give a text, or a list or another iterable of "
                            "texts") from None
        return self._read(self._stream(texts, call), call, 3)

    def _all(self, inputs: Iterable[str], call: _Call) -> list[list[dict[str, Any]]]:
        """The records of each input."""
        # all texts are checked before the first is decoded
        texts = list(_sources(inputs, call.prefix))
        if not call.truncation:
            # generate always truncates
            return list(self._read(self._stream(inputs, call), call, 5))
        out = self.model.generate(texts, num_return_sequences=call.outputs, **call.settings)
        _warn(out.warnings, 4)
        records = [self._record(*one, call) for one in zip(out.texts, out.token_ids, strict=True)]
        return [records[start : start + call.outputs] for start in range(0, len(records), call.outputs)]

    def _stream(self, inputs: Iterable[str], call: _Call) -> Stream:
        samples = 1 if call.beams else call.outputs
        requests = (Request(text, id=f"input {number}" if sample == 0 else f"input {number}, output {sample + 1}")
                    for number, text in enumerate(_sources(inputs, call.prefix), 1) for sample in range(samples))
        return self.model.stream(requests, in_order=True, truncation=call.truncation,
                                 num_return_sequences=call.outputs if call.beams else 1, **call.settings)

    def _read(self, stream: Stream, call: _Call, level: int) -> Iterator[list[dict[str, Any]]]:
        """The records of each input; issues its warnings."""
        with stream:
            records: list[dict[str, Any]] = []
            for result in stream:
                if result.error is not None:
                    raise result.error
                if not records:
                    _warn(result.warnings, level)
                outputs: list[Any] = [result] if result.hypotheses is None else result.hypotheses
                records += [self._record(one.text, one.token_ids, call) for one in outputs]
                if len(records) >= call.outputs:
                    yield records
                    records = []

    def _record(self, text: str | None, tokens: list[int], call: _Call) -> dict[str, Any]:
        record: dict[str, Any] = {}
        if call.has_tokens:
            start = call.settings.get("decoder_start_token_id", self.model.target.start_token)
            record[f"{self._key}_token_ids"] = torch.tensor([start, *tokens])
        if call.has_text:
            record[f"{self._key}_text"] = text
        return record

    def _call(self, arguments: Mapping[str, Any]) -> _Call:
        """Split the arguments of a call. UserError: one that the pipeline reads is wrong."""
        given = dict(arguments)
        has_tokens = bool(given.pop("return_tensors", False))
        has_text = given.pop("return_text", None)
        has_text = not has_tokens if has_text is None else bool(has_text)
        if not has_text and not has_tokens:
            raise UserError("return_text=False leaves nothing to return; give return_tensors=True too")
        if given.pop("clean_up_tokenization_spaces", None):
            raise UserError("clean_up_tokenization_spaces=True is not supported; leave it out")
        truncation = given.pop("truncation", True) not in (False, "do_not_truncate")
        prefix, defaults = self._entries(self._name(given))
        if defaults and given.get("generation_config") is None:
            given["generation_config"] = defaults
        effective = self.model.settings | defaults | given
        beams, outputs = effective.get("num_beams", 1) != 1, effective.get("num_return_sequences", 1)
        if isinstance(outputs, bool) or not isinstance(outputs, int) or outputs < 1:
            raise UserError(f"num_return_sequences is {outputs!r}; give a whole number of at least 1")
        if outputs > 1 and not beams and not effective.get("do_sample"):
            raise UserError(f"num_return_sequences is {outputs}, but greedy decoding has one output; give do_sample=True or "
                            "num_beams")
        given.pop("num_return_sequences", None)
        return _Call(prefix, outputs, beams, truncation, has_text, has_tokens, given)

    def _name(self, given: dict[str, Any]) -> str:
        """The task's name in task_specific_params. Removes src_lang and tgt_lang from the arguments."""
        if self._key != "translation":
            return self.task
        languages = [given.pop(name, None) for name in ("src_lang", "tgt_lang")]
        if languages == [None, None]:
            return self.task
        if None in languages:
            raise UserError("src_lang and tgt_lang belong together; give both")
        return "translation_{}_to_{}".format(*languages)

    def _entries(self, name: str) -> tuple[str, dict[str, Any]]:
        """The prefix and the settings of a task in config.json. Warns once of each entry that is not supported."""
        path = Path(self.model.path) / "config.json"
        config = read_object(path) if path.exists() else {}
        entries = task_entries(path.parent, name)
        if not entries and name != self.task:
            self._warn_once(f"{path}: task_specific_params has no {name!r}: src_lang and tgt_lang have no effect")
        where = Path(f"{path}: task_specific_params of {name!r}")
        settings, ignored = settings_of({key: value for key, value in entries.items() if key != "prefix"}, where, True)
        for message in ignored:
            self._warn_once(message)
        return entries.get("prefix") or config.get("prefix") or "", settings

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            _warn([message], 6)


def _sources(inputs: Iterable[str], prefix: str) -> Iterator[str]:
    """The prefix and each text, joined. UserError: an input is not a text, or is empty."""
    for number, text in enumerate(inputs, 1):
        if not isinstance(text, str):
            raise UserError(f"input {number} is of type {type(text).__name__}; give a text")
        if not text.strip():
            raise UserError(f"input {number} is empty; give some text")
        yield prefix + text


def _given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def _warn(messages: Iterable[str], level: int) -> None:
    for message in dict.fromkeys(messages):
        warnings.warn(message, stacklevel=level)
