# SPDX-License-Identifier: Apache-2.0
"""A server in this folder and what is asked of it, for serve.py and serve_load.py. The standard library alone is used."""
import http.client, json, os, re, signal, subprocess, sys, time

GLOWQ, SOURCE, MPIEXEC = os.environ["GLOWQ_BINARY"], os.environ["GLOWQ_SOURCE_DIR"], os.environ.get("GLOWQ_MPIEXEC", "mpirun")
DENSE, TINY = SOURCE + "/examples/dense", SOURCE + "/tests/golden/families/tp_cut"
PATIENCE_S = float(os.environ.get("LIMIT_S", 60))  # something hangs
PROMPTS = ["Once upon a time", "The harbour was", "In the town of", "A list of things: ", "42 and", "\u00dcber \u4f60\u597d", "x"]
failed = []  # what was wrong, in this process


def check(ok, what):
    if not ok:
        failed.append(what)
        print("FAIL:", what)


def same(got, wanted, what):
    check(got == wanted, "%s: %r instead of %r" % (what, got, wanted))


class Server:
    def __init__(self, model, ranks, *options, launch=None, port=0):
        launcher = launch or ([MPIEXEC, "-n", str(ranks)] if ranks > 1 else [])
        self.log = open("server.err", "w+")
        command = [GLOWQ, "serve"] if not launch else []
        self.process = subprocess.Popen(launcher + command + ["--model", model, "--port", str(port), "--kv-tokens", "8192"] +
                                        list(options), stdout=subprocess.DEVNULL, stderr=self.log)
        self.ranks, self.port = ranks, None
        for _ in range(int(PATIENCE_S * 20)):
            ready = re.search(r"ready: http://[^:]*:(\d+)/v1", open("server.err").read())
            if ready:
                self.port = int(ready.group(1))
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        sys.exit("FAIL: no server: " + open("server.err").read())

    def open(self, method, path, body=None, headers={}):
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        c.request(method, path, body, {"Content-Type": "application/json", **headers} if body is not None else headers)
        return c, c.getresponse()

    def ask(self, method, path, body=None, headers={}):
        """status, body as JSON where it is, headers"""
        c, r = self.open(method, path, body, headers)
        data = r.read()
        c.close()
        if r.getheader("Content-Type", "").startswith("application/json"):
            data = json.loads(data)
        return r.status, data, r

    def complete(self, **ask):
        status, answer, _ = self.ask("POST", "/v1/completions", ask)
        if status != 200:
            sys.exit("FAIL: %s: %d %s" % (ask, status, answer))
        return answer

    def text(self, prompt, **ask):
        return self.complete(prompt=prompt, **ask)["choices"][0]["text"]

    def stream(self, path="/v1/completions", **ask):
        """events; the last is None if the stream ended as it should"""
        c, r = self.open("POST", path, dict(ask, stream=True))
        same(r.status, 200, "status of a stream")
        events = []
        for line in r:
            if line.strip() == b"data: [DONE]":
                events.append(None)
            elif line.startswith(b"data: "):
                events.append(json.loads(line[6:]))
        c.close()
        return events

    def stats(self):
        return self.ask("GET", "/stats")[1]

    def idle(self):
        """until nothing runs and no KV block is in use"""
        for _ in range(int(PATIENCE_S * 20)):
            s = self.stats()
            if s["running"] + s["waiting"] + s["kv_blocks_used"] == 0:
                return
            time.sleep(0.05)
        sys.exit("FAIL: the server isn't idle: %s" % s)

    def stop(self):
        self.process.send_signal(signal.SIGUSR1 if self.ranks > 1 else signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return "a server that doesn't stop"


def text_of(events):
    return "".join(c["text"] for e in events if e for c in e["choices"])


def glowq(*args):
    return json.loads(subprocess.run([GLOWQ, *args, "--json", "--quiet"], check=True, stdout=subprocess.PIPE).stdout)


def processes():
    """pid of every rank of the server started in this folder"""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.path.realpath(GLOWQ) == os.readlink("/proc/%s/exe" % pid) and os.getcwd() == os.readlink("/proc/%s/cwd" % pid):
                environment = open("/proc/%s/environ" % pid, "rb").read()
                rank = re.search(rb"\0OMPI_COMM_WORLD_RANK=(\d+)", environment)
                found[int(rank.group(1)) if rank else 0] = int(pid)
        except OSError:
            pass
    return found


def run(what):
    """what: the function for each name of a command line NAME RANKS"""
    what[sys.argv[1]](int(sys.argv[2]))
    print("%d failures" % len(failed))
    sys.exit(len(failed) > 0)
