"""A configuration as a TOML file, every key with its documentation above it."""

from __future__ import annotations

import json
import textwrap

from pydantic import BaseModel

from murmurate.peer.config import Config

WIDTH = 96


def to_toml(config: Config, comments: bool = True) -> str:
    """TOML that `config.load` reads back as an equal Config."""
    lines: list[str] = []
    _keys(config, lines, comments)
    lines += ["", *_comment(_about(config, "peers"), comments), "[peers]"]
    lines += [f"{_key(name)} = {_value(address)}" for name, address in config.peers.items()]
    for name in type(config).model_fields:
        section = getattr(config, name)
        if isinstance(section, BaseModel):
            lines += ["", *_comment((type(section).__doc__ or "").strip(), comments), f"[{name}]"]
            _keys(section, lines, comments)
    return "\n".join(lines) + "\n"


def _keys(section: BaseModel, lines: list[str], comments: bool) -> None:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if name == "peers" or isinstance(value, BaseModel):
            continue
        lines += _comment(_about(section, name), comments)
        lines.append(f"{name} = {_value(value)}")


def _about(section: BaseModel, name: str) -> str:
    return type(section).model_fields[name].description or ""


def _comment(text: str, comments: bool) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(" ".join(text.split()), WIDTH)] if comments else []


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() else json.dumps(name)


def _value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case dict():
            pairs = ", ".join(f"{_key(str(k))} = {_value(v)}" for k, v in value.items())
            return f"{{ {pairs} }}" if pairs else "{}"
        case list():
            return f"[{', '.join(_value(item) for item in value)}]"
        case int() | float():
            return repr(value)
        case _:
            raise TypeError(f"no TOML for {type(value).__name__}")
