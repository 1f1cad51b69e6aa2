"""What the rendered bytes are, that they are always the same, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from distsec.beam import aflags, render
from distsec.beam.erlang_text import ExternalFunction, Symbol, Term, erlang_atom, erlang_term
from distsec.beam.tls_options import CIPHER_SUITES, Role, refuse_illegal, tls_options
from distsec.errors import ConfigError
from distsec.model.cluster import Carrier, Epmd
from distsec.model.cookies import Cookies, CookieSet
from distsec.model.names import NodeName
from distsec.model.policy import Phase, Policy, PolicyPeer, PolicyRule
from distsec.model.secret import Secret

NODE = NodeName.parse("poller@127.0.0.1")
POLICY = Policy(
    cluster="demo",
    generation=7,
    issued_at=1763764000,
    peers=(
        PolicyPeer("agent@127.0.0.1", "spiffe://demo/node/127.0.0.1/agent", Phase.OPEN, "127.0.0.1", 9101),
        PolicyPeer("far@h", "spiffe://demo/node/h/far", Phase.PREPARED),
    ),
    rules=(PolicyRule("cli-*@127.0.0.1", "spiffe://demo/cli/*"),),
    denied=frozenset({"y@h", "x@h"}),
    revoked=frozenset({"0a1b", "00ff"}),
)


def sign(body: bytes) -> bytes:
    """Stands in for a signature: depends on every byte."""
    return hashlib.sha512(body).digest()


def guard(**changes: object) -> bytes:
    fields: dict[str, object] = {
        "cluster": "demo",
        "node": NODE,
        "carrier": Carrier.DISTSEC,
        "directory": "/state/nodes/poller",
        "address": "127.0.0.1",
        "port": 9100,
        "policy_key": b"\0" * 32,
        "optfile": b"[].",
    }
    return render.guard_file(**{**fields, **changes})  # type: ignore[arg-type]


def flags(**changes: object) -> str:
    fields: dict[str, object] = {
        "node": NODE,
        "carrier": Carrier.DISTSEC,
        "directory": "/state/nodes/poller",
        "ebin": "/lib/ebin",
        "address": "127.0.0.1",
        "port": 9100,
    }
    return aflags.erl_aflags(**{**fields, **changes})  # type: ignore[arg-type]


# ---- terms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("term", "text"),
    [
        (None, "undefined"),
        (True, "true"),
        (-(2**70), str(-(2**70))),
        (b"", '<<"">>'),
        (b'a"b\\c', r'<<"a\x{22}b\x{5c}c">>'),
        ("é'", r'"\x{c3}\x{a9}' + "'\""),
        (Symbol("ok"), "ok"),
        (Symbol("tlsv1.3"), "'tlsv1.3'"),
        (Symbol("maybe"), "'maybe'"),
        (Symbol("it's"), r"'it\x{27}s'"),
        ((1, [b"x", ()]), '{1,[<<"x">>,{}]}'),
        ({Symbol("b"): 1, b"a": None}, '#{b => 1,<<"a">> => undefined}'),
        (ExternalFunction("m", "f", 3), "fun m:f/3"),
    ],
)
def test_writes_a_term(term: Term, text: str) -> None:
    assert erlang_term(term) == text


@given(st.binary())
def test_a_binary_is_printable_ascii_on_one_line_whatever_its_bytes(octets: bytes) -> None:
    text = render.erlang_binary(octets)
    assert all(" " <= character <= "~" for character in text)
    inner = re.sub(
        r"\\x\{(..)\}", lambda match: chr(int(match[1], 16)), text.removeprefix('<<"').removesuffix('">>')
    )
    assert inner.encode("latin-1") == octets


def test_refuses_what_is_no_term() -> None:
    with pytest.raises(TypeError, match="float"):
        erlang_term(1.5)  # type: ignore[arg-type]
    for name in ("", "ä", "x" * 256):
        with pytest.raises(ValueError, match="atom"):
            erlang_atom(name)


# ---- policy ------------------------------------------------------------------------------------------------


def test_the_policy_document_is_exactly_this() -> None:
    document = render.policy_document(POLICY, lambda body: b"signature")
    assert document.decode("ascii") == (
        '%% The policy of cluster <<"demo">>, generation 7, issued 2025-11-21T22:26:40Z.\n'
        "%% Written and signed by distsec. Nodes refuse it if a byte differs: use distsec allow and deny.\n"
        "{distsec_policy, #{version => 1,\n"
        '  cluster => <<"demo">>,\n'
        "  generation => 7,\n"
        "  issued_at => 1763764000,\n"
        "  connect => mesh,\n"
        "  require_identity => true,\n"
        "  peers => [\n"
        '    #{name => <<"agent@127.0.0.1">>,identity => <<"spiffe://demo/node/127.0.0.1/agent">>,'
        'phase => open,address => <<"127.0.0.1">>,port => 9101},\n'
        '    #{name => <<"far@h">>,identity => <<"spiffe://demo/node/h/far">>,'
        "phase => prepared,address => undefined,port => undefined}],\n"
        "  rules => [\n"
        '    #{pattern => <<"cli-*@127.0.0.1">>,identity => <<"spiffe://demo/cli/*">>,max_live => 8,'
        "nodes => []}],\n"
        '  denied => [\n    <<"x@h">>,\n    <<"y@h">>],\n'
        '  revoked => [\n    <<"00ff">>,\n    <<"0a1b">>]}}.\n'
        '{signature, <<"c2lnbmF0dXJl">>}.\n'
    )


def test_a_policy_that_revokes_identities_is_of_a_version_that_older_nodes_refuse() -> None:
    policy = replace(POLICY, revoked_identities=frozenset({"spiffe://demo/x", "dns:h.example"}))
    document = render.policy_document(policy, lambda body: b"signature").decode("ascii")
    assert "{distsec_policy, #{version => 2,\n" in document
    assert '  revoked_identities => [\n    <<"dns:h.example">>,\n    <<"spiffe://demo/x">>]}}.\n' in document


def test_the_signature_covers_every_byte_before_its_line() -> None:
    key = Ed25519PrivateKey.generate()
    document = render.policy_document(POLICY, key.sign)
    body, separator, rest = document.partition(b"\n{signature, ")
    [encoded] = re.fullmatch(rb'<<"([A-Za-z0-9+/=]+)">>}\.\n', rest).groups()  # type: ignore[union-attr]
    key.public_key().verify(base64.b64decode(encoded), body + b"\n")
    assert separator


def test_equal_policies_give_equal_bytes_in_whatever_order_their_sets_were_made() -> None:
    names = [f"n{number}@h" for number in range(50)]
    one = replace(POLICY, denied=frozenset(names))
    other = replace(POLICY, denied=frozenset(reversed(names)))
    assert render.policy_document(one, sign) == render.policy_document(other, sign)


def test_a_hostile_cluster_name_stays_inside_its_comment() -> None:
    document = render.policy_document(replace(POLICY, cluster="x\n{evil, 1}."), sign)
    assert b"\n{evil" not in document


@pytest.mark.parametrize(
    "policy",
    [
        replace(POLICY, generation=-1),
        replace(POLICY, connect="star"),
        replace(POLICY, peers=(PolicyPeer("a@h", "i", Phase.OPEN, "127.0.0.1", None),)),
        replace(POLICY, peers=(PolicyPeer("a@h", "i", Phase.OPEN, None, 9100),)),
        replace(POLICY, peers=(PolicyPeer("a@h", "i", Phase.OPEN, "127.0.0.1", 0),)),
        replace(POLICY, peers=(PolicyPeer("a@h", "i", Phase.OPEN, "127.0.0.1", 65536),)),
        replace(POLICY, denied=frozenset(f"{number}@{'h' * 100}" for number in range(6000))),
    ],
    ids=["generation", "connect", "address alone", "port alone", "port 0", "port 65536", "too long"],
)
def test_refuses_a_policy_that_a_node_would_not_take(policy: Policy) -> None:
    with pytest.raises(ConfigError):
        render.policy_document(policy, sign)


# ---- guard, cookies ----------------------------------------------------------------------------------------


def test_the_guard_names_the_optfile_and_its_digest() -> None:
    text = guard(optfile=b"content").decode("ascii")
    assert '\n  optfile => <<"/state/nodes/poller/dist.conf">>,\n' in text
    assert f'optfile_sha256 => <<"{hashlib.sha256(b"content").hexdigest()}">>' in text
    assert '\n  proto_dist => "distsec",\n' in text
    assert "\n  interface => {127,0,0,1},\n  port => 9100,\n" in text


def test_the_guard_of_a_node_without_tls_has_no_optfile() -> None:
    text = guard(carrier=Carrier.INET_TCP, optfile=None).decode("ascii")
    assert "optfile => undefined,\n  optfile_sha256 => undefined," in text
    assert 'proto_dist => "inet_tcp"' in text


@pytest.mark.parametrize(
    "changes",
    [
        {"optfile": None},
        {"carrier": Carrier.INET_TCP},
        {"carrier": Carrier.INET_TCP, "optfile": None, "address": "192.0.2.1"},
        {"carrier": Carrier.INET_TCP, "optfile": None, "address": "0.0.0.0"},
        {"address": "localhost"},
        {"address": "fe80::1%eth0"},
        {"port": 0},
        {"directory": "relative"},
    ],
    ids=str,
)
def test_refuses_a_guard_that_contradicts_itself(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        guard(**changes)


def test_an_ipv6_listener_takes_the_carrier_for_it() -> None:
    assert render.proto_dist(Carrier.INET_TLS, "::1") == "inet6_tls"
    assert render.proto_dist(Carrier.INET_TCP, "::1") == "inet6_tcp"
    assert (
        render.proto_dist(Carrier.DISTSEC, "::1")
        == render.proto_dist(Carrier.DISTSEC, "127.0.0.1")
        == "distsec"
    )
    assert "{0,0,0,0,0,0,0,1}" in flags(address="::1")


def test_the_guard_says_whether_the_node_registers_with_epmd() -> None:
    assert "\n  epmd => none,\n" in guard().decode("ascii")
    assert "\n  epmd => loopback,\n" in guard(epmd=Epmd.LOOPBACK).decode("ascii")


def test_libraries_of_another_installation_come_behind_those_of_the_release() -> None:
    assert " -pa /lib/ebin -pz /otp/ssl-1/ebin /otp/crypto-1/ebin -name " in flags(
        libraries=("/otp/ssl-1/ebin", "/otp/crypto-1/ebin")
    )
    with pytest.raises(ConfigError):
        flags(libraries=("relative",))


def test_cookies_are_written_in_the_order_of_their_names() -> None:
    one, two = Secret(b"p" + b"1" * 64), Secret(b"p" + b"2" * 64)
    cookies = Cookies(Secret(b"d" + b"0" * 64), {"b@h": two, "a@h": one})
    text = render.cookie_file(CookieSet(0, cookies)).decode("ascii")
    assert f'peers => #{{<<"a@h">> => <<"p{"1" * 64}">>,<<"b@h">> => <<"p{"2" * 64}">>}}' in text
    assert "step" not in text and "others" not in text


def test_in_a_rotation_the_file_says_what_is_taken_besides() -> None:
    one, two = Secret(b"p" + b"1" * 64), Secret(b"p" + b"2" * 64)
    old, new = Secret(b"d" + b"3" * 64), Secret(b"d" + b"4" * 64)
    cookies = CookieSet(7, Cookies(old, {"a@h": one}), Cookies(new, {"a@h": two}))
    text = render.cookie_file(cookies).decode("ascii")
    assert "\n  step => 7,\n" in text
    assert (
        f'default => <<"d{"3" * 64}">>' in text and f'peers => #{{<<"a@h">> => <<"p{"1" * 64}">>}},' in text
    )
    assert f'other_default => <<"d{"4" * 64}">>' in text
    assert f'other_peers => #{{<<"a@h">> => <<"p{"2" * 64}">>}}' in text


@pytest.mark.parametrize("cookie", [b"", b"short", b"-" + b"a" * 64, b"a" * 256, b"a" * 40 + b"\n"])
def test_refuses_a_bad_cookie_without_showing_it(cookie: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        render.cookie_file(CookieSet(0, Cookies(Secret(cookie), {})))
    assert not cookie or cookie.decode() not in str(caught.value)


# ---- flags -------------------------------------------------------------------------------------------------


def test_the_flags_are_exactly_these() -> None:
    assert flags() == (
        "-distsec_dir /state/nodes/poller -mode interactive -pa /lib/ebin -name poller@127.0.0.1"
        " -proto_dist distsec -ssl_dist_optfile /state/nodes/poller/dist.conf"
        " -epmd_module distsec_epmd -start_epmd false -nocookie -no_epmd false -erl_epmd_port 9100"
        " -kernel inet_dist_use_interface {127,0,0,1} inet_dist_listen_min 9100 inet_dist_listen_max 9100"
        " inet_dist_listen_options [{nodelay,true},{buffer,262144}]"
        " inet_dist_connect_options [{nodelay,true},{buffer,262144}]"
    )


def test_where_an_epmd_is_wanted_it_is_asked() -> None:
    assert "-erl_epmd_port" not in flags(epmd=Epmd.LOOPBACK)


def test_a_short_name_and_a_carrier_without_tls_change_the_flags() -> None:
    text = flags(node=NodeName.parse("a@myhost"), carrier=Carrier.INET_TCP)
    assert "-sname a@myhost -proto_dist inet_tcp -epmd_module" in text
    assert "optfile" not in text


@pytest.mark.parametrize(
    "directory",
    [
        "",
        "relative",
        "-flag",
        "+S",
        "~/state",
        "/nul\0",
        "/not-utf8-\udcff",
        "/lone-\ud800",
        "/" + "x" * 70_000,
    ],
    ids=["empty", "relative", "minus", "plus", "tilde", "nul", "not UTF-8", "surrogate", "too long"],
)
def test_refuses_a_directory_that_the_environment_cannot_carry(directory: str) -> None:
    with pytest.raises(ConfigError) as caught:
        flags(directory=directory)
    str(caught.value).encode("ascii")  # what is refused is shown escaped


@pytest.mark.parametrize("ebin", ["ebin", "/nul\0", "/not-utf8-\udcff"])
def test_refuses_an_agent_that_the_environment_cannot_carry(ebin: str) -> None:
    with pytest.raises(ConfigError):
        flags(ebin=ebin)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_an_escaped_word_is_the_word_to_erlexec(word: str) -> None:
    escaped = aflags.escape_for_erlexec(word)
    assert re.sub(r"\\(.)", r"\1", escaped, flags=re.DOTALL) == word
    assert not re.search(r"""(?<!\\)(\\\\)*[ \t\n\r\v\f'"]""", escaped)


# ---- optfile -----------------------------------------------------------------------------------------------


def test_the_optfile_names_everything_of_both_roles() -> None:
    text = render.optfile(directory="/s/n").decode("ascii")
    server, client = text.split("{client,")
    for role, part in (("server", server), ("client", client)):
        assert '{certfile,<<"/s/n/certificate.pem">>}' in part
        assert '{keyfile,<<"/s/n/key.pem">>}' in part
        assert '{cacertfile,<<"/s/n/trust.pem">>}' in part
        assert "{verify,verify_peer}" in part
        assert "{versions,['tlsv1.3']}" in part
        assert f"{{verify_fun,{{fun distsec_verify:verify/3,#{{role => {role}}}}}}}" in part
        assert '{ciphers,["TLS_AES_128_GCM_SHA256",' in part
    assert "{fail_if_no_peer_cert,true}" in server
    assert "fail_if_no_peer_cert" not in client


def test_an_option_may_be_tuned_for_one_role() -> None:
    text = render.optfile(directory="/s", extra_server={"honor_cipher_order": True, "depth": 1}).decode()
    server, client = text.split("{client,")
    assert "{honor_cipher_order,true}" in server
    assert "{depth,1}" in server
    assert "depth" not in client


BOTH = [Role.SERVER, Role.CLIENT]
ILLEGAL: list[tuple[list[Role], str, Term, str]] = [
    (BOTH, "ktls", True, "certificate is gone"),
    (BOTH, "secure_renegotiate", True, "1.2"),
    (BOTH, "reuse_sessions", True, "1.2"),
    (BOTH, "client_renegotiation", False, "1.2"),
    (BOTH, "session_tickets", Symbol("auto"), "no certificate"),
    (BOTH, "early_data", b"x", "no certificate"),
    ([Role.CLIENT], "honor_cipher_order", True, "servers"),
    ([Role.CLIENT], "fail_if_no_peer_cert", True, "servers"),
    ([Role.SERVER], "fail_if_no_peer_cert", False, "no certificate is accepted"),
    ([Role.CLIENT], "server_name_indication", Symbol("disable"), "host that was dialled"),
    (BOTH, "verify", Symbol("verify_none"), "verify_peer"),
    (BOTH, "verify", "verify_peer", "verify_peer"),
    (BOTH, "versions", [Symbol("tlsv1.2")], "nothing else"),
    (BOTH, "versions", [Symbol("tlsv1.3"), Symbol("tlsv1.2")], "nothing else"),
    (BOTH, "verify_fun", (Symbol("m"), Symbol("f"), []), "refuses everyone"),
    (BOTH, "verify_fun", (ExternalFunction("m", "f", 3), []), "does not ask the policy"),
    (BOTH, "ciphers", ["ECDHE-RSA-AES256-GCM-SHA384"], "EC key"),
    (BOTH, "ciphers", [CIPHER_SUITES[0], "ECDHE-RSA-AES256-GCM-SHA384"], "EC key"),
    (BOTH, "ciphers", [], "EC key"),
    (BOTH, "certfile", b"relative.pem", "absolute"),
    (BOTH, "keyfile", "/a/string", "absolute"),
    (BOTH, "cacerts", [b"der"], "takes precedence"),
    (BOTH, "key", b"secret", "takes precedence"),
    (BOTH, "password", "secret", "secret in a file"),
    (BOTH, "sni_hosts", [], "what the peer asks"),
    (BOTH, "no_such_option", 1, "no option known"),
]


@pytest.mark.parametrize(("roles", "name", "value", "reason"), ILLEGAL, ids=lambda part: repr(part)[:40])
def test_refuses_an_illegal_option_by_name_and_with_the_reason(
    roles: list[Role], name: str, value: Term, reason: str
) -> None:
    for role in roles:
        with pytest.raises(ConfigError) as caught:
            render.optfile(directory="/s", **{f"extra_{role}": {name: value}})
        [problem] = caught.value.problems
        assert problem.key == f"{role}.{name}"
        assert reason in problem.what


@pytest.mark.parametrize("role", BOTH)
def test_refuses_a_missing_option_and_names_all_that_are_wrong(role: Role) -> None:
    complete = tls_options(role, certfile=b"/c", keyfile=b"/k", cacertfile=b"/t")
    refuse_illegal(role, complete)
    optional = {"ciphers", "hibernate_after"}
    for name in complete.keys() - optional:
        with pytest.raises(ConfigError, match=name):
            refuse_illegal(role, {key: value for key, value in complete.items() if key != name})
    with pytest.raises(ConfigError) as caught:
        refuse_illegal(role, {})
    assert {problem.key for problem in caught.value.problems} == {
        f"{role}.{name}" for name in complete.keys() - optional
    }
