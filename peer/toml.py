"""A configuration as a TOML file, every key with its documentation above it."""

from __future__ import annotations

import json
import re
import textwrap

from pydantic import BaseModel

from murmurate.peer.config import Config

WIDTH = 96

REFERENCE = """# Configuration

One TOML file per peer, or one for all of them and `--name` to say who reads it: `murmurate run swarm.toml --name b`.
`murmurate init` writes the file, `murmurate config` prints what it comes to, with the defaults filled in.

* Only `name` and `[peers]` are required. Below are all keys with their defaults; what is left out has its default.
* A relative path counts from the file's folder, and `~` is your home.
* All peers of a swarm must agree on everything that says so below; a peer that does not is refused, and told the first
  value that differs.
* An unknown key or an impossible value is an error that names it: nothing is guessed, nothing ignored.

```toml
{}```
"""


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


def reference() -> str:
    """docs/configuration.md."""
    return REFERENCE.format(to_toml(Config(name="a", peers={"a": "192.168.1.5:7000", "b": "192.168.1.6:7000"})))


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
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else _text(name)


def _text(text: str) -> str:
    # JSON's escapes are TOML's, but TOML knows no surrogate pairs, and wants DEL escaped as well.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return _text(value)
        case dict():
            pairs = ", ".join(f"{_key(str(k))} = {_value(v)}" for k, v in value.items())
            return f"{{ {pairs} }}" if pairs else "{}"
        case list():
            return f"[{', '.join(_value(item) for item in value)}]"
        case int() | float():
            return repr(value)
        case _:
            raise TypeError(f"no TOML for {type(value).__name__}")
