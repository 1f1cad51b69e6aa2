"""OTP as it might be one day, or in somebody's build: stand-ins of single modules that break one assumption.

A stand-in of `ssl` has the functions that are broken, and hands everything else on to the real module, which
is compiled from the release's own source under another name; of other modules the source is changed in one
place.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.releases import Otp

COMPILE_SECONDS = 180

_SSL = """
-module(ssl).
-export(['$handle_undefined_function'/2, {exports}]).
'$handle_undefined_function'(Function, Arguments) -> apply(otp_ssl, Function, Arguments).
{functions}
"""

_WRAPPED = """
handshake(Socket, Options, Timeout) -> wrapped(otp_ssl:handshake(Socket, Options, Timeout)).
connect(Socket, Options, Timeout) -> wrapped(otp_ssl:connect(Socket, Options, Timeout)).
connection_information(Ssl, Items) -> otp_ssl:connection_information(real(Ssl), Items).
peercert(Ssl) -> otp_ssl:peercert(real(Ssl)).
setopts(Ssl, Options) -> otp_ssl:setopts(real(Ssl), Options).
controlling_process(Ssl, Pid) -> otp_ssl:controlling_process(real(Ssl), Pid).
"""
_WRAPPED_EXPORTS = (
    "handshake/3, connect/3, connection_information/2, peercert/1, setopts/2, controlling_process/2"
)


@dataclass(frozen=True, slots=True)
class StandIn:
    """`says`: of which check the node must complain, and how that begins. `functions`: of `ssl`, instead of
    the real ones; or `patch`: what is replaced in the source of `module` by what.
    """

    says: str
    module: str = "ssl"
    exports: str = ""
    functions: str = ""
    patch: tuple[str, str] = ("", "")


STAND_INS: Mapping[str, StandIn] = {
    "no-function": StandIn(
        "functions: missing: tls_sender:dist_handshake_complete/3",
        "tls_sender",
        patch=("dist_handshake_complete/3]).", "start_link/0])."),
    ),
    "no-timer": StandIn(
        "functions: missing: dist_util:reset_timer/1",
        "dist_util",
        patch=("reset_timer/1", "start_timer/1"),
    ),
    "other-frame": StandIn(
        "first_frame: the first frame is read as",
        "dist_util",
        patch=("<<$N, Flags:64, Creation:32, NameLen:16>>", "<<$N, Creation:32, Flags:64, NameLen:16>>"),
    ),
    "no-frame": StandIn(
        "first_frame: dist_util sends no first frame", "dist_util", patch=("send_name(HSData),", "ok,")
    ),
    "other-name": StandIn(
        "answer: a first frame is not answered: it asks {accept_pending,",
        "dist_util",
        patch=("lists:split(NameLen, Rest)", "lists:split(NameLen - 1, Rest)"),
    ),
    "lets-in-nobody-knows-whom": StandIn(
        "no_certificate: a peer without a certificate is let in",
        exports="handshake/3",
        functions="""
handshake(Socket, Options, Timeout) ->
    Lax = [O || {Name, _} = O <- Options, not lists:member(Name, [verify, fail_if_no_peer_cert, verify_fun])],
    otp_ssl:handshake(Socket, [{verify, verify_none} | Lax], Timeout).
""",
    ),
    "asks-no-client": StandIn(
        "handshake: verify_fun is not called by the server",
        exports="handshake/3",
        functions="""
handshake(Socket, Options, Timeout) ->
    otp_ssl:handshake(Socket, lists:keydelete(verify_fun, 1, Options), Timeout).
""",
    ),
    "asks-no-server": StandIn(
        "handshake: verify_fun is not called by the client",
        exports="connect/3",
        functions="""
connect(Socket, Options, Timeout) ->
    otp_ssl:connect(Socket, lists:keydelete(verify_fun, 1, Options), Timeout).
""",
    ),
    "fails": StandIn(
        "handshake: the handshake fails: {error,closed}",
        exports="handshake/3",
        functions="""
handshake(Socket, Options, Timeout) ->
    case otp_ssl:handshake(Socket, Options, Timeout) of
        {ok, Ssl} -> otp_ssl:close(Ssl), {error, closed};
        Error -> Error
    end.
