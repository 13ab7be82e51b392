"""Reading `task.options`: known names, the types of the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from murmurate.peer import config
from murmurate.peer.errors import ConfigError


def read_options(task: config.Task, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`defaults` overridden by the configuration. Raises ConfigError for an unknown name or a value of another type."""
    for key, value in task.options.items():
        if key not in defaults:
            raise ConfigError(f"task.options.{key}: {task.name} has no such option; it has {', '.join(defaults)}")
        right = type(defaults[key])
        if type(value) is not right and not (right is float and type(value) is int):
            raise ConfigError(
                f"task.options.{key} = {value!r}: should be of type {right.__name__}, as {defaults[key]!r}"
            )
    return {key: type(value)(task.options.get(key, value)) for key, value in defaults.items()}


def at_least(task: config.Task, key: str, value: float, least: float) -> None:
    """Raises ConfigError when a numeric option is too small."""
    if value < least:
        raise ConfigError(f"task.options.{key} = {value}: should be at least {least} for {task.name}")
