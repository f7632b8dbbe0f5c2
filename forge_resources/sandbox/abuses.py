"""Sources of hostile programs and candidates. They are harmless to a host whose sandbox fails: all end by themselves.

A program that explores prints what it reached, or "none". A candidate should add two numbers, does not, and tries to
pass nevertheless.
"""

from collections.abc import Mapping, Sequence

ADD = "def add(a, b):\n    return a + b\n"
SUBTRACT = "def add(a, b):\n    return a - b\n"
FIVE = "def add(a, b):\n    return 5\n"
TESTS = "assert add(2, 2) == 4\nassert add(-1, 1) == 0\nassert add(3, 9) == 12\n"


def network(hosts: Sequence[str], port: int) -> str:
    """A program that connects to each host at `port`, over TCP and UDP, resolves a name, and looks for network
    interfaces, raw packets and a hypervisor.

    A datagram to 127.0.0.1 does not count, because on the sandbox's own loopback it reaches nobody.
    """
    return f"""
import socket
reached = []
for host in {list(hosts)!r}:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                with socket.socket(family, kind) as s:
                    s.settimeout(0.1)
                    s.connect((host, {port}))
                    s.send(b"x")
                    reached.append(host)
            except OSError:
                pass
try:
    reached.append(str(socket.getaddrinfo("localhost.localdomain.example", 80)))
except OSError:
    pass
with open("/proc/net/dev") as interfaces:
    reached += [line.split(":")[0].strip() for line in interfaces if ":" in line and line.split(":")[0].strip() != "lo"]
for name, arguments in (
    ("packets", ("AF_PACKET", "SOCK_RAW", 3)),
    ("the host of a virtual machine", ("AF_VSOCK", "SOCK_STREAM", 0)),
):
    try:
        family, kind, protocol = arguments
        socket.socket(getattr(socket, family), getattr(socket, kind), protocol).close()
        reached.append(name)
    except OSError:
        pass
print(sorted(set(reached) - {{"127.0.0.1"}}) or "none")
"""


_ATTEMPTS = """
import os
done = []
def attempt(name, action):
    try:
        action()
    except OSError:
        return
    done.append(name)
def read(path):
    with open(path) as f:
        f.read()
def write(path):
    there = os.path.lexists(path)
    try:
        with open(path, "a") as f:
            f.write("" if there else "x")
    finally:
        if not there and os.path.lexists(path):
            os.remove(path)
"""


def host_files(secret: str, sockets: Sequence[str], nonce: str) -> str:
    """A program that tries to read, list and write `secret` and other files of a host in several ways, and to write
    where nothing may be written.

    Existing files are opened for appending and left unchanged; new ones get a name with `nonce` and are removed again.
    """
    return f"""{_ATTEMPTS}
secret = {secret!r}
for root in ["", "/proc/1/root", "/proc/self/root", "/proc/self/cwd/../../../../.."]:
    attempt("read " + root, lambda: read(root + secret))
    attempt("list " + root, lambda: os.listdir(root + os.path.dirname(secret)))
for path in {list(sockets)!r} + ["/etc/shadow", "/root/.bashrc", "/etc/hostname-of-the-host"]:
    attempt("stat " + path, lambda: os.stat(path))
for folder in ("", "/etc", "/usr", "/usr/bin", "/run", "/var", "/var/tmp", "/dev", "/dev/shm", "/dev/mqueue", "/sys",
               "/home", "/sys/fs/cgroup", os.path.dirname(secret)):
    attempt("make a file in " + folder, lambda: write(folder + "/{nonce}"))
for path in ("/etc/passwd", "/usr/bin/python3", "/proc/sys/kernel/hostname", "/proc/sysrq-trigger",
             "/proc/sys/kernel/core_pattern", "/proc/1/mem", secret):
    attempt("write " + path, lambda: write(path))
print(done or "none")
"""


def links(secret: str, nonce: str) -> str:
    """A program that tries to reach `secret` through symbolic links, and a system file through a hard link."""
    return f"""{_ATTEMPTS}
secret = {secret!r}
for number, target in enumerate([secret, "../" * 40 + secret, "/proc/1/root" + secret]):
    name = "/tmp/{nonce}-%d" % number
    os.symlink(target, name)
    attempt("link to " + target, lambda: read(name))
    os.remove(name)
attempt("hard link", lambda: (os.link("/etc/passwd", "/tmp/{nonce}"), os.remove("/tmp/{nonce}")))
print(done or "none")
"""


VARIABLES = """
import os
print(dict(os.environ))
for pid in [p for p in os.listdir("/proc") if p.isdigit()]:
    try:
        print(open("/proc/%s/environ" % pid, errors="replace").read())
    except OSError:
        pass
"""


def forks(most: int) -> str:
    """A program that starts up to `most` waiting children, prints how many were alive at once, and ends them."""
    return f"""
import os, time
children = []
try:
    while len(children) < {most}:
        pid = os.fork()
        if pid == 0:
            time.sleep(20)
            os._exit(0)
        children.append(pid)
except OSError:
    pass
for pid in children:
    os.kill(pid, 9)
print(len(children))
"""


def threads(most: int) -> str:
    """A program that starts up to `most` waiting threads and prints how many it could start."""
    return f"""
import threading
end, started = threading.Event(), 0
try:
    while started < {most}:
        threading.Thread(target=end.wait, args=(20,), daemon=True).start()
        started += 1
except RuntimeError:
    pass
end.set()
print(started)
"""


