"""Restart a supervised service when its source changes: ``python -m devstack.reload SOCKET PROCESS FOLDER…``.

Runs as a program of its own beside the service, so that the service itself stays the supervisor's direct child.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time

HEAD_START = 2.0
"""Seconds before this begins: what it imports would compete with the service's own start, and delay it by a fifth."""


def main(socket: str, process: str, *folders: str) -> None:
    """Watch until ended. A process that is stopped on purpose stays stopped; one that failed is started again."""
    supervisor = os.getppid()
    time.sleep(HEAD_START)
    import xmlrpc.client

    from supervisor.xmlrpc import SupervisorTransport
    from watchfiles import PythonFilter, watch

    transport = SupervisorTransport(None, None, serverurl=f"unix://{socket}")
    server = xmlrpc.client.ServerProxy("http://supervisor", transport=transport)
    for changes in watch(
        *folders, watch_filter=PythonFilter(), raise_interrupt=False, rust_timeout=1000, yield_on_timeout=True
    ):
        if os.getppid() != supervisor:
            return  # the supervisor was killed: nobody else would end this
        if not changes:
            continue
        names = sorted({path for _, path in changes})
        print(
            f"restarting {process}: {', '.join(names[:3])}{' …' if len(names) > 3 else ''} changed",
            flush=True,
        )
        with contextlib.suppress(xmlrpc.client.Fault):
            server.supervisor.stopProcess(process, True)
        with contextlib.suppress(xmlrpc.client.Fault):
            server.supervisor.startProcess(process, False)


if __name__ == "__main__":
    main(*sys.argv[1:])
