"""The base of the trained drafters' torch modules, their files, and the target's embedding and head that they may share.

A trainer uses every DraftModel (lstm.py, cnn.py, t5_drafter.py, eagle_head.py) in the same way:

    model = LSTMModel.from_target(target_folder, hidden_size=128)    sizes by the names of its config
    model(input_ids [B, T], encoder_output [B, S, C], source_mask [B, S], source_ids [B, S]) -> logits [B, T, V]
    model(..., scored=mask [B, T] bool)                              -> logits [N, V] of the N scored positions
    model(..., features=[B, T, C])                                   where `reads_features`: with the target's hidden states
    model.save(folder);  LSTMModel.load(folder, target_folder)       config.json + model.safetensors

It is causal in T: logits [:, t] are the distribution of the token after input_ids [:, : t + 1], over the whole vocabulary;
input_ids begin with the start token. encoder_output is the target's. Positions with source_mask 0 are not read. With
`shared_embeddings` the target's embedding and head are frozen buffers, outside the state dict.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from foredraft.atomic_write import write_atomic
from foredraft.engine.models.checkpoint import StoredTensors, read_config, weights_hash
from foredraft.engine.models.projection import Projection, read_projection
from foredraft.engine.models.spec import ModelConfig, tensor_parts
from foredraft.engine.models.t5_weights import QUANTISED, T5Weights, as_numpy, packed
from foredraft.errors import UserError
from foredraft.json_file import read_object
from foredraft.kernels.model.packing import pack


@dataclass(frozen=True, kw_only=True)
class DraftConfig:
    """The entries that every drafter's config.json has.

    Attributes
    ----------
    vocab_size, d_model : int
        V and C of the target.
    head_scale : float
        Factor of the outputs before the head.
    start_token, end_token, pad_token : int
    target, target_hash : str
        The target it was made for: its folder's name and its weights_hash.
    shared_embeddings : bool
        The embedding and the head are the target's.
    draft_vocab : int
        How many tokens it may draft beside those of the source; 0 is all. Training always uses all.
    """

    vocab_size: int
    d_model: int
    head_scale: float
    start_token: int
    end_token: int
    pad_token: int
    target: str
    target_hash: str
    shared_embeddings: bool = True
    draft_vocab: int = 0


class DraftModel(nn.Module):
    """A drafter's network.

    Parameters
    ----------
    config : DraftConfig
    tables : tuple[Tensor, Tensor], optional
        The target's embedding and head [V, C] float32, one tensor where they are tied; without them both are zero.

    Attributes
    ----------
    embedding, head : Tensor [V, C]
        Buffers with the target's tables, or parameters of its own.
    draft_ids : Tensor [F] int64
        The draft vocabulary, most frequent tokens first; empty: all tokens.
    projection : Projection or None
        Where the target is a widened one, and the drafter was trained on its original: `target_width` C' is not C then, and
        encoder outputs and hidden states are projected.
    """

    model_type: ClassVar[str]
    config_class: ClassVar[type[DraftConfig]]
    reads_features: ClassVar[bool] = False
    projection: Projection | None = None

    def __init__(self, config: DraftConfig, tables: tuple[Tensor, Tensor] | None = None):
        super().__init__()
        self.config = config
        V, C = config.vocab_size, config.d_model
        if tables is None:
            blank = torch.zeros(V, C) if not config.shared_embeddings else torch.zeros(0, C)
            tables = (blank, blank)
        if config.shared_embeddings:
            self.register_buffer("embedding", tables[0], persistent=False)
            self.register_buffer("head", tables[1], persistent=False)
        else:
            self.embedding = nn.Parameter(tables[0].clone())
            self.head = self.embedding if tables[1] is tables[0] else nn.Parameter(tables[1].clone())
        self.register_buffer("draft_ids", torch.zeros(config.draft_vocab, dtype=torch.int64))

    def forward(self, input_ids: Tensor, encoder_output: Tensor, source_mask: Tensor, source_ids: Tensor | None = None,
                scored: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: DraftConfig, target: str | Path) -> DraftModel:
        """A randomly initialised drafter over the tables of a target's folder."""
        return cls(config, read_tables(target, config))

    @classmethod
    def from_target(cls, target: str | Path, **sizes: Any) -> DraftModel:
        """A new drafter for a target's folder.

        Parameters
        ----------
        target : str or Path
            The target's checkpoint directory.
        **sizes
            Entries of the config.

        Returns
        -------
        DraftModel
            Initialised from torch's global generator.
        """
        known = {field.name for field in fields(cls.config_class)}
        for name in sizes:
            if name not in known:
                raise UserError(f"{cls.model_type} has no size {name!r}; give one of {', '.join(sorted(known))}")
        model = cls.from_config(cls.config_class(**target_entries(target) | sizes), target)
        model.initialise()
        return model

    def initialise(self) -> None:
        """Set weights that are better than random, from the tables; called by from_target."""

    def project(self, projection: Projection) -> None:
        """Read a widened target from now on."""
        self.projection = projection

    @property
    def target_width(self) -> int:
        """C' of the target's encoder output and hidden states."""
        return self.config.d_model if self.projection is None else self.projection.width

    @property
    def reads_target_tables(self) -> bool:
        """Whether the embedding and the head are those of the target that it is loaded for."""
        return self.config.shared_embeddings and self.projection is None

    def own_tables(self) -> tuple[Tensor, Tensor]:
        """Embedding and head [V, C] where they are not the target's: its own, or the original target's."""
        if self.config.shared_embeddings:
            return self.projection.tables()
        return self.embedding.detach(), self.head.detach()

    def restrict(self, tokens: Tensor) -> None:
        """Draft only these tokens [F] int64, most frequent first, and those of the source."""
        self.config = type(self.config)(**asdict(self.config) | {"draft_vocab": len(tokens)})
        self.draft_ids = tokens.to(self.draft_ids)

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write config.json and model.safetensors, floats as `dtype`, each file atomically."""
        entries = {"architectures": [type(self).__name__], "model_type": self.model_type, **asdict(self.config)}
        tensors = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor
                   for name, tensor in self.state_dict().items() if name != "head" or self.head is not self.embedding}
        save_files(folder, entries, tensors)

    @classmethod
    def load(cls, folder: str | Path, target: str | Path, with_tables: bool = True) -> DraftModel:
        """Read a saved drafter.

        Parameters
        ----------
        folder : str or Path
        target : str or Path
            The checkpoint directory of the target it was made for, or of a widened one.
        with_tables : bool
            Read shared tables from the target; without, they are empty.

        Returns
        -------
        DraftModel

        Raises
        ------
        UserError
            It is of another kind, for another target or vocabulary, or a tensor is missing, unknown or of another shape.
        """
        folder = Path(folder)
        config = cls.config_class(**read_entries(folder, cls.config_class, cls.model_type))
        projection = check_target(folder, config, target)
        tables = None
        if config.shared_embeddings and with_tables:
            tables = read_tables(target, config) if projection is None else projection.float_tables()
        model = cls(config, tables)
        model.load_tensors(folder)
        if projection is not None:
            model.project(projection)
        return model

    def load_tensors(self, folder: Path) -> None:
        """Fill the parameters from model.safetensors; names and shapes must be config.json's."""
        with StoredTensors(folder) as stored, torch.no_grad():
            wanted = self.state_dict()
            if unknown := sorted(set(stored.names) - wanted.keys()):
                raise UserError(f"{folder}: holds tensor {unknown[0]!r}; a {self.model_type} of config.json's sizes has "
                                "no such tensor; save the drafter again")
            for name, tensor in wanted.items():
                if name == "head" and self.head is self.embedding:
                    continue
                found = stored.raw(name) if name in stored.names else None
                if found is None or found.shape != tensor.shape:
                    what = "is missing" if found is None else f"is {tuple(found.shape)}"
                    raise UserError(f"{folder}: tensor {name} {what}, config.json says {tuple(tensor.shape)}")
                tensor.copy_(found)


