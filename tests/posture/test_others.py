"""Planted misconfigurations of emulators that distsec does not run, from what /proc would say of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distsec.model.cookies import PLACEHOLDER
from distsec.posture.finding import Code, Severity
from tests.posture.planted import Planted, ca, pem, told

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="files of several users are planted")

Plant = Callable[[Planted], object]
CASES: list[tuple[frozenset[Code], Plant]] = []
COOKIE = "9f8e7d6c5b4a39281706f5e4d3c2b1a0"


def plants(*codes: Code) -> Callable[[Plant], Plant]:
    def register(plant: Plant) -> Plant:
        CASES.append((frozenset(codes), plant))
        return plant

    return register


def test_a_node_with_tls_as_documented_has_nothing_above_info(clean: Planted) -> None:
    clean.stock()
    assert told(clean.check_host()) == set()


def test_an_emulator_without_a_node_name_is_left_alone(clean: Planted) -> None:
    clean.beam("-noinput", listeners=[("0.0.0.0", 80)], uid=0)
    assert told(clean.check_host()) == set()


# ---- cookies ----------


@plants(Code.COOKIE_IN_ARGUMENTS)
def cookie_in_arguments(clean: Planted) -> None:
    clean.stock(words=["-setcookie", COOKIE])


@plants(Code.COOKIE_IN_ARGUMENTS)
def cookie_for_one_peer_in_arguments(clean: Planted) -> None:
    clean.stock(words=["-setcookie", "x@h", COOKIE])


@plants(Code.COOKIE_IN_ARGUMENTS)
def cookie_behind_extra(clean: Planted) -> None:
    clean.stock(words=["-extra", "--cookie", COOKIE])


@plants(Code.COOKIE_IN_ARGUMENTS)
def cookie_of_a_wrapper(clean: Planted) -> None:
    clean.found.wrappers.append(("process 77 (sh)", (COOKIE.encode(),)))


@plants(Code.COOKIE_IN_ENVIRONMENT)
def cookie_of_a_release(clean: Planted) -> None:
    clean.stock(environ=[f"RELEASE_COOKIE={COOKIE}"])


@plants(Code.COOKIE_IN_ENVIRONMENT)
def cookie_in_flags_of_the_environment(clean: Planted) -> None:
    clean.stock(environ=[f"ELIXIR_ERL_OPTIONS=+S 2 -setcookie {COOKIE}"])


@plants(Code.COOKIE_WELL_KNOWN)
def cookie_file_of_a_tutorial(clean: Planted) -> None:
    clean.stock()
    (clean.directory / "stock/.erlang.cookie").write_text("monster\n")


@plants(Code.COOKIE_WEAK)
def short_cookie_file(clean: Planted) -> None:
    clean.stock()
    (clean.directory / "stock/.erlang.cookie").write_text("k3jd8f")


@plants(Code.COOKIE_OLD)
def cookie_file_of_last_year(clean: Planted) -> None:
    clean.stock()
    os.utime(clean.directory / "stock/.erlang.cookie", (1.6e9, 1.6e9))


@plants(Code.SECRET_EXPOSED)
def cookie_file_for_everybody(clean: Planted) -> None:
    clean.stock()
    (clean.directory / "stock/.erlang.cookie").chmod(0o644)


# ---- options ----------


@plants(Code.TLS_VERIFY_NONE)
def server_that_verifies_nobody(clean: Planted) -> None:
    clean.stock(server="{verify,verify_none};-fail_if_no_peer_cert")


@plants(Code.TLS_VERIFY_NONE, Code.OPTION_REFUSED)
def server_without_verify(clean: Planted) -> None:
    clean.stock(server="-verify")


@plants(Code.TLS_VERIFY_NONE)
def client_that_verifies_nobody(clean: Planted) -> None:
    clean.stock(client="{verify,verify_none}")


@plants(Code.TLS_NO_CLIENT_CERTIFICATE)
def server_that_demands_nothing(clean: Planted) -> None:
    clean.stock(server="-fail_if_no_peer_cert")


@plants(Code.TLS_VERSIONS_DEFAULT)
def client_without_versions(clean: Planted) -> None:
    clean.stock(client="-versions")


@plants(Code.TLS_OLD_VERSIONS)
def server_with_tls_1_1(clean: Planted) -> None:
    clean.stock(server="{versions,['tlsv1.2','tlsv1.1']}")


@plants(Code.TLS_HOSTNAME_UNCHECKED)
def client_that_checks_no_host(clean: Planted) -> None:
    clean.stock(client="{server_name_indication,disable}")


@plants(Code.OPTION_REFUSED)
def renegotiation_beside_tls_1_3(clean: Planted) -> None:
    clean.stock(server="{secure_renegotiate,true}")


@plants(Code.OPTION_REFUSED)
def order_of_ciphers_on_the_client(clean: Planted) -> None:
    clean.stock(client="{honor_cipher_order,true}")


@plants(Code.OPTION_REFUSED)
def demand_on_the_client(clean: Planted) -> None:
    clean.stock(client="{fail_if_no_peer_cert,true}")


@plants(Code.OPTION_REFUSED)
def rsa_ciphers_with_an_ec_key(clean: Planted) -> None:
    clean.stock(
        server="{versions,['tlsv1.2']};{ciphers,[\"ECDHE-RSA-AES256-GCM-SHA384\"]}",
    )


@plants(Code.OPTION_REFUSED)
def ciphers_of_tls_1_2_for_tls_1_3(clean: Planted) -> None:
    clean.stock(server='{ciphers,["ECDHE-ECDSA-AES256-GCM-SHA384"]}')


@plants(Code.OPTION_REFUSED)
def verify_fun_of_three(clean: Planted) -> None:
    clean.stock(server="{verify_fun,{my_module,verify,[]}}")


@plants(Code.OPTION_UNSAFE)
def key_in_the_kernel(clean: Planted) -> None:
    clean.stock(server="{ktls,true}", words=[])
    release(clean, 27)


def release(clean: Planted, number: int) -> None:
    """Gives the emulator an OTP of that release."""
    root = clean.directory / "otp"
    (root / "releases" / str(number)).mkdir(parents=True)
    (root / "releases/start_erl.data").write_text(f"{number - 12}.1 {number}")
    (root / "releases" / str(number) / "OTP_VERSION").write_text(f"{number}.9.9\n")
    beam = clean.found.beams.pop()
    words = [word for name, each in beam.flags.all.items() for one in each for word in (f"-{name}", *one)]
    words[words.index("/nowhere")] = str(root)
    clean.beam(*words)


@plants(Code.OPTION_UNSAFE)
def resumed_sessions(clean: Planted) -> None:
    clean.stock(server="{session_tickets,stateless}")


@plants(Code.OPTFILE_MISSING)
def no_option_file(clean: Planted) -> None:
    clean.stock()
    (clean.directory / "stock/dist.conf").unlink()


@plants(Code.OPTFILE_MALFORMED)
def option_file_of_another_shape(clean: Planted) -> None:
    clean.stock()
    (clean.directory / "stock/dist.conf").write_text("{server, []}.")


@plants(Code.OPTIONS_IGNORED)
def options_beside_the_file(clean: Planted) -> None:
    clean.stock(words=["-ssl_dist_opt", "server_verify", "verify_peer"])


@plants(Code.OPTIONS_IGNORED)
def options_for_tls_without_tls(clean: Planted) -> None:
    clean.stock()
    beam = clean.found.beams.pop()
    directory = str(clean.directory / "stock")
    clean.beam(
        "-home", directory, "-name", beam.flags.node or "", "-ssl_dist_optfile", f"{directory}/dist.conf"
    )


@plants(Code.TLS_VERIFY_NONE, Code.TLS_VERSIONS_DEFAULT)
def options_on_the_command_line(clean: Planted) -> None:
    clean.stock()
    beam = clean.found.beams.pop()
    directory = clean.directory / "stock"
    clean.beam(
        *("-home", str(directory), "-name", beam.flags.node or "", "-proto_dist", "inet_tls"),
        *("-ssl_dist_opt", "server_certfile", f"{directory}/certificate.pem"),
        *("server_keyfile", f"{directory}/key.pem"),
    )


@plants(Code.FLAG_TWICE)
def two_carriers(clean: Planted) -> None:
    clean.stock(words=["-proto_dist", "inet_tls"])


@plants(Code.FLAG_TWICE)
def two_option_files(clean: Planted) -> None:
    clean.stock(words=["-ssl_dist_optfile", "/other"])


# ---- what the option file names ----------


@plants(Code.SECRET_EXPOSED)
def key_for_the_group(clean: Planted) -> None:
    clean.stock()
    (clean.directory / "stock/key.pem").chmod(0o640)


@plants(Code.FILE_WRITABLE)
def option_file_for_everybody(clean: Planted) -> None:
    clean.stock()
    (clean.directory / "stock/dist.conf").chmod(0o666)


@plants(Code.FILE_OWNER)
def key_of_somebody_else(clean: Planted) -> None:
    clean.stock()
    os.chown(clean.directory / "stock/key.pem", 4242, -1)


@plants(Code.PARENT_REPLACEABLE)
def directory_for_everybody(clean: Planted) -> None:
    clean.stock()
    (clean.directory / "stock").chmod(0o777)


@plants(Code.TRUST_PUBLIC)
def the_bundle_of_a_system(clean: Planted) -> None:
    clean.stock()
    trust = clean.directory / "stock/trust.pem"
    trust.write_bytes(trust.read_bytes() + b"".join(pem(ca(f"CA {number}")[1]) for number in range(20)))


@plants(Code.TRUST_NOT_A_CA)
def a_leaf_that_is_trusted(clean: Planted) -> None:
    clean.stock()
    stock = clean.directory / "stock"
    (stock / "trust.pem").write_bytes(
        (stock / "trust.pem").read_bytes() + (stock / "certificate.pem").read_bytes()
    )


@plants(Code.CERTIFICATE_SHARED)
def one_certificate_for_two_nodes(clean: Planted) -> None:
    clean.stock()
    beam = clean.found.beams[0]
    words = [word for name, each in beam.flags.all.items() for one in each for word in (f"-{name}", *one)]
    clean.beam(*["t@127.0.0.1" if word == "s@127.0.0.1" else word for word in words], pid=4_000_001)


@plants(Code.BEAM_RUNS_AS_ROOT)
def node_of_root(clean: Planted) -> None:
    clean.stock(uid=0)


@pytest.mark.parametrize(("codes", "plant"), CASES, ids=[plant.__name__ for _, plant in CASES])
def test_what_is_planted_is_found_and_nothing_else(
    clean: Planted, codes: frozenset[Code], plant: Plant
) -> None:
    plant(clean)
    findings = clean.check_host()
    assert told(findings) == codes, [each.as_dict() for each in findings]


def test_a_cookie_is_told_by_its_length_and_strength_only(clean: Planted) -> None:
    clean.stock(
        words=["-setcookie", COOKIE], environ=[f"RELEASE_COOKIE={COOKIE}", f"ERL_FLAGS=-setcookie {COOKIE}"]
    )
    (clean.directory / "stock/.erlang.cookie").write_text("monster")
    findings = clean.check_host()
    assert {Code.COOKIE_IN_ARGUMENTS, Code.COOKIE_IN_ENVIRONMENT} <= told(findings)
    assert COOKIE not in str([each.as_dict() for each in findings]) + repr(clean.found.beams)
    assert any(f"{len(COOKIE)} characters, strong" in each.what for each in findings)


def test_the_word_that_stands_for_no_cookie_is_none_under_the_guard_and_everybody_s_elsewhere(
    clean: Planted,
) -> None:
    words, environ = ["-setcookie", PLACEHOLDER], [f"RELEASE_COOKIE={PLACEHOLDER}"]
    clean.stock(words=["-epmd_module", "distsec_epmd", *words], environ=environ)
    assert told(clean.check_host()) == set()
    clean.found.beams.clear()
    shutil.rmtree(clean.directory / "stock")
    clean.stock(words=words, environ=environ)
    assert {Code.COOKIE_WELL_KNOWN, Code.COOKIE_IN_ARGUMENTS} <= told(clean.check_host())


def test_the_same_name_twice_is_one_name_and_two_names_are_a_finding(clean: Planted) -> None:
    clean.stock(words=["-name", "s@127.0.0.1"])
    assert told(clean.check_host()) == set()
    clean.found.beams.clear()
    shutil.rmtree(clean.directory / "stock")
    clean.stock(words=["-name", "t@127.0.0.1"])
    assert told(clean.check_host()) == {Code.FLAG_TWICE}


def test_an_environment_that_may_not_be_read_is_said_and_is_not_nothing(clean: Planted) -> None:
    clean.found.unseen.append("the environment of 1 emulators of other users (process 9)")
    findings = clean.check_host()
    assert [each.severity for each in findings if each.code is Code.NOT_SEEN] == [Severity.INFO]


def test_hostile_names_and_paths_are_escaped_and_bounded(clean: Planted) -> None:
    clean.beam(
        *("-name", "\x1b[31mevil\u202e@h" + "x" * 100_000, "-proto_dist", "inet_tls"),
        *("-ssl_dist_optfile", "/nowhere/\x1b[2J\udc80" + "y" * 5000, "-home", "\n/etc"),
        environ=["RELEASE_COOKIE=" + "z" * 100_000, "ERL_EPMD_PORT=99999999999999999999"],
    )
    findings = clean.check_host()
    assert {Code.OPTFILE_MISSING, Code.COOKIE_IN_ENVIRONMENT} & {each.code for each in findings}
    for each in findings:
        for text in (each.what, each.where, each.fix):
            assert text.isprintable() and len(text) <= 1010
            assert "\x1b" not in text and "zzz" not in text


_WORDS = st.one_of(
    st.sampled_from(
        ["-name", "-proto_dist", "inet_tls", "-ssl_dist_optfile", "-ssl_dist_opt", "-kernel", "-config"]
    ),
    st.sampled_from(
        ["-home", "-root", "-setcookie", "inet_dist_listen_min", "{127,0,0,1}", "--", "-extra", "a@h"]
    ),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
    st.binary(max_size=8).map(lambda word: os.fsdecode(word.replace(b"\0", b""))),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_WORDS, max_size=12), st.lists(_WORDS, max_size=3))
def test_no_arguments_or_variables_stop_the_look(
    clean: Planted, words: list[str], variables: list[str]
) -> None:
    clean.found.beams.clear()
    clean.beam("-name", "x@h", *words, environ=[f"ERL_EPMD_PORT={word}" for word in variables])
    assert all(each.what.isprintable() for each in clean.check_host())


def test_a_pipe_or_a_huge_file_in_place_of_options_holds_nothing_up(clean: Planted) -> None:
    clean.stock()
    optfile = clean.directory / "stock/dist.conf"
    optfile.unlink()
    os.mkfifo(optfile)
    os.chown(optfile, 1234, -1)
    assert Code.OPTFILE_MALFORMED in told(clean.check_host())
    optfile.unlink()
    with optfile.open("wb") as file:
        file.truncate(1 << 33)
    assert Code.OPTFILE_MALFORMED in told(clean.check_host())


def test_a_cluster_that_distsec_runs_is_not_blamed_for_others(clean: Planted) -> None:
    clean.stock(server="{verify,verify_none};-fail_if_no_peer_cert")
    assert told(clean.check()) == set()
    clean.stock(words=["-setcookie", COOKIE])
    assert told(clean.check()) == {Code.COOKIE_IN_ARGUMENTS}
    shutil.rmtree(clean.directory / "stock")


def test_a_node_in_another_network_namespace_is_not_knocked_at_and_that_is_said(clean: Planted) -> None:
    beam = clean.stock(listeners=[("127.0.0.1", 9)])
    clean.found.beams[0] = replace(beam, here=False)
    [finding] = [each for each in clean.check_host() if each.code is Code.NOT_SEEN]
    assert "another network namespace" in finding.what and f"--target {beam.pid} --net" in finding.fix
