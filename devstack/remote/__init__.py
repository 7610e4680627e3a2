"""The same stack on another machine: the project goes there over SSH, and the tasks run there as they run here.

What is typed here is carried out by the same program on the host, next to its engine, its sockets and its locks. So
there is no second way to do anything, a command costs a handful of round trips however much it does, and one whose
link breaks is told to stop by :mod:`devstack.remote.agent`, like one whose Ctrl-C was pressed.
"""
