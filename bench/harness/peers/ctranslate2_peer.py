"""CTranslate2 on the same checkpoint: converted into a temporary folder, each id standing for itself as a token."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from foredraft.bench.harness.methods import Absent
from foredraft.json_file import read_object


@lru_cache(maxsize=4)
def converted(folder: Path) -> tempfile.TemporaryDirectory:
    """The checkpoint in CTranslate2's format, float32; the folder goes when the process does. Absent."""
    try:
        from ctranslate2.converters.transformers import T5Loader
    except ImportError:
        raise Absent("ctranslate2 is not installed; pip install 'foredraft[bench]'") from None
    import torch
    from transformers import T5ForConditionalGeneration

    class Ids(T5Loader):
        def get_vocabulary(self, model, tokenizer):
            return [str(token) for token in range(model.config.vocab_size)]

        def set_config(self, config, model, tokenizer):
            config.bos_token = config.decoder_start_token = str(model.config.decoder_start_token_id)
            config.eos_token, config.unk_token = str(model.config.eos_token_id), "2"

    kept = tempfile.TemporaryDirectory(prefix="foredraft-ctranslate2-")
    try:
        model = T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        # transformers 5 takes the tables for tied, and the converter would scale the outputs
        model.config.tie_word_embeddings = read_object(Path(folder) / "config.json").get("tie_word_embeddings", True)
        with torch.no_grad():
            spec = Ids()(model, None)
        spec.validate()
        spec.optimize(quantization=None)
        spec.save(kept.name)
    except Exception as error:  # whatever the library raises is the reason to report
        raise Absent(f"the conversion fails: {type(error).__name__}: {' '.join(str(error).split())[:160]}") from None
    return kept


class Translator:
    """Greedy, sampled or beam decoding of id lists by CTranslate2, on as many threads as torch uses."""

    def __init__(self, folder: Path, compute_type: str):
        self.files = converted(folder)
        import ctranslate2
        import torch

        self.engine = ctranslate2.Translator(self.files.name, device="cpu", inter_threads=1, compute_type=compute_type,
                                             intra_threads=torch.get_num_threads())

    def __call__(self, sources: Sequence[Sequence[int]], longest: int, shortest: int = 1, beams: int = 1,
                 **options) -> list[list[int]]:
        """Ids of each source, `shortest` to `longest` of them; the end token is given where the output is shorter."""
        texts = [[str(token) for token in source] for source in sources]
        results = self.engine.translate_batch(
            texts, beam_size=beams, min_decoding_length=shortest, max_decoding_length=longest, max_input_length=0,
            return_end_token=True, **options)
        return [[int(token) for token in result.hypotheses[0]] for result in results]
