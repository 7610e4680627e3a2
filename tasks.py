"""Hand over to the package ``tasks/``, which owns the root collection. Only ``inv`` and ``fab`` read this file."""

# Invoke's loader takes tasks.py and registers it as "tasks", which would hide the folder of that name
# (a package beats a module in a normal import): take this module's place back, then import the package.
# Having this file also puts the project's root on sys.path; a package alone would put tasks/ there.
import gc
import sys

# what is made until a task begins stays for good: to look through it for cycles takes a twentieth of the start
gc.disable()
sys.modules.pop(__name__, None)
# Invoke turns bytecode off, which would have our modules compiled anew at every command: a fifth of its start
sys.dont_write_bytecode = bool(sys.flags.dont_write_bytecode)

from tasks import ns  # noqa: E402
from tasks.process import adopt  # noqa: E402

adopt(ns)

__all__ = ["ns"]
