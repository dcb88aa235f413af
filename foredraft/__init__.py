"""foredraft: lossless speculative decoding for T5.

    import foredraft
    model = foredraft.load()                      # the embedded reference family
    out = model.generate(["an article ..."])
    print(out.texts[0], out.stats.acceptance_rate)

Importing foredraft loads neither torch nor transformers nor triton; the names below are fetched on first use.
"""

from __future__ import annotations

import importlib
from pathlib import Path

__version__ = "0.1.0"

_HOME = {
    "load": "foredraft.engine.generate",
    "DecodeConfig": "foredraft.engine.params",
    "DecodeStats": "foredraft.engine.stats",
    "Model": "foredraft.engine.generate",
    "Output": "foredraft.engine.generate",
    "Request": "foredraft.engine.runtime.requests",
    "Result": "foredraft.engine.runtime.requests",
    "NgramModel": "foredraft.ngram_native.model",
    "UserError": "foredraft.errors",
}
__all__ = [*_HOME, "__version__"]

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
