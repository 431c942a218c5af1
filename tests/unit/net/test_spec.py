"""`--net` as it is typed."""

from __future__ import annotations

import pytest

from tt.errors import UsageError
from tt.net.link import Conditions
from tt.net.passt import Forward, parse_forward
from tt.net.spec import NetSpec, add_forwards, cards, connect, parse_cable, parse_net, parse_time


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("none", NetSpec("none")),
        ("user", NetSpec("user")),
        ("stream:unix:/tmp/a,listen", NetSpec("stream", "unix:/tmp/a", listen=True)),
        ("stream:[::1]:99", NetSpec("stream", "[::1]:99")),
        ("pcap:a.pcap,at=1.5s", NetSpec("pcap", "a.pcap", at_ns=1_500_000_000)),
        ("user,model=virtio,mac=52:54:00:AB:cd:01", NetSpec("user", model="virtio", mac="52:54:00:ab:cd:01")),
        (
            "user,forward=8080-80,forward=udp:0.0.0.0:53-5353",
            NetSpec(
                "user", forwards=(Forward("tcp", "127.0.0.1", 8080, 80), Forward("udp", "0.0.0.0", 53, 5353))
            ),
        ),
        (
            "none,latency=0.1us,rate=2.5mbit,loss=1%,duplicate=.5,reorder=2.5%,corrupt=1,seed=12",
            NetSpec("none", conditions=Conditions(100, 2_500_000, 0.01, 0.5, 0.025, 1.0, 12)),
        ),
    ],
)
def test_what_is_typed(text: str, spec: NetSpec) -> None:
    found = parse_net(text)
    assert found == spec
    again = parse_net(str(found))  # the words of a trace may be typed again
    assert (again.kind, again.where, again.listen, again.at_ns) == (
        spec.kind,
        spec.where,
        spec.listen,
        spec.at_ns,
    )
    assert (again.forwards, again.conditions) == (spec.forwards, spec.conditions)


NO_NETWORK = "is no network: give none, user, stream:unix:PATH, stream:HOST:PORT or pcap:FILE"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", f"--net : '' {NO_NETWORK}"),
        ("tap0", f"--net tap0: 'tap0' {NO_NETWORK}"),
        ("off", f"--net off: 'off' {NO_NETWORK}"),
        ("user:x", f"--net user:x: 'user:x' {NO_NETWORK}"),
        ("pcap", f"--net pcap: 'pcap' {NO_NETWORK}"),
        ("stream:,listen", f"--net stream:,listen: 'stream:' {NO_NETWORK}"),
        ("user,listen", "--net user,listen: 'listen' is no option of 'user' (see tt record --help)"),
        ("stream:a:1,listen=1", "'listen=1' is no option of 'stream'"),
        ("none,forward=1-2", "'forward=1-2' is no option of 'none'"),
        ("user,at=1s", "'at=1s' is no option of 'user'"),
        ("user,speed=1", "'speed=1' is no option of 'user'"),
        ("user,", "'' is no option of 'user'"),
        ("user,mac=", "'mac=' is no option of 'user'"),
        ("user,mac=1", "'1' is not the address of a network card: give six bytes, 52:54:00:12:34:56"),
        ("user,mac=01:00:00:00:00:01", "no card can have the address 01:00:00:00:00:01"),
        ("user,forward=x", "cannot forward 'x': give HOST_PORT:GUEST_PORT, or tcp:127.0.0.1:8080-80"),
        ("none,latency=5", "--net none,latency=5: latency=5: give 10ms (units: ns, us, ms, s)"),
        ("none,latency=-5ms", "latency=-5ms: give 10ms"),
        ("none,latency=999999999999999s", "latency=999999999999999s is more than there can be"),
        ("none,rate=1mb", "rate=1mb: give 100mbit (units: bit, kbit, mbit, gbit)"),
        ("none,loss=101%", "loss=101%: give a share, 1% or 0.01"),
        ("none,loss=-1", "loss=-1: give a share"),
        ("none,corrupt=nan", "corrupt=nan: give a share"),
        ("none,seed=x", "seed=x: give a whole number"),
        ("pcap:a,at=soon", "at=soon: give 10ms"),
    ],
)
def test_what_is_refused(text: str, why: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_net(text)
    assert why in str(error.value) and "\n" not in str(error.value)


def test_cables_and_times() -> None:
    assert parse_cable("latency=1ms,loss=2%,seed=3") == Conditions(latency_ns=1_000_000, loss=0.02, seed=3)
    for text, why in (("", "'' is nothing that a cable has"), ("mtu=9", "--cable mtu=9: 'mtu=9' is nothing")):
        with pytest.raises(UsageError, match=why):
            parse_cable(text)
    with pytest.raises(UsageError, match=r"--cable loss=7: loss=7: give a share"):
        parse_cable("loss=7")
    assert parse_time("--max-time", "30s") == 30_000_000_000
    with pytest.raises(UsageError, match=r"--max-time 30: give 10ms"):
        parse_time("--max-time", "30")


@pytest.mark.parametrize(
    ("text", "forward"),
    [
        ("8080:80", Forward("tcp", "127.0.0.1", 8080, 80)),
        ("8080-80", Forward("tcp", "127.0.0.1", 8080, 80)),
        ("udp:53-53", Forward("udp", "127.0.0.1", 53, 53)),
        ("0.0.0.0:1-2", Forward("tcp", "0.0.0.0", 1, 2)),
        ("tcp:127.0.0.2:65535-1", Forward("tcp", "127.0.0.2", 65535, 1)),
    ],
)
def test_forwards(text: str, forward: Forward) -> None:
    assert parse_forward(text) == forward == parse_forward(str(forward))


@pytest.mark.parametrize(
    "text", ["", "80", "0:80", "80:0", "65536:1", "a:b", "sctp:1-2", "1:2:3:4", "::1:1-2"]
)
def test_forwards_that_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="cannot forward"):
        parse_forward(text)


