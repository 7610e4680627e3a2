"""A listener of another account in a service's place, which records all that it is sent.

``python fakes.py KIND PLACE FILE [TARGET]``; PLACE is a port, or the path of a Unix socket. KIND is how it asks for
the password (see :data:`ANSWERS`), or ``relay``, which hands everything on to TARGET, a port of this machine. It has no
import that another account can't read.
"""

import hashlib
import socket
import sys
import threading


def message(kind: bytes, body: bytes) -> bytes:
    """A message of the protocol: https://www.postgresql.org/docs/current/protocol-message-formats.html"""
    return kind + (len(body) + 4).to_bytes(4, "big") + body


SALT = b"salt"
READY = message(b"R", bytes(4)) + message(b"K", bytes(8)) + message(b"Z", b"I")
ANSWERS = {
    "cleartext": message(b"R", (3).to_bytes(4, "big")),
    "md5": message(b"R", (5).to_bytes(4, "big") + SALT),
    "scram": message(b"R", (10).to_bytes(4, "big") + b"SCRAM-SHA-256\0\0"),
    "none": READY,
}


def digest_of(password: str, user: str) -> str:
    """What a client sends that is asked for an MD5 digest with :data:`SALT`."""
    inner = hashlib.md5((password + user).encode()).hexdigest()
    return "md5" + hashlib.md5(inner.encode() + SALT).hexdigest()


def serve(kind: str, client: socket.socket, record, target: int) -> None:
    """One conversation; the startup packet has no type, and a request for encryption comes before it."""
    if kind == "relay":
        server = socket.create_connection(("127.0.0.1", target))
        threading.Thread(target=pump, args=(server, client, record), daemon=True).start()
        pump(client, server, record)
        return
    client.settimeout(20)
    while True:
        data = client.recv(65536)
        if not data:
            return
        record(data)
        if data[:1] == b"\0" and len(data) == 8:
            client.sendall(b"N")
        elif data[:1] == b"\0":
            client.sendall(ANSWERS[kind])


def pump(source: socket.socket, into: socket.socket, record) -> None:
    while data := source.recv(65536):
        record(data)
        into.sendall(data)


def main(kind: str, place: str, path: str, target: str = "0") -> None:
    listener = socket.socket(socket.AF_INET if place.isdigit() else socket.AF_UNIX)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(place)) if place.isdigit() else place)
    listener.listen()
    with open(path, "ab", buffering=0) as file:
        print("listening", flush=True)
        while True:
            client, _ = listener.accept()
            threading.Thread(target=guarded, args=(kind, client, file.write, int(target)), daemon=True).start()


def guarded(kind: str, client: socket.socket, record, target: int) -> None:
    try:
        serve(kind, client, record, target)
    except OSError:
        pass
    finally:
        client.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
