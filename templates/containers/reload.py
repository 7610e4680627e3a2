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


def main(words):
    split = words.index("--")
    folders, command = words[:split], words[split + 1 :]
    ending = []

    def pass_on(number, _frame):
        ending.append(number)
        child.send_signal(number)

    child, began, reloaded = subprocess.Popen(command), time.monotonic(), False
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    before, waiting = times(folders), False
    while True:
        try:
            code = child.wait(INTERVAL)
        except subprocess.TimeoutExpired:
            code = None
        if ending:
            code = child.wait()
        # a change that broke it is answered by the next change; started again at once, it would only end again
        broken = code is not None and reloaded and time.monotonic() - began < STARTING
        if code is not None and not broken and not waiting:
            sys.exit(code if code >= 0 else 128 - code)
        if broken and not waiting:
            waiting = True
            print(f"it ended with {code} right after a change: waiting for the next one", flush=True)
        if waiting:
            time.sleep(INTERVAL)
        now = times(folders)
        if now == before:
            continue
        changed = sorted(path for path in {*now, *before} if now.get(path) != before.get(path))
        more = " …" if len(changed) > 3 else ""
        print(f"restarting: {', '.join(changed[:3])}{more} changed", flush=True)
        before = now
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if ending:
            sys.exit(0)
        child, began, reloaded, waiting = subprocess.Popen(command), time.monotonic(), True, False


if __name__ == "__main__":
    main(sys.argv[1:])
