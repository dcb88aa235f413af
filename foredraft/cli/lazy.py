"""Command groups that import a command's file when the command is used, not before."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import typer
from typer.core import TyperGroup

SETTINGS: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None, "pretty_exceptions_enable": False}


class LazyCommands(Mapping):
    """{name: command}; a command is imported on its first access.

    Parameters
    ----------
    sources : Mapping[str, tuple[str, str]]
        For each command its location, `"module:function"` or `"module:typer application"`, and its one-line help.
    """

    def __init__(self, sources: Mapping[str, tuple[str, str]]):
        self.sources = sources
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str):
        if name not in self._loaded:
            module, _, attribute = self.sources[name][0].partition(":")
            self._loaded[name] = _command(name, getattr(importlib.import_module(module), attribute))
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)


class LazyGroup(TyperGroup):
    """A group over LazyCommands; its help lists the commands without importing them."""

    sources: Mapping[str, tuple[str, str]] = {}

    def __init__(self, **attributes):
        super().__init__(**attributes)
        self.commands = LazyCommands(self.sources)

    def list_commands(self, ctx) -> list[str]:
        return list(self.sources)

    def format_commands(self, ctx, formatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.sources.items()])


def group(sources: Mapping[str, tuple[str, str]], help: str, callback: Callable | None = None) -> typer.Typer:
    """An application over `sources` (see LazyCommands). `callback` takes the group's own options.

    Options may be typed with dashes or underscores: `--kd-temp`, `--kd_temp`.
    """
    app = typer.Typer(
        cls=type("Group", (LazyGroup,), {"sources": sources}), help=help, no_args_is_help=True,
        context_settings={"token_normalize_func": lambda word: word.replace("_", "-"), "max_content_width": 100}, **SETTINGS)
    app.callback(help=help)(callback or (lambda: None))
    return app


def _command(name: str, found: Callable | typer.Typer):
    """The command of a function or of an application."""
    app = found
    if not isinstance(found, typer.Typer):
        app = typer.Typer(**SETTINGS)
        app.command(name)(found)
    command = typer.main.get_command(app)
    command.name = name
    return command
