"""foredraft: lossless speculative decoding for T5.

    import foredraft
    model = foredraft.load()                      # the embedded reference family
    out = model.generate(["an article ..."])
    print(out.texts[0], out.stats.acceptance_rate)

Importing foredraft loads neither torch nor transformers nor triton; the names below are fetched on first use.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

# type checkers and editors do not follow __getattr__; tests/foredraft/test_public_api.py compares these names with _HOME
if TYPE_CHECKING:
    from foredraft.engine.drafters.registry import register as register
    from foredraft.engine.generate import Model as Model
    from foredraft.engine.load import from_transformers as from_transformers
    from foredraft.engine.load import load as load
    from foredraft.engine.output import Output as Output
    from foredraft.engine.params import SamplingParams as SamplingParams
    from foredraft.engine.protocols import Capabilities as Capabilities
    from foredraft.engine.protocols import Drafter as Drafter
    from foredraft.engine.runtime.requests import Hypothesis as Hypothesis
    from foredraft.engine.runtime.requests import Request as Request
    from foredraft.engine.runtime.requests import Result as Result
    from foredraft.engine.sampling.recorder import TokenLogprob as TokenLogprob
    from foredraft.engine.score import Scores as Scores
    from foredraft.engine.state import Draft as Draft
    from foredraft.engine.stats import DecodeStats as DecodeStats
    from foredraft.engine.threads import set_threads as set_threads
    from foredraft.errors import UserError as UserError
    from foredraft.ngram_native.model import NgramModel as NgramModel
    from foredraft.pipelines import Pipeline as Pipeline
    from foredraft.pipelines import pipeline as pipeline

# the version is defined only here; setuptools and the command line read it
__version__ = "0.1.0"

_HOME = {
    "load": "foredraft.engine.load",
    "from_transformers": "foredraft.engine.load",
    "Model": "foredraft.engine.generate",
    "Output": "foredraft.engine.output",
    "Request": "foredraft.engine.runtime.requests",
    "Result": "foredraft.engine.runtime.requests",
    "Hypothesis": "foredraft.engine.runtime.requests",
    "TokenLogprob": "foredraft.engine.sampling.recorder",
    "SamplingParams": "foredraft.engine.params",
    "Scores": "foredraft.engine.score",
    "DecodeStats": "foredraft.engine.stats",
    "Drafter": "foredraft.engine.protocols",
    "Capabilities": "foredraft.engine.protocols",
    "Draft": "foredraft.engine.state",
    "register": "foredraft.engine.drafters.registry",
    "NgramModel": "foredraft.ngram_native.model",
    "pipeline": "foredraft.pipelines",
    "Pipeline": "foredraft.pipelines",
    "set_threads": "foredraft.engine.threads",
    "UserError": "foredraft.errors",
}
__all__ = [*_HOME, "__version__"]

# PyTorch's threads that wait must not spin: beside another busy process the spinning costs more than a decode. OpenMP reads
# this when torch loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# In a checkout the rooms (engine, kernels, ...) lie beside this folder, not inside it; a wheel has them inside.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "setup.py").is_file():
    __path__.append(str(_checkout))


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'foredraft' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
