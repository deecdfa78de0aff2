"""Start a whole site for a benchmark, in a folder of its own that goes with it, and stop its poller in order."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serviceradar_poller.lab.pki import make_pki
from serviceradar_poller.testing.site import Site, make_site

#: Of a thousand agents beside whatever else the machine does.
START_TIMEOUT_S = 60.0


@contextlib.contextmanager
def running(agents: int, *, interval_s: float, warm_up_reports: int = 0, **more: Any) -> Iterator[Site]:
    """
    Give agents, core and a poller that polls, all over mutual TLS; they end with the block.

    Args:
        interval_s: Between polls.
        warm_up_reports: Reports that core has before the block begins.
        more: For make_site.
    Raises:
        RuntimeError: The poller did not end as it should when it was told to.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        make_pki(folder / "pki")
        site = make_site(
            stack,
            folder,
            agents,
            cert_dir=folder / "pki",
            interval=f"{round(interval_s * 1000)}ms",
            ready=False,
            **more,
        )
        site.poller.ready(timeout_s=START_TIMEOUT_S)
        site.await_reports(warm_up_reports, since=0, timeout_s=START_TIMEOUT_S)
        yield site
        code = site.poller.stop()
        if code != 0:
            raise RuntimeError(f"the poller ended with {code}: {site.poller.stderr[-2000:]}")