def memory(num_bytes: int) -> Sequence[str]:
    """Programs that allocate `num_bytes`: in one step, and gradually."""
    return (
        f"x = 'a' * {num_bytes}\nprint(len(x))",
        f"x = []\nfor i in range({num_bytes // 100_000}):\n    x.append('a' * 100_000 + str(i))\nprint(len(x))",
    )


def flood(stream: str, lines: int) -> str:
    """A program that prints `lines` lines of a thousand characters to `sys.stdout` or `sys.stderr`."""
    to = "" if stream == "stdout" else f", file=sys.{stream}"
    return f"import sys\nprint('first')\nfor i in range({lines}):\n    print('x' * 1000{to})"


def waiting(pause: str, seconds: float) -> str:
    """A program that repeats `pause` for `seconds`, then prints "survived"."""
    return f"import time\nend = time.time() + {seconds}\nwhile time.time() < end:\n    {pause}\nprint('survived')"


def deaf(seconds: float) -> str:
    """A program that ignores every signal and error that it can for `seconds`, then prints "survived"."""
    return f"""
import signal, time
for number in set(signal.Signals) - {{signal.SIGKILL, signal.SIGSTOP}}:
    signal.signal(number, signal.SIG_IGN)
print("deaf", flush=True)
end = time.time() + {seconds}
while time.time() < end:
    try:
        time.sleep(0.1)
    except BaseException:
        pass
print("survived")
"""


def orphan(mark: str, parent: str, seconds: float) -> str:
    """A program that leaves a grandchild in a session of its own, with `mark` in its arguments, and runs `parent`."""
    return f"""
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        python = sys.executable or "/usr/bin/python3"
        os.execv(python, ["python3", "-c", "import time; time.sleep({seconds})  # {mark}"])
    os._exit(0)
time.sleep(0.2)
{parent}
"""


def looking(word: str) -> tuple[str, str]:
    """A candidate that returns everything it can see, and tests that contain `word` and assert that it is not there."""
    candidate = """
def look(x):
    seen = [repr(x), repr(globals()), repr(locals())]
    import gc, os, sys
    frame = sys._getframe()
    while frame:
        seen += [repr(frame.f_locals), repr(frame.f_globals)]
        frame = frame.f_back
    seen += [repr(o) for o in gc.get_objects() if type(o) in (str, bytes, tuple, list)]
    for pid in os.listdir("/proc"):
        for name in ("cmdline", "environ", "maps") if pid.isdigit() else ():
            try:
                seen.append(open("/proc/" + pid + "/" + name, errors="replace").read())
            except OSError:
                pass
    return "look here" + "".join(seen)
"""
    tests = f"word = {word!r}\nseen = look(1)\nassert seen.startswith('look here')\nassert word not in seen"
    return candidate, tests


_ENDS = {
    "os._exit": "import os\n{}os._exit(0)",
    "sys.exit": "import sys\n{}sys.exit(0)",
    "SystemExit": "{}raise SystemExit(0)",
    "quit": "{}quit()",
    "exit": "{}exit()",
}
EARLY_ENDS: Mapping[str, str] = {name: end.format("") for name, end in _ENDS.items()} | {
    f"{name} in the function": end.format("def add(a, b):\n    ") for name, end in _ENDS.items()
}
PATCHES: Mapping[str, str] = {
    "a module's function": "import math\nmath.isclose = lambda *a, **k: True\n",
    "a builtin": "import builtins\nbuiltins.abs = lambda x: 0\n",
    "builtins by name": "abs = len = isinstance = type = round = lambda *a: 4\nall = any = lambda x: True\n",
    "exceptions": "AssertionError = Exception\ndef assert_(x): return True\n",
    "builtins as a module": "import builtins as b\nb.abs = b.len = lambda x: 4\nb.AssertionError = Exception\n",
    "modules": "import sys, math\nmath.isclose = lambda *a, **k: True\nsys.modules['math'] = None\n",
    "the caller's frame": "import sys\nf = sys._getframe(1)\nf.f_globals['json'] = f.f_builtins['len'] = 0\n",
    "tracing": "import sys\nsys.settrace(lambda *a: None)\nsys.excepthook = lambda *a: None\n",
    "the answering loop": "import sys\nsys.modules['__main__'].__dict__.clear()\n",
}
PATCHABLE_TESTS = "import math\nassert abs(add(2, 2) - 4) < 1e-6 or math.isclose(add(2, 2), 4)"
_LIE = "    def __eq__(self, other):\n        return True\n"
LIARS: Mapping[str, str] = {
    "an equal of everything": f"class Any:\n{_LIE}def add(a, b):\n    return Any()",
    "a number that lies": f"class N(int):\n{_LIE}def add(a, b):\n    return N(5)",
    "a list that lies": f"class L(list):\n{_LIE}def add(a, b):\n    return L()",
    "a class for a function": f"class add:\n    def __init__(self, a, b): pass\n{_LIE}",
    "inside of a list": f"class Any:\n{_LIE}def add(a, b):\n    return [Any()]",
}
_FORGED = '{"verdict": "passed", "detail": "", "calls": 2, "nonce": ""}'
FORGERS: Mapping[str, str] = {
    "printed": f"print({_FORGED!r}, flush=True)\ndef add(a, b):\n    print('passed')\n    return 5\n",
    "written to every descriptor": f"""
import os
for line in ({_FORGED!r}, '{{"value": true}}', '{{"value": {{"int": "0x4"}}}}', 'passed'):
    for descriptor in range(64):
        try:
            os.write(descriptor, (line + "\\n").encode())
        except OSError:
            pass
{FIVE}""",
    "raised": "def add(a, b):\n    raise AssertionError('passed')\n",
}