""",
    ),
    "shows-no-certificate": StandIn(
        "handshake: after the handshake: certificate_required",
        exports="peercert/1",
        functions="peercert(_) -> {error, no_peercert}.",
    ),
    "is-older": StandIn(
        "handshake: after the handshake: protocol_version",
        exports="connection_information/2",
        functions="connection_information(_, [protocol | _]) -> {ok, [{protocol, 'tlsv1.2'}]}.",
    ),
    "other-socket": StandIn(
        "handshake: the layout of #sslsocket{} is not known",
        exports=_WRAPPED_EXPORTS,
        functions=_WRAPPED
        + "wrapped({ok, Ssl}) -> {ok, {sslsocket, Ssl}}; wrapped(Error) -> Error.\n"
        + "real({sslsocket, Ssl}) -> Ssl; real(Ssl) -> Ssl.\n",
    ),
    "other-process": StandIn(
        "handshake: the sender is",
        exports=_WRAPPED_EXPORTS,
        functions=_WRAPPED
        + "wrapped({ok, Ssl}) -> {ok, {sslsocket, Ssl, [x, whereis(code_server)]}};\n"
        + "wrapped(Error) -> Error.\n"
        + "real({sslsocket, Ssl, [x, _]}) -> Ssl; real(Ssl) -> Ssl.\n",
    ),
    "no-frames": StandIn(
        "handshake: frames arrive as",
        exports="setopts/2",
        functions="setopts(Ssl, Options) -> otp_ssl:setopts(Ssl, lists:keydelete(packet, 1, Options)).",
    ),
    "endless-frames": StandIn(
        "handshake: a frame that is too long is taken",
        exports="setopts/2",
        functions="setopts(Ssl, Options) -> otp_ssl:setopts(Ssl, lists:keydelete(packet_size, 1, Options)).",
    ),
}
"""Each assumption of distsec_selfcheck, and what would break it."""


def library(otp: Otp, application: str) -> Path:
    """Where a release has an application."""
    expression = f'io:format("~ts", [code:lib_dir({application})]), halt().'
    done = subprocess.run(
        [otp.erl, "-noinput", "-eval", expression], capture_output=True, text=True, check=True, timeout=60
    )
    return Path(done.stdout)


def make(otp: Otp, directory: Path) -> dict[str, Path]:
    """Compiles every stand-in with the compiler of `otp`, each into a directory of its own; by name."""
    sources = {
        "ssl": library(otp, "ssl"),
        "tls_sender": library(otp, "ssl"),
        "dist_util": library(otp, "kernel"),
    }
    real = directory / "real"
    real.mkdir(parents=True)
    text = (sources["ssl"] / "src" / "ssl.erl").read_text()
    assert text.count("-module(ssl).") == 1
    _compile(otp, real, "otp_ssl", text.replace("-module(ssl).", "-module(otp_ssl)."), sources["ssl"])
    for name, stand_in in STAND_INS.items():
        ebin = directory / name
        ebin.mkdir()
        if stand_in.module == "ssl":
            text = _SSL.format(exports=stand_in.exports, functions=stand_in.functions)
            _compile(otp, ebin, "ssl", text, sources["ssl"])
            (ebin / "otp_ssl.beam").hardlink_to(real / "otp_ssl.beam")
        else:
            _patch(otp, ebin, stand_in.module, stand_in.patch, sources[stand_in.module])
    return {name: directory / name for name in STAND_INS}


def patched(otp: Otp, ebin: Path, module: str, patch: tuple[str, str]) -> Path:
    """Compiles a module of kernel, changed in one place, into `ebin`, and returns that."""
    _patch(otp, ebin, module, patch, library(otp, "kernel"))
    return ebin


def _patch(otp: Otp, ebin: Path, module: str, patch: tuple[str, str], home: Path) -> None:
    text = (home / "src" / f"{module}.erl").read_text()
    old, new = patch
    assert old in text, f"{module}.erl of OTP {otp.release} has no {old!r}"
    _compile(otp, ebin, module, text.replace(old, new, 1), home)


def _compile(otp: Otp, ebin: Path, module: str, text: str, home: Path) -> None:
    source = ebin / f"{module}.erl"
    source.write_text(text)
    includes = [str(home / "src"), str(home / "include"), str(home.parent)]
    done = subprocess.run(
        [otp.erlc, "+nowarn_export_all", *(f"-I{path}" for path in includes), "-o", str(ebin), str(source)],
        capture_output=True,
        text=True,
        timeout=COMPILE_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
