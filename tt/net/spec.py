"""`--net` as it is typed: an end, and after commas the card and what the cable does.

none | user | stream:unix:PATH | stream:HOST:PORT | pcap:FILE
    ,listen                 (stream) wait for a peer instead of connecting
    ,at=5s                  (pcap) guest time of the first frame that is played
    ,forward=[tcp:|udp:][ADDRESS:]HOST_PORT-GUEST_PORT      (user), may be repeated
    ,model=NAME  ,mac=52:54:00:12:34:56                     the card
    ,latency=10ms  ,rate=100mbit                            of guest time, each way
    ,loss=1%  ,duplicate=0.5%  ,reorder=2%  ,corrupt=0.1%  ,seed=N
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

from tt.errors import UsageError
from tt.net.capture import Player, Writer, read_capture
from tt.net.ends import End, Nothing, Silence
from tt.net.link import Conditions
from tt.net.network import Cable, Network
from tt.net.passt import Forward, Passt, parse_forward
from tt.net.stream import open_stream
from tt.vmm.config import NET_MODELS, NetConfig, check_mac, default_mac

_TIMES = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
_RATES = {"bit": 1, "kbit": 1_000, "mbit": 1_000_000, "gbit": 1_000_000_000}
_CHANCES = ("loss", "duplicate", "reorder", "corrupt")
_KINDS = "none, user, stream:unix:PATH, stream:HOST:PORT or pcap:FILE"


@dataclass(frozen=True)
class NetSpec:
    """One `--net`: `kind` and `where` are the end, `model` and `mac` the card (empty: the usual ones)."""

    kind: str
    where: str = ""
    listen: bool = False
    at_ns: int | None = None
    forwards: tuple[Forward, ...] = ()
    model: str = ""
    mac: str = ""
    conditions: Conditions = Conditions()

    @property
    def has_host(self) -> bool:
        """Whether something of the host's is there, whose time does not wait for the guest's."""
        return self.kind in ("user", "stream")

    def __str__(self) -> str:
        """Return it as it may be typed, without the card."""
        words = [f"{self.kind}:{self.where}" if self.where else self.kind]
        words += ["listen"] * self.listen
        if self.at_ns is not None:
            words.append(f"at={self.at_ns}ns")
        words += [f"forward={forward}" for forward in self.forwards]
        c = self.conditions
        if c.latency_ns:
            words.append(f"latency={c.latency_ns}ns")
        if c.bits_per_s:
            words.append(f"rate={c.bits_per_s}bit")
        words += [f"{name}={chance:.12g}" for name in _CHANCES if (chance := getattr(c, name))]
        if not c.perfect:
            words += [f"seed={c.seed}"] * bool(c.seed)
        return ",".join(words)


def parse_net(text: str) -> NetSpec:
    """Return what one `--net` says; raises `UsageError`."""
    end, *options = text.split(",")
    kind, _, where = end.partition(":")
    if kind not in ("none", "user", "stream", "pcap") or bool(where) != (kind in ("stream", "pcap")):
        raise UsageError(f"--net {text}: {end!r} is no network: give {_KINDS}")
    spec = NetSpec(kind, where)
    for option in options:
        name, equals, value = option.partition("=")
        if name == "listen" and not equals and kind == "stream":
            spec = replace(spec, listen=True)
        elif name == "at" and value and kind == "pcap":
            spec = replace(spec, at_ns=_amount(f"--net {text}: {option}", value, _TIMES, "10ms"))
        elif name == "forward" and value and kind == "user":
            spec = replace(spec, forwards=(*spec.forwards, parse_forward(value)))
        elif name == "model" and value:
            spec = replace(spec, model=value)
        elif name == "mac" and value:
            spec = replace(spec, mac=check_mac(value))
        elif name in (*_CHANCES, "latency", "rate", "seed") and value:
            spec = replace(spec, conditions=_with(spec.conditions, name, value, text))
        else:
            raise UsageError(f"--net {text}: {option!r} is no option of {kind!r} (see tt record --help)")
    return spec


def parse_cable(text: str) -> Conditions:
    """Return what `latency=1ms,loss=1%` says of a cable; raises `UsageError`."""
    conditions = Conditions()
    for option in text.split(","):
        name, _, value = option.partition("=")
        if name not in (*_CHANCES, "latency", "rate", "seed") or not value:
            raise UsageError(
                f"--cable {text}: {option!r} is nothing that a cable has: give latency=1ms, rate=100mbit, "
                "loss=1%, duplicate=1%, reorder=1%, corrupt=1% or seed=N"
            )
        conditions = _with(conditions, name, value, text, "--cable")
    return conditions


def parse_time(option: str, text: str) -> int:
    """Return ns from `30s` or `100us`; raises `UsageError` that names `option`."""
    return _amount(f"{option} {text}", text, _TIMES, "10ms")


def add_forwards(nets: Sequence[NetSpec], forwards: Sequence[str]) -> list[NetSpec]:
    """Return `nets` with `--forward`s given to the first user network; without one, it is added."""
    found = list(nets)
    if not forwards:
        return found
    at = next((i for i, net in enumerate(found) if net.kind == "user"), None)
    if at is None:
        if found:
            raise UsageError("--forward needs a network to the host: add --net user")
        found, at = [NetSpec("user")], 0
    wanted = (*found[at].forwards, *map(parse_forward, forwards))
    found[at] = replace(found[at], forwards=wanted)
    return found


def cards(nets: Sequence[NetSpec], machine: str, number: int = 0) -> tuple[NetConfig, ...]:
    """Return the network cards of machine `number`, of the kind `machine`; raises `UsageError`."""
    models = NET_MODELS.get(machine, ())
    if nets and not models:
        raise UsageError(f"a {machine} machine has no network card")
    found = []
    for card, net in enumerate(nets):
        model = net.model or models[0]
        if model not in models:
            raise UsageError(f"--net: a {machine} machine has no card {model!r}: give {', '.join(models)}")
        found.append(NetConfig(model, net.mac or default_mac(card, number)))
    return tuple(found)


def connect(
    nets: Sequence[NetSpec], say: Callable[[str], None] = lambda line: None, epoch: int = 0
) -> Network:
    """Open all ends; raises `TTError`, having closed those that were open.

    `say` is told what happens to them later, in lines; `epoch` is the guest's wall clock at power-on.
    """
    cables: list[Cable] = []
    try:
        for card, net in enumerate(nets):
            cables.append(Cable(_open(net, card, say, epoch), net.conditions))
    except BaseException:
        for cable in cables:
            cable.end.close()
        raise
    return Network(cables)


def _open(net: NetSpec, card: int, say: Callable[[str], None], epoch: int) -> End:
    match net.kind:
        case "user":
            return Passt(net.forwards, say, card)
        case "stream":
            return open_stream(net.where, listen=net.listen, say=say)
        case "pcap":
            path = Path(net.where)
            if path.exists():
                return Player(f"pcap:{path}", read_capture(path), net.at_ns)
            return Writer(path, epoch=epoch, say=say)
        case "off":
            return Silence()
    return Nothing()


def _with(conditions: Conditions, name: str, value: str, text: str, verb: str = "--net") -> Conditions:
    if name in _CHANCES:
        found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)(%?)", value)
        chance = float(found[1]) / (100 if found[2] else 1) if found else 2.0
        if not 0 <= chance <= 1:
            raise UsageError(f"{verb} {text}: {name}={value}: give a share, 1% or 0.01")
        chances = {each: getattr(conditions, each) for each in _CHANCES} | {name: chance}
        return replace(conditions, **chances)
    if name == "seed":
        if not value.isdigit():
            raise UsageError(f"{verb} {text}: seed={value}: give a whole number")
        return replace(conditions, seed=int(value))
    if name == "latency":
        return replace(
            conditions, latency_ns=_amount(f"{verb} {text}: {name}={value}", value, _TIMES, "10ms")
        )
    return replace(conditions, bits_per_s=_amount(f"{verb} {text}: {name}={value}", value, _RATES, "100mbit"))


def _amount(where: str, value: str, units: dict[str, int], example: str) -> int:
    """Return what `value` says in the smallest of `units`; raises `UsageError` that begins with `where`."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,12})?)([a-z]+)", value.lower())
    if found is None or found[2] not in units:
        raise UsageError(f"{where}: give {example} (units: {', '.join(units)})")
    amount = int(Decimal(found[1]) * units[found[2]])
    if amount >= 1 << 62:
        raise UsageError(f"{where} is more than there can be")
    return amount
