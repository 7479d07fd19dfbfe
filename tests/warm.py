"""A `python` that is warm: what takes six seconds to import, torch and its like, is there when a program begins.

A server imports what reads no environment variable (so not timm, huggingface_hub, datasets, nor ours) and forks for each
program. PYTHON is an executable that asks it for one and stands for that: the same folder, environment, streams, signals
and exit code, and a kill of it kills the program. It knows `-u`, `-c CODE`, `-m MODULE` and a script; what that starts by
`sys.executable` is warm too. A test in which a fresh interpreter is the point takes its own `sys.executable`.
"""

import atexit
import gc
import importlib
import os
import pickle
import runpy
import select
import shlex
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path

LOADED = """
torch torch._dynamo torch.distributed.launcher torchvision scipy.stats sklearn.datasets pandas pyarrow.parquet matplotlib.pyplot
PIL.Image jinja2 yaml httpx2 multiprocess tabulate tqdm.auto safetensors.torch
"""
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SERVERS: list[subprocess.Popen] = []  # their input is held open as long as this process lives


def begin(folder):
    """Make FOLDER/python, and start its server, which ends with this process.

    It loads all that for its first program. Where there is no way to watch a process, that python is the plain one.
    """
    python, path = Path(folder) / "python", f"{folder}/socket"
    warm = hasattr(os, "pidfd_open")
    words = [sys.executable, *(["-ES", __file__, "ask", path] if warm else [])]
    python.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    python.chmod(0o755)
    if warm:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(100)
            words = [sys.executable, __file__, "serve", str(listener.fileno()), str(python)]
            bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
            SERVERS.append(subprocess.Popen(words, pass_fds=[listener.fileno()], stdin=subprocess.PIPE, env=bare))


def ask(path, *words):
    """Have the server run a program with this process's folder, environment and streams, and end as it does."""
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # they wait until there is somebody to pass them on to
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        socket.send_fds(server, [b"!"], [0, 1, 2])
        server.sendall(pickle.dumps((words, str(Path.cwd()), dict(os.environ))))
        (pid,) = struct.unpack("i", server.recv(4))
        for number in PASSED_ON:
            signal.signal(number, lambda number, _: os.kill(pid, number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        while not select.select([server], [], [], 0.1)[0]:
            pass  # a signal that came just before this wait is passed on after it
        (code,) = struct.unpack("i", server.recv(4))
    if code < 0:
        with suppress(OSError):  # SIGKILL has no other way
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def serve(number, python):
    """Fork for each who asks; comes back in the forked process, with its program's words."""
    listener = socket.socket(fileno=int(number))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for who watches
    while 0 not in select.select([0, listener], [], [])[0]:
        connection, _ = listener.accept()
        for name in LOADED.split():
            with suppress(ImportError):  # then who needs it will say so
                importlib.import_module(name)
        gc.freeze()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            sys.executable = python
            return words_of(connection)
        connection.close()
    os._exit(0)  # its end of the pipe is closed: who started this is gone


def words_of(connection):
    """Fork once more: one watches over the program and its asker, the other is made what the asker is, for the program."""
    _, streams, *_ = socket.recv_fds(connection, 1, 3)
    words, folder, environment = pickle.load(connection.makefile("rb"))
    if pid := os.fork():
        for stream in streams:  # what they lock or end is the program's affair
            os.close(stream)
        with suppress(OSError):  # the asker may be gone at any moment
            connection.sendall(struct.pack("i", pid))
        if select.select([connection, os.pidfd_open(pid)], [], [])[0] == [connection]:
            os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with suppress(OSError):
            connection.sendall(struct.pack("i", code))
        os._exit(0)
    connection.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    return words


def become(words):
    """Run as that program to its end."""
    sys.stdout.reconfigure(line_buffering=os.isatty(1), write_through=words[0] == "-u")
    kind, *rest = words = words[words[0] == "-u" :]
    first = {"-c": "", "-m": str(Path.cwd())}.get(kind, str(Path(kind).absolute().parent))
    sys.path[:1] = [first, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    if kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        runpy.run_path(kind, run_name="__main__")


def ended(act, *given):
    """Its exit code, as the interpreter would end with it."""
    try:
        act(*given)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        ask(*sys.argv[2:])
    code = ended(become, serve(*sys.argv[2:]))
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)  # taking a thousand modules apart is what a fork would pay for
