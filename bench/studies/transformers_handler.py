"""A minimal server around transformers, as a peer: a FastAPI handler that calls `generate` for each request.

    python -m foredraft.bench.studies.transformers_handler MODEL PORT [--fixed-length]
"""

from __future__ import annotations

import sys

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from tokenizers import Tokenizer
from transformers import T5ForConditionalGeneration


class Body(BaseModel):
    """A source text, and limits."""

    text: str
    max_new_tokens: int = 128
    max_source: int = 512


def create_app(folder: str, has_fixed_length: bool) -> FastAPI:
    """The application. FastAPI runs its handlers in a thread pool, because they are not async."""
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    model = T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    own = {"eos_token_id": None} if has_fixed_length else {}
    if has_fixed_length:
        model.generation_config.eos_token_id = None
    app = FastAPI()

    @app.get("/ready")
    def ready() -> dict:
        return {}

    @app.post("/generate")
    def generate(body: Body) -> dict:
        tokens = tokenizer.encode(body.text).ids
        if len(tokens) > body.max_source:
            tokens = [*tokens[: body.max_source - 1], model.config.eos_token_id]
        with torch.inference_mode():
            found = model.generate(input_ids=torch.tensor([tokens]), max_new_tokens=body.max_new_tokens, do_sample=False,
                                   num_beams=1, **own)
        return {"text": tokenizer.decode(found[0].tolist(), skip_special_tokens=True)}

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(sys.argv[1], "--fixed-length" in sys.argv[3:]), host="127.0.0.1", port=int(sys.argv[2]),
                log_level="warning", access_log=False)