@dataclass(frozen=True)
class Tables:
    """A drafter's embedding [V, C] float32 or bfloat16 bits, and its head, packed as in kernels/model/linear.py."""

    embedding: np.ndarray
    head: np.ndarray

    @classmethod
    def of(cls, model: DraftModel, weights: T5Weights) -> Tables:
        """The target's tables where they are shared, else the model's own in float32. Those of a widened target's original
        are stored as the target's, or in bfloat16 where that loses nothing."""
        if model.reads_target_tables:
            return cls(weights.embedding, weights.head)
        embedding, head = model.own_tables()
        if not model.config.shared_embeddings:
            return cls(embedding.numpy(), pack(head.numpy()))
        stored = "bf16" if weights.stored == "fp32" and head.dtype == torch.bfloat16 else weights.stored
        return cls(as_numpy(embedding.to(weights.dtype)), packed(head, stored))

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings [S, C] float32 of tokens [S] int64."""
        if self.embedding.dtype == np.uint16:
            return torch.from_numpy(self.embedding.view(np.int16)).view(torch.bfloat16)[tokens].float()
        return torch.from_numpy(self.embedding)[tokens]


def storage_of(folder: Path, target: T5Weights) -> str:
    """Storage of a saved drafter's own matrices: int8 beside an int8 or int4 target, else as its file holds them."""
    if target.stored in QUANTISED:
        return "int8"
    with StoredTensors(folder) as tensors:
        return "bf16" if any(tensors.raw(name).dtype == torch.bfloat16 for name in tensors.names) else "fp32"