def test_forwards_of_ipv6_are_refused() -> None:
    with pytest.raises(UsageError, match=r"cannot forward 'tcp:\[::1\]:80-80': --net user has IPv4 only"):
        parse_forward("tcp:[::1]:80-80")


def test_forwards_belong_to_the_first_user_network() -> None:
    assert add_forwards([], []) == []
    [added] = add_forwards([], ["1:2"])
    assert added.kind == "user" and added.forwards == (Forward("tcp", "127.0.0.1", 1, 2),)
    first, second, third = add_forwards([NetSpec("none"), NetSpec("user"), NetSpec("user")], ["1:2"])
    assert (first.forwards, len(second.forwards), third.forwards) == ((), 1, ())
    with pytest.raises(UsageError, match="--forward needs a network to the host: add --net user"):
        add_forwards([NetSpec("none")], ["1:2"])


def test_cards_have_addresses_of_their_own() -> None:
    nets = [NetSpec("none"), NetSpec("none", mac="52:54:00:12:34:56")]
    assert [card.mac for card in cards(nets, "pc")] == ["52:54:00:74:00:00", "52:54:00:12:34:56"]
    addresses = {card.mac for machine in range(4) for card in cards([NetSpec("none")] * 3, "denali", machine)}
    assert len(addresses) == 12
    assert cards([NetSpec("none", model="classic")], "denali")[0].model == "classic"
    with pytest.raises(UsageError, match="a pc machine has no card 'token-ring': give virtio"):
        cards([NetSpec("none", model="token-ring")], "pc")
    with pytest.raises(UsageError, match="an? abacus machine has no network card"):
        cards([NetSpec("none")], "abacus")


def test_what_is_open_is_closed_when_another_cannot_be(tmp_path: object) -> None:
    path = f"{tmp_path}/a"
    with pytest.raises(UsageError, match=r"give stream:HOST:PORT or stream:unix:PATH"):
        connect([parse_net(f"stream:unix:{path},listen"), parse_net("stream:nowhere")])
    connect([parse_net(f"stream:unix:{path},listen")]).close()  # nobody is there any more
