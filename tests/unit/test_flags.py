"""Flags that take the guard out of force are found before the node is started."""

from __future__ import annotations

import pytest

from distsec.beam.flags import find_forbidden, find_forbidden_in_vm
from distsec.model.cookies import PLACEHOLDER

NODE = "a@127.0.0.1"


def nothing(_path: str) -> None:
    return None


@pytest.mark.parametrize(
    "flag",
    [
        "-proto_dist",
        "-ssl_dist_optfile",
        "-ssl_dist_opt",
        "-setcookie",
        "-epmd_module",
        "-no_epmd",
        "-detached",
    ],
)
def test_names_the_flag_and_where_it_stands(flag: str) -> None:
    in_command = find_forbidden(NODE, ["erl", "-noinput", flag, "x"], {}, nothing)
    assert in_command is not None and in_command.flag == flag and in_command.where == "the command"
    in_variable = find_forbidden(NODE, ["erl"], {"ERL_ZFLAGS": f"+P 5000 {flag} x"}, nothing)
    assert in_variable is not None and in_variable.where == "ERL_ZFLAGS" and flag in str(in_variable)


def test_takes_the_node_s_own_name_and_refuses_another() -> None:
    assert find_forbidden(NODE, ["erl", "-name", NODE], {}, nothing) is None
    found = find_forbidden(NODE, ["erl", "-sname", "b"], {}, nothing)
    assert found is not None and "called a@127.0.0.1" in str(found)


def test_takes_the_word_that_stands_for_no_cookie_and_no_other() -> None:
    assert find_forbidden(NODE, ["erl", "-setcookie", PLACEHOLDER], {}, nothing) is None
    assert find_forbidden_in_vm(NODE, ["-x"], ["beam.smp", "-x", "-setcookie", PLACEHOLDER]) is None
    for words in (["-setcookie", "x"], ["-setcookie"], ["-setcookie", "b@h", PLACEHOLDER]):
        found = find_forbidden(NODE, ["erl", "-setcookie", PLACEHOLDER, *words], {}, nothing)
        assert found is not None and PLACEHOLDER in str(found), words


def test_follows_args_files_through_comments_and_one_another() -> None:
    files = {
        "/vm.args": b"# -setcookie in a comment\n+P 100\n-args_file /more\n",
        "/more": b"-setcookie x # y\n",
    }
    found = find_forbidden(NODE, ["erl", "-args_file", "/vm.args"], {}, files.get)
    assert found is not None and found.where == "/more"


def test_ends_with_an_args_file_that_names_itself() -> None:
    assert find_forbidden(NODE, ["erl", "-args_file", "/loop"], {}, lambda _: b"-args_file /loop") is None


def test_leaves_the_application_s_own_arguments_alone() -> None:
    assert find_forbidden(NODE, ["erl", "-noinput", "-extra", "-setcookie", "x"], {}, nothing) is None
    assert find_forbidden(NODE, ["my-server", "--setcookie"], {}, nothing) is None


def test_finds_what_a_wrapper_added_to_the_flags_of_the_emulator() -> None:
    generated = ["-proto_dist", "inet_tls", "-no_epmd", "false"]
    honest = ["beam.smp", "--", "-root", "/erlang", "--", *generated, "--", "-noshell"]
    assert find_forbidden_in_vm(NODE, generated, honest) is None
    found = find_forbidden_in_vm(NODE, generated, ["beam.smp", *generated, "-proto_dist", "inet_tcp"])
    assert found is not None and found.flag == "-proto_dist"


def test_a_vm_that_lost_our_flags_is_judged_only_if_it_takes_a_name() -> None:
    generated = ["-proto_dist", "inet_tls"]
    assert find_forbidden_in_vm(NODE, generated, ["beam.smp", "-setcookie", "its_own"]) is None
    assert find_forbidden_in_vm(NODE, generated, ["beam.smp", "-extra", "-name", "x@h"]) is None
    for flag, name in (("-name", NODE), ("-sname", "helper")):
        found = find_forbidden_in_vm(NODE, generated, ["beam.smp", flag, name])
        assert found is not None and found.flag == flag and "ERL_AFLAGS" in str(found)
