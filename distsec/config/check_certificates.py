"""Whether the certificates' lives fit together. Pure."""

from __future__ import annotations

from distsec.config.lines import KeyPath
from distsec.config.report import Report
from distsec.config.schema import Certificates, Document

_TABLE: KeyPath = ("certificates",)
DEFAULT_DAYS = 365


def check_certificates(document: Document, report: Report) -> None:
    table = document.certificates or Certificates()
    if table.days is not None and table.lifetime_seconds is not None:
        report.error(
            (*_TABLE, "lifetime_seconds"),
            "says how long certificates last, and so does days",
            "remove one of the two",
        )
        return
    life = table.lifetime_seconds or (table.days or DEFAULT_DAYS) * 86_400
    before = table.renew_before_seconds
    if before is not None and before > life / 2:
        report.error(
            (*_TABLE, "renew_before_seconds"),
            f"is more than half of the certificates' life ({life:g} s)",
            "choose less, or a longer life: a certificate would be due again as soon as it is renewed",
        )
