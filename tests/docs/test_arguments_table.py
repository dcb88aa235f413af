"""The table of arguments in docs/coming-from-transformers.md is complete, and says what the code does."""

import inspect
import re
from pathlib import Path

from transformers import GenerationConfig
from transformers.generation import GenerationMixin

from foredraft.engine.arguments import NAMES, UNSUPPORTED, WITHOUT_EFFECT

PAGE = Path(__file__).resolve().parents[2] / "docs" / "coming-from-transformers.md"
# What Model.generate has no use for, and generate with tensors honours.
TENSORS = {"return_dict_in_generate", "pad_token_id", "bos_token_id"}
OF_THE_CALL = {"inputs", "generation_config", "streamer"}


def table():
    kinds = "same|differs|not supported|without effect"
    rows = re.findall(rf"^\| `(\w+)` \| ({kinds}) \|", PAGE.read_text(encoding="utf-8"), re.M)
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def test_every_argument_of_transformers_is_there():
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    arguments = set(inspect.signature(GenerationMixin.generate).parameters) - {"self", "kwargs"}
    assert set(table()) == fields | arguments | {"decoder_input_ids"}


def test_it_agrees_with_the_code():
    found = table()
    assert {name for name, kind in found.items() if kind == "not supported"} == set(UNSUPPORTED)
    assert {name for name, kind in found.items() if kind == "without effect"} == (
        WITHOUT_EFFECT - TENSORS | {"transformers_version"})
    assert {name for name, kind in found.items() if kind in ("same", "differs")} <= set(NAMES) | TENSORS | OF_THE_CALL
