"""Every error that an operator can meet, by whose fault it is, with its exit code and the way out.

An error's text is one line: what is wrong, where, and what to do. It never holds a secret. Exit codes follow
sysexits.h where that has a fitting one; `status` and `check` have codes of their own (0, 1, 2, 3), see docs.

A refusal of a peer is not an error: it is a value (`model.policy.Verdict`) and an event.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class DistsecError(Exception):
    """Base of all: `what` went wrong `where`, and what to `do` about it; `exit_code` ends the command."""

    exit_code = 70

    def __init__(self, what: str, *, where: str = "", do: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.do = do

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}; {self.do}" if self.do else text


# ---- the operator's input ------------------------------------------------------------


class UsageError(DistsecError):
    """The command line does not fit (EX_USAGE)."""

    exit_code = 64


class NameInvalid(DistsecError, ValueError):
    """A text is no node name that Erlang, SPIFFE and the file system can all carry (EX_DATAERR)."""

    exit_code = 65


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a configuration: dotted `key`, 1-based `line` (0: unknown), `what`, what to `do`."""

    key: str
    line: int
    what: str
    do: str = ""

    def __str__(self) -> str:
        head = f"line {self.line}: " if self.line else ""
        tail = f"; {self.do}" if self.do else ""
        return f"{head}{self.key}: {self.what}{tail}" if self.key else f"{head}{self.what}{tail}"


class ConfigError(DistsecError):
    """The configuration is missing or wrong (EX_CONFIG); `problems`: all that is wrong, in file order."""

    exit_code = 78

    def __init__(self, where: str, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(map(str, self.problems)) or "unusable", where=where)

    def __str__(self) -> str:
        return "\n".join(f"{self.where}: {problem}" for problem in self.problems) or f"{self.where}: unusable"


# ---- the machine ------------------------------------------------------------


class Unavailable(DistsecError):
    """No orchestrator answers on the control socket (`status` ends with 3, other commands with 69,
    EX_UNAVAILABLE).
    """

    exit_code = 69


class StoreError(DistsecError):
    """The state directory cannot be used: owner, mode, symlink, full disk (EX_CANTCREAT)."""

    exit_code = 73


class CaKeyUnavailable(DistsecError):
    """Something must be signed by the CA, and its key is not to be had: sealed without a passphrase, or kept
    elsewhere (EX_NOINPUT). What runs goes on.
    """

    exit_code = 66


class PassphraseWrong(CaKeyUnavailable):
    """The passphrase opens nothing (EX_NOINPUT)."""


class CaKeyUnreadable(CaKeyUnavailable, StoreError):
    """The CA's sealed key is damaged, or none that this version reads (EX_CANTCREAT). What runs goes on."""

    exit_code = 73


class RequestRefused(DistsecError):
    """A signing request, or the answer to one, is not what may be signed or installed (EX_DATAERR)."""

    exit_code = 65


class CertificateRefused(DistsecError):
    """A certificate or key that somebody brings is not taken, and what was there stays (EX_DATAERR)."""

    exit_code = 65


class ImportRefused(DistsecError):
    """A document about another host is not taken: altered, old, of another cluster or CA (EX_DATAERR)."""

    exit_code = 65


class CertificateUnusable(DistsecError):
    """A node has no key and certificate that it could be started with (EX_DATAERR); the others go on."""

    exit_code = 65


class PermissionRefused(DistsecError):
    """The caller may not do this: a foreign uid on the control socket, a file of another user (EX_NOPERM)."""

    exit_code = 77


class RuntimeMissing(DistsecError):
    """Something that must be installed is not there, or too old: erl, an OTP release below 25 (EX_OSFILE)."""

    exit_code = 72


class EpmdUnavailable(RuntimeMissing):
    """The epmd that a node is to register with does not start (EX_OSFILE): somebody may hold its port."""


class PortInUse(DistsecError):
    """A port that is to be listened on is taken (EX_OSERR)."""

    exit_code = 71


class AddressUnavailable(DistsecError):
    """An address that is to be listened on is not on this host, or not yet (EX_OSERR)."""

    exit_code = 71


# ---- the cluster ------------------------------------------------------------


class NotFound(DistsecError):
    """The named node is not in this cluster (EX_NOHOST)."""

    exit_code = 68


class GuardNotInForce(DistsecError):
    """A node was given something that takes its guard out of force, and is not started (EX_CONFIG)."""

    exit_code = 78


class NotAcknowledged(DistsecError):
    """A change was not acknowledged by all nodes in time; the text says what became of it (EX_TEMPFAIL)."""

    exit_code = 75

    def __init__(self, what: str, *, missing: Sequence[str], where: str = "", do: str = "") -> None:
        self.missing = tuple(missing)
        super().__init__(what, where=where, do=do)


class CommandFailed(DistsecError):
    """The orchestrator took the command and could not carry it out (EX_SOFTWARE)."""

    exit_code = 70


# ---- a managed node, which may be compromised ------------------------------------------------------------


class ProtocolError(DistsecError):
    """Bytes from an agent that no honest agent sends (EX_PROTOCOL); ends that connection and nothing else.

    `reason` is one of beam.messages.AgentRefusal, the label that it is counted under.
    """

    exit_code = 76

    def __init__(self, what: str, *, reason: str = "protocol", where: str = "", do: str = "") -> None:
        self.reason = reason
        super().__init__(what, where=where, do=do)
