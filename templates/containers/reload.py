"""Runs a server in a container, anew whenever its source changes: python reload.py FOLDER… -- COMMAND…

It looks at the files' times: what changes on the host is not announced inside a container on every engine. The server's
own end is its end, so that the engine sees it and starts both again.
"""

import os
import signal
import subprocess
import sys
import time

INTERVAL = 0.5
"""Seconds between two looks, as long as it runs."""
STARTING = 10.0
"""Seconds in which a server that ends has not come up."""
LEFT_OUT = {"__pycache__", ".git", ".venv", "node_modules"}


def times(folders):
    """When each source file was last changed."""
    found = {}
    for folder in folders:
        for place, below, files in os.walk(folder):
            below[:] = [name for name in below if name not in LEFT_OUT]
            for name in files:
                if name.endswith((".py", ".pyi")):
                    path = os.path.join(place, name)
                    try:
                        found[path] = os.stat(path).st_mtime_ns
                    except OSError:
                        continue
    return found


def names_of(before, now):
    """The files that differ, for the log."""
    changed = sorted(path for path in {*now, *before} if now.get(path) != before.get(path))
    return ", ".join(changed[:3]) + (" …" if len(changed) > 3 else "")


def main(words):
    split = words.index("--")
    folders, command = words[:split], words[split + 1 :]
    told = []  # signals that are to end it
    child = None

    def pass_on(number, _frame):
        told.append(number)
        if child:
            child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    before, reloaded = times(folders), False
    while not told:
        child, began = subprocess.Popen(command), time.monotonic()
        while child.poll() is None and not told and times(folders) == before:
            time.sleep(INTERVAL)
        if told or child.poll() is not None:
            code = child.wait()
            if told or not reloaded or time.monotonic() - began > STARTING:
                sys.exit(code if code >= 0 else 128 - code)
            # a change that broke it is answered by the next change: started again at once, it would only end again
            print(f"it ended with {code} right after a change: waiting for the next one", flush=True)
            while not told and times(folders) == before:
                time.sleep(INTERVAL)
        if told:
            break
        now = times(folders)
        print(f"restarting: {names_of(before, now)} changed", flush=True)
        before, reloaded = now, True
        end(child)


def end(child):
    """Have the server end; killed when it takes too long."""
    child.terminate()
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


if __name__ == "__main__":
    main(sys.argv[1:])
