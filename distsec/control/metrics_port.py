"""Where `/metrics` is served: as soon as its port is to be had, which is nothing that a node waits for.

Any local user may hold a port. So while somebody holds this one the nodes run, `distsec status` and the log
say so, and it is tried again.
"""

from __future__ import annotations

from collections.abc import Callable

from distsec.control.scrape import MetricsSite
from distsec.errors import PortInUse
from distsec.observe.metrics import Metrics


class MetricsPort:
    """Belongs to one event loop. `listen`: as MetricsSite has it; None: nowhere. `note(level, text, …)` hears
    that it is not served, and that it is then; once each.
    """

    def __init__(self, metrics: Metrics, listen: tuple[str, int] | None, note: Callable[..., object]) -> None:
        self.where: str | None = None  # address and port
        self._metrics = metrics
        self._listen = listen
        self._note = note
        self._site: MetricsSite | None = None

    async def open(self) -> None:
        """Serves it, unless that is done; where that fails call it again. Raises nothing."""
        if self._listen is None or self._site is not None:
            return
        site = MetricsSite(self._metrics.render, self._listen)
        try:
            host, port = await site.start()
        except PortInUse as error:
            if self._metrics.unserved is None:
                self._metrics.unserved = str(error)
                self._note("error", "metrics are not served; it is tried again", error=str(error))
            return
        self._site = site
        self.where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if self._metrics.unserved is not None:
            self._metrics.unserved = None
            self._note("notice", "metrics are served", metrics=self.where)

    async def close(self) -> None:
        """Ends it. May be called twice."""
        if self._site is not None:
            await self._site.close()
            self._site = None
