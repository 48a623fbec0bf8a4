"""Patterns of hosts: one way to write each, and no way to widen one."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.proto.egress import covers, is_literal, is_public, matches, normalise, normalise_host

LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,5}[a-z0-9])?", fullmatch=True)
NAMES = st.builds(
    lambda labels, top: ".".join([*labels, top]),
    st.lists(LABELS, min_size=1, max_size=4),
    st.sampled_from(["org", "net"]),
)
PORTS = st.sampled_from([80, 443, 8443, 65535])
PATTERNS = st.one_of(
    st.just("*"),
    st.builds(lambda port: f"*:{port}", PORTS),
    st.builds(lambda name, port: f"{name}:{port}", NAMES, PORTS),
    st.builds(lambda name, port: f"*.{name}:{port}", NAMES, PORTS),
    st.sampled_from(["8.8.8.8:443", "[2606:4700::1111]:443"]),
)


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("Host.example:443", "host.example:443"),
        ("*.Example.org", "*.example.org:443"),
        ("example.org.", "example.org:443"),
        ("example.org:80", "example.org:80"),
        ("bücher.example", "xn--bcher-kva.example:443"),
        ("BÜCHER.example:8443", "xn--bcher-kva.example:8443"),
        ("a_b.s3.example.org", "a_b.s3.example.org:443"),
        ("8.8.8.8", "8.8.8.8:443"),
        ("[2606:4700:0::1111]", "[2606:4700::1111]:443"),
        ("[2606:4700:0::1111]:80", "[2606:4700::1111]:80"),
        ("*", "*"),
        ("*:443", "*:443"),
    ],
)
def test_a_pattern_has_one_way_to_be_written(written: str, normal: str) -> None:
    assert normalise(written) == normal
    assert normalise(normal) == normal


@pytest.mark.parametrize(
    "written",
    [
        "",
        ":443",
        "localhost",
        "intranet:80",
        "example..org",
        ".example.org",
        "-a.example.org",
        "a-.example.org",
        "*.*.example.org",
        "a.*.org",
        "*example.org",
        "**",
        "example.org:",
        "example.org:0",
        "example.org:00443",
        "example.org:65536",
        "example.org:٤٤٣",
        "example.org:+443",
        "https://example.org",
        "example.org/path",
        "user@example.org",
        "exa mple.org",
        "example.org\r\n",
        "example.org\x00",
        "127.0.0.1",
        "10.0.0.1:80",
        "169.254.169.254:80",
        "192.168.1.1",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.0.0.1",
        "0x7f000001",
        "017700000001",
        "8.8.8.8.8",
        "08.8.8.8",
        "a.0x7f",
        "*.8.8.8.8",
        "8.8.8.*",
        "2606:4700::1111",
        "[2606:4700::1111",
        "[::1]:443",
        "[::ffff:8.8.8.8]",
        "[64:ff9b::808:808]",
        "[2002:808:808::1]",
        "[fe80::1%eth0]",
        "[2606:4700::1111%1]",
        "[8.8.8.8]",
        "[]",
        "a." * 130 + "org",
        "a" * 64 + ".org",
        "\uff11\uff12\uff17.0.0.1",
        "\u2460\u2461\u2466.0.0.1",
    ],
)
def test_what_is_no_pattern_is_refused_in_words(written: str) -> None:
    with pytest.raises(ValueError, match=r"[a-z]"):
        normalise(written)
    assert not covers(["*"], written)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("193.0.0.1", True),
        ("2606:4700::1111", True),
        ("2a00:1450::1", True),
        *[
            (address, False)
            for address in (
                "127.0.0.1",
                "10.1.2.3",
                "172.16.0.1",
                "192.168.0.1",
                "169.254.169.254",
                "100.64.0.1",
                "100.100.100.200",
                "0.0.0.0",
                "0.1.2.3",
                "192.0.0.170",
                "192.0.2.1",
                "192.88.99.1",
                "198.18.0.1",
                "198.51.100.1",
                "203.0.113.1",
                "224.0.0.1",
                "239.255.255.255",
                "240.0.0.1",
                "255.255.255.255",
                "::",
                "::1",
                "::8.8.8.8",
                "::ffff:8.8.8.8",
                "::ffff:127.0.0.1",
                "64:ff9b::7f00:1",
                "64:ff9b:1::1",
                "100::1",
                "2001::1",
                "2001:db8::1",
                "2002:7f00:1::",
                "3fff::1",
                "5f00::1",
                "fc00::1",
                "fd00:ec2::254",
                "fe80::1",
                "fec0::1",
                "ff02::1",
                "ff0e::1",
                "2606:4700::1111%eth0",
            )
        ],
    ],
)
def test_only_plain_addresses_of_the_public_internet_are_public(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


@pytest.mark.parametrize(
    ("allowed", "wanted", "covered"),
    [
        ("*.example.org", "a.example.org", True),
        ("*.example.org", "a.b.example.org", True),
        ("*.example.org", "*.b.example.org", True),
        ("*.example.org", "*.example.org", True),
        ("*.example.org", "example.org", False),
        ("*.example.org", "badexample.org", False),
        ("*.example.org", "*.org", False),
        ("*.b.example.org", "*.example.org", False),
        ("a.example.org", "*.example.org", False),
        ("a.example.org", "a.example.org:80", False),
        ("*:443", "a.example.org", True),
        ("*:443", "*.example.org", True),
        ("*:443", "a.example.org:80", False),
        ("*:443", "*", False),
        ("*", "*", True),
        ("*", "*:80", True),
        ("*", "8.8.8.8:53", True),
        ("*.8", "8.8.8.8", False),
        ("rubbish", "rubbish", False),
    ],
)
def test_a_pattern_covers_what_lies_within_it(allowed: str, wanted: str, covered: bool) -> None:
    assert covers([allowed], wanted) is covered


def test_no_patterns_cover_nothing() -> None:
    assert not covers([], "*")
    assert not covers([], "example.org")


@pytest.mark.parametrize("host", ["*", "*.example.org", "a.*", "*:443"])
def test_a_pattern_is_no_host(host: str) -> None:
    assert not matches(["*", "*.example.org"], host, 443)


@given(PATTERNS, PATTERNS, NAMES, PORTS)
def test_a_covered_pattern_never_opens_more(outer: str, inner: str, name: str, port: int) -> None:
    if covers([outer], inner) and matches([inner], name, port):
        assert matches([outer], name, port)


@given(NAMES, PORTS, LABELS)
def test_a_wildcard_opens_what_it_names_and_no_neighbour(name: str, port: int, label: str) -> None:
    pattern = f"*.{name}:{port}"
    assert matches([pattern], f"{label}.{name}", port)
    assert not matches([pattern], name, port)
    assert not matches([pattern], f"{label}{name}", port)
    assert not matches([pattern], f"{label}.{name}.{label}x", port)
    assert not matches([pattern], f"{label}.{name}", port - 1)


@given(PATTERNS, PATTERNS, PATTERNS)
def test_covering_is_an_order(first: str, second: str, third: str) -> None:
    assert covers([first], first)
    if covers([first], second) and covers([second], third):
        assert covers([first], third)
    if covers([first], second) and covers([second], first):
        assert first == second


@given(st.text(max_size=80))
def test_any_text_is_a_pattern_or_refused(text: str) -> None:
    try:
        normal = normalise(text)
    except ValueError:
        return
    assert normalise(normal) == normal
    assert normal.isascii()
    assert not set(normal) & set("\r\n\t /@\\%?#")


@given(st.text(alphabet="0123456789abcdefx.:[]%", max_size=40))
def test_a_host_that_a_c_library_would_read_as_an_address_is_a_public_one_or_refused(text: str) -> None:
    try:
        host = normalise_host(text)
    except ValueError:
        return
    if is_literal(host):
        assert is_public(ipaddress.ip_address(host.strip("[]")))
    else:
        assert not host.rpartition(".")[2].removeprefix("0x").isdigit()