def rms_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Scale vectors [..., C] to root mean square 1, without a weight."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)


def shifted(x: Tensor, steps: int) -> Tensor:
    """x [B, T, ...] moved `steps` positions later, after zeros."""
    return torch.cat((x.new_zeros(x.shape[0], steps, *x.shape[2:]), x), 1)[:, : x.shape[1]]


def read_tables(target: str | Path, config: DraftConfig) -> tuple[Tensor, Tensor]:
    """Embedding and head [V, C] float32 of a target's folder, one tensor where they are tied."""
    ours = read_config(Path(target))
    with StoredTensors(target) as tensors:
        name, tied = tensors.tables(ours)
        parts, shape = tensor_parts(ours, tied, name), (config.vocab_size, config.d_model)

        def table(name: str) -> Tensor:
            return tensors.read(parts[name].names[0][0], shape).to(torch.float32, copy=True)

        embedding = table("embedding")
        return embedding, embedding if tied else table("head")


def target_entries(target: str | Path) -> dict[str, Any]:
    """The entries of DraftConfig that a target's folder sets."""
    folder = Path(target)
    c = ModelConfig.from_json(folder / "config.json")
    return {"vocab_size": c.vocab_size, "d_model": c.d_model, "head_scale": c.head_scale, "start_token": c.start_token,
            "end_token": c.end_token, "pad_token": c.pad_token, "target": folder.resolve().name,
            "target_hash": weights_hash(folder)}


def check_target(folder: Path, config: DraftConfig, target: str | Path) -> Projection | None:
    """UserError unless the drafter in `folder` fits the target in the folder `target`, or the original of that target if it
    is a widened one; then its projection is returned."""
    if not (Path(target) / "config.json").exists():
        raise UserError(f"{folder}: a trained drafter belongs to a checkpoint's folder, and {target} has none; save the "
                        "model and load its folder, or give lookup")
    projection = read_projection(target)
    if projection is not None and projection.target_hash == config.target_hash:
        return projection
    c = ModelConfig.from_json(Path(target) / "config.json")
    for what, ours, its in (("vocabulary", config.vocab_size, c.vocab_size), ("width", config.d_model, c.d_model)):
        if ours != its:
            raise UserError(f"{folder}: made for a target of {what} {ours}, {target} has {its}; train one for this target")
    if config.shared_embeddings and (found := weights_hash(target)) != config.target_hash:
        raise UserError(f"{folder}: shares the embeddings of {config.target} ({config.target_hash}), {target} is {found}; "
                        "train one for this target")
    return None


def read_entries(folder: Path, kind: type[DraftConfig], model_type: str) -> dict[str, Any]:
    """The entries of config.json that `kind` has. UserError: one is missing, or another kind of drafter wrote the file."""
    entries = read_json(folder)
    if entries.get("model_type") != model_type:
        raise UserError(f"{folder}: model_type is {entries.get('model_type')!r}, not {model_type!r}; give a drafter of that "
                        "kind")
    known = [field.name for field in fields(kind)]
    missing = [name for name in known if name not in entries]
    if missing:
        raise UserError(f"{folder / 'config.json'}: key {missing[0]!r} is missing; save the drafter again")
    return {name: tuple(entries[name]) if isinstance(entries[name], list) else entries[name] for name in known}


def read_json(folder: Path) -> dict[str, Any]:
    """The entries of a drafter's config.json. UserError: there is none, or it is no JSON object."""
    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{folder}: config.json is missing; give a drafter's directory")
    return read_object(path, "copy the drafter again")


def save_files(folder: str | Path, entries: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write config.json and model.safetensors, each atomically."""
    from safetensors.torch import save

    folder = Path(folder)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    for name, data in (("model.safetensors", save(contiguous, {"format": "pt"})),
                       ("config.json", (json.dumps(entries, indent=2, sort_keys=True) + "\n").encode())):
        write_atomic(folder / name, data)
