"""A story for audits: what peer "a" did for some rounds among b, c and d, and what b finds when it recomputes that."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from murmurate.peer.config import Config, parse
from murmurate.peer.learning.audits import AuditedTrainer
from murmurate.peer.learning.make import make_trainer
from murmurate.peer.protocol.events import Examine, Examined, Mix, Mixed, PeerId, Source, Trained, Turn

NAMES = "abcd"
WEIGHT = 1 / len(NAMES)


def config_of(me: str, **tables: Any) -> Config:
    tables["local"] = {"steps": 3, "batch_size": 16, **tables.get("local", {})}
    tables["audit"] = {"rate": 1.0, **tables.get("audit", {})}
    tables["rounds"] = {"eval_every": 0}
    return parse({"name": me, "peers": dict.fromkeys(NAMES, "localhost:0"), **tables})


def trainer_of(me: str, **tables: Any) -> AuditedTrainer:
    trainer = make_trainer(config_of(me, **tables), degree_min=3)
    assert isinstance(trainer, AuditedTrainer)
    return trainer


def digest(data: Any) -> bytes:
    return hashlib.sha256(data).digest()


def mix_of(round: int, inbox: Mapping[PeerId, bytes], weight: float = WEIGHT) -> Mix:
    """A mix of models of this round, each of its sender's first life."""
    return Mix(
        Turn(round),
        inbox,
        dict.fromkeys(inbox, weight),
        sources=dict(zip(inbox, sources_of(round, inbox), strict=True)),
    )


def sources_of(round: int, inbox: Mapping[PeerId, bytes]) -> tuple[Source, ...]:
    return tuple(Source(peer, 1, round) for peer in inbox)


Meddle = Callable[[AuditedTrainer], object]


@dataclass
class Story:
    """What peer "a" did, and what the others sent it; "b" audits."""

    witness: AuditedTrainer
    auditor: AuditedTrainer
    others: Mapping[str, AuditedTrainer]
    trained: list[Trained]
    inboxes: list[dict[PeerId, bytes]]
    mixed: list[Mixed]

    @classmethod
    def of(
        cls, rounds: int = 2, meddle: Meddle | None = None, liar: dict[str, Any] | None = None, **tables: Any
    ) -> Story:
        """So many rounds; `meddle` changes "a" after the last mix, `liar` is its attack."""
        witness = trainer_of("a", **tables, **({"attack": liar} if liar else {}))
        others = {name: trainer_of(name, **tables) for name in "bcd"}
        story = cls(witness, others["b"], others, [], [], [])
        for round in range(1, rounds + 1):
            story.do_round(round, meddle if round == rounds - 1 else None)
        return story

    def do_round(self, round: int, meddle: Meddle | None = None) -> None:
        trained = self.witness.train(round)
        inbox = {PeerId(name): bytes(other.train(round).payload) for name, other in self.others.items()}
        self.trained.append(trained)
        self.inboxes.append(inbox)
        self.mixed.append(self.witness.mix(mix_of(round, inbox)))
        payloads = {PeerId("a"): bytes(trained.payload), **inbox}
        for name, other in self.others.items():
            rest = {peer: payload for peer, payload in payloads.items() if peer != name}
            other.mix(mix_of(round, rest))
        if meddle is not None:
            meddle(self.witness)

    def inbox(self) -> dict[PeerId, bytes]:
        """What was mixed in the round before the last."""
        return self.inboxes[len(self.trained) - 2]

    def parts(self) -> list[bytes]:
        """The evidence of the last round."""
        before, last = self.trained[-2:]
        assert before.proof is not None
        assert last.proof is not None
        inbox = {} if last.proof.undone else self.inbox()
        return [before.proof.start, bytes(before.payload), *inbox.values(), last.proof.start]

    def examine(self, parts: list[bytes] | None = None, **changes: Any) -> Examined:
        """What "b" finds."""
        before, last = self.trained[-2:]
        assert last.proof is not None
        inbox = {} if last.proof.undone else self.inbox()
        effect = Examine(
            peer=PeerId("a"),
            round=last.round,
            payload=last.payload,
            before=before.round,
            sent=digest(before.payload),
            weights=dict.fromkeys(inbox, WEIGHT),
            heard={peer: digest(payload) for peer, payload in inbox.items()},
            sources=sources_of(before.round, inbox),
            evidence=bytearray(b"".join(parts or self.parts())),
        )
        return self.auditor.examine(replace(effect, **changes))
