"""The registry: every name of a drafter, the class it stands for, where that runs, and how a drafter is made from a name.

Nothing else lists names: help texts, `PROPOSERS`, the trained kinds, the bench's methods and refusals derive from `ENTRIES`.
A new drafter of the engine is a file in this folder and one entry; a user's class takes `@foredraft.register("name")`.
Modules are imported when a name is used.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foredraft import embedded
from foredraft.engine.params import AUTO, BatchConfig, SamplingParams
from foredraft.errors import UserError

if TYPE_CHECKING:
    from foredraft.engine.protocols import Drafter

TARGET, CUSTOM, CONSTRAINT = "target", "custom", "constraint"


@dataclass(frozen=True)
class Entry:
    """One name.

    Attributes
    ----------
    cpu, cuda : str or type
        The Drafter, "module:Class" below this folder, on the CPU and on CUDA; "" where it does not run.
    proposer : str
        Its entry of PROPOSERS; "" where the drafters that it is made of propose.
    argument : str or None
        What may follow "name:" in a spec, as help texts show it. None: a trained kind, which is given by its folder.
    model : str
        The torch class of a trained kind.
    folder : Path or None
        Where the embedded drafter of a trained kind lies.
    """

    cpu: str | type
    cuda: str | type = ""
    proposer: str = ""
    argument: str | None = ""
    model: str = ""
    folder: Path | None = None

    @property
    def is_spec(self) -> bool:
        """Whether `load` knows the name; others are given by a folder."""
        return self.argument is not None

    @property
    def needs_argument(self) -> bool:
        return self.is_spec and self.argument.startswith(":")


# The order of the proposers is the order of their indices, of which kernels know lookup's and ngram's.
ENTRIES: dict[str, Entry] = {
    "none": Entry("none:NoDrafter", "none:NoDrafter"),
    "lookup": Entry("lookup:LookupDrafter", "cuda.lookup_cuda:LookupDrafterCuda", "lookup"),
    "lookup+history": Entry("lookup:LookupDrafter", "", "lookup"),
    "ngram": Entry("ngram:NgramDrafter", "cuda.lookup_cuda:NgramDrafterCuda", "ngram", "[:TABLE]"),
    "lookup+ngram": Entry("lookup:LookupDrafter", "cuda.lookup_cuda:LookupDrafterCuda", "lookup", "[:TABLE]"),
    "lookup+history+ngram": Entry("lookup:LookupDrafter", "", "lookup", "[:TABLE]"),
    "t5small": Entry("neural.t5_drafter:T5Drafter", "cuda.t5_drafter_cuda:T5DrafterCuda", "t5", None,
                     "neural.t5_drafter:T5Model"),
    "t5shallow": Entry("neural.t5_drafter:ShallowT5Drafter", "cuda.t5_drafter_cuda:ShallowT5DrafterCuda", "t5", None,
                       "neural.t5_drafter:ShallowT5Model"),
    "lstm": Entry("neural.lstm:LSTMDrafter", "cuda.recurrent_cuda:LSTMDrafterCuda", "lstm", "", "neural.lstm:LSTMModel",
                  embedded.LSTM),
    "cnn": Entry("neural.cnn:CNNDrafter", "cuda.recurrent_cuda:CNNDrafterCuda", "cnn", None, "neural.cnn:CNNModel"),
    "self": Entry("layer_skip:SelfDrafter", "", "self", ":SKIP"),
    "head": Entry("neural.eagle_head:EagleDrafter", "", "head", None, "neural.eagle_head:EagleModel"),
    "tree": Entry("tree:TreeDrafter", "", "", ":SHAPE:NAME"),
    "cascade": Entry("cascade:CascadeDrafter", "", "", ":A,B"),
    "staged": Entry("staged:StagedDrafter", "", "", ":A,FOLDER"),
    AUTO: Entry("auto:AutoDrafter", "cuda.lookup_cuda:LookupDrafterCuda", "", "[:FOLDER,FOLDER]"),
}
# Who proposed a token; 0 is the target itself.
PROPOSERS = [TARGET, *dict.fromkeys(entry.proposer for entry in ENTRIES.values() if entry.proposer), CUSTOM, CONSTRAINT]


def register(name: str, cuda: bool = False) -> Callable[[type], type]:
    """Give a drafter class a name for `load`, the command line and the bench.

    Parameters
    ----------
    name : str
        New, without ":". The class is made by `cls()`, or by `cls(argument)` for "name:argument"; a subclass of Drafter may
        define `create` instead.
    cuda : bool
        Whether its `draft` can be captured in a CUDA graph.

    Returns
    -------
    Callable
        A decorator that returns the class unchanged.
    """
    if not name or ":" in name or name in ENTRIES:
        raise UserError(f"drafter name {name!r} is taken or has a colon; give another one")

    def add(cls: type) -> type:
        ENTRIES[name] = Entry(cls, cls if cuda else "", name, "[:ARGUMENT]")
        PROPOSERS.append(name)
        return cls

    return add


def specs(cuda: bool = False) -> str:
    """All that `drafter` may be, for help texts and errors."""
    names = [name + entry.argument for name, entry in ENTRIES.items() if entry.is_spec and (entry.cuda or not cuda)]
    return ", ".join([*names, "FILE.py:CLASS"]) + " or the folder of a trained drafter"


def trained_kinds() -> list[str]:
    """The names that `foredraft train --drafter` knows, n-gram tables left out."""
    return [name for name, entry in ENTRIES.items() if entry.model]


def model_class(kind: str) -> type:
    """The torch class of a trained kind: from_target, forward, save and load as neural/drafter_module.py says."""
    if kind not in trained_kinds():
        raise UserError(f"drafter {kind!r} is not known; give one of {', '.join(trained_kinds())}")
    return _imported(ENTRIES[kind].model)


def kind_of(folder: str | Path) -> str:
    """The kind of the trained drafter in a folder, by the model_type in its config.json."""
    from foredraft.engine.drafters.neural.drafter_module import read_json

    found = read_json(Path(folder)).get("model_type")
    for kind in trained_kinds():
        if found == model_class(kind).model_type:
            return kind
    raise UserError(f"{folder}: model_type {found!r} is no drafter; give a T5 checkpoint or what `foredraft train` wrote")


def is_drafter(folder: str | Path) -> bool:
    """Whether a folder holds a trained drafter."""
    try:
        return bool(kind_of(folder))
    except UserError:
        return False


def open_drafter(folder: Path, weights: Any, target_folder: Path, tokenizer: Any) -> Drafter:
    """The trained drafter in a folder, for the target of these weights; it runs where the weights lie.

    Parameters
    ----------
    folder : Path
    weights : T5Weights or T5WeightsCuda
        The target's.
    target_folder : Path
    tokenizer
        The target's, or None.
    """
    from foredraft.engine.models.t5_weights import T5Weights

    kind = kind_of(folder)
    entry = ENTRIES[kind]
    if isinstance(weights, T5Weights):
        found = entry.cpu
    elif not (found := entry.cuda):
        _refuse_cuda(f"{folder} ({kind})", "cuda")
    return _imported(found).open(folder, weights, target_folder, tokenizer)


def make_drafter(spec: str | Path | Drafter | None, target: Any, target_folder: Path, tokenizer: Any,
                 device: str = "cpu") -> Drafter:
    """The drafter that a spec names.

    Parameters
    ----------
    spec : str, Path, Drafter or None
        A name with its argument (`specs`), the folder of a trained drafter, None for plain decoding, or an object with the
        methods admit, release and draft, which is adapted (custom.py).
    target : T5 or T5Cuda
    target_folder : Path
    tokenizer
        The target's, or None.
    device : str
    """
    from foredraft.engine.protocols import DrafterSetup

    def made(part: str) -> Drafter:
        return make_drafter(part, target, target_folder, tokenizer, device)

    if spec is None:
        spec = "none"
    if not isinstance(spec, str | Path):
        return _adapted(spec, target)
    name, _, argument = str(spec).partition(":")
    entry = ENTRIES.get(name)
    if entry is not None and entry.is_spec and (argument or not entry.needs_argument):
        if argument and not entry.argument:
            raise UserError(f"drafter {str(spec)!r}: {name} has no argument; leave {':' + argument!r} out")
        if device != "cpu" and not entry.cuda:
            _refuse_cuda(repr(str(spec)), device)
        if entry.folder is not None:
            return open_drafter(entry.folder, target.weights, target_folder, tokenizer)
        cls = _imported(entry.cpu if device == "cpu" else entry.cuda)
        setup = DrafterSetup(target, target_folder, tokenizer, device, made)
        return _adapted(_created(cls, name, argument, setup), target, name)
    if Path(spec).is_dir():
        return open_drafter(Path(spec), target.weights, target_folder, tokenizer)
    if name.endswith(".py") and argument:
        return _adapted(_created(_class_in_file(name, argument), argument, "", None), target)
    raise UserError(f"drafter {str(spec)!r} is not known; give {specs()}")


def check_drafter_settings(drafter: Drafter, params: SamplingParams, config: BatchConfig, on_cuda: bool) -> None:
    """Refuse what this drafter, or decoding on CUDA, cannot do (UserError)."""
    can, adapts = drafter.capabilities, params.draft_tokens == AUTO
    if on_cuda and (adapts or config.big_little is not None or config.kv_memory is not None):
        raise UserError("draft_tokens 'auto', big_little and kv_memory run on the CPU only so far; on CUDA leave them out")
    if can.tree_drafts and (adapts or config.verification == "block"):
        raise UserError(f"drafter {drafter.name!r} drafts trees, for which there is no draft_tokens 'auto' and no "
                        "verification 'block'; give draft_tokens a number of nodes, and leave verification out")
    if config.big_little is not None and not can.big_little:
        raise UserError(f"big_little needs a neural drafter, not {drafter.name!r}; give lstm, or the folder of a trained "
                        "drafter")


def _refuse_cuda(what: str, device: str) -> None:
    raise UserError(f"drafter {what} runs on the CPU only so far; on device {device!r} give {specs(cuda=True)}")


def _imported(found: str | type) -> type:
    if not isinstance(found, str):
        return found
    module, _, name = found.partition(":")
    return getattr(import_module(f"foredraft.engine.drafters.{module}"), name)


def _class_in_file(path: str, name: str) -> type:
    found = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
        return vars(module)[name]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except KeyError:
        raise UserError(f"{path}: has no class {name}") from None


def _created(cls: type, name: str, argument: str, setup: Any) -> Any:
    from foredraft.engine.protocols import Drafter

    if issubclass(cls, Drafter):
        return cls.create(name, argument, setup)
    return cls(argument) if argument else cls()


def _adapted(drafter: Any, target: Any, name: str = CUSTOM) -> Drafter:
    """The engine's own drafters as they are, others checked."""
    if type(drafter).__module__.startswith("foredraft."):
        return drafter
    from foredraft.engine.drafters.custom import CustomDrafter

    return CustomDrafter(drafter, target.config.vocab_size, PROPOSERS.index(name))
