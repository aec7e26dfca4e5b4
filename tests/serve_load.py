# SPDX-License-Identifier: Apache-2.0
"""glowq serve under load and for a long time. Called by cli/serve.sh in an empty folder:
    serve_load.py bytes RANKS         PROMPTS (1600) random prompts
    serve_load.py slow|soak RANKS     by hand, see there"""
import concurrent.futures as futures, json, multiprocessing, os, random, re, resource, socket, time

from serve_help import DENSE, PATIENCE_S, PROMPTS, Server, check, failed, processes, run, same


def holds():
    pid = processes()[0]
    resident = int(re.search(r"VmRSS:\s*(\d+)", open("/proc/%d/status" % pid).read()).group(1)) * 1024
    return resident, len(os.listdir("/proc/%d/fd" % pid))


def held(s, deadlines_s=35):
    """(bytes resident, descriptors) of rank 0, with nothing in flight and every deadline of a silent client over"""
    s.idle()
    time.sleep(deadlines_s)
    return holds()


def p99_of(waits):
    return sorted(waits)[int(len(waits) * 0.99)]


def slow(ranks):
    """1000 connections that send a byte a second: when they are all closed, and how long small requests wait beside them."""
    s = Server(DENSE, ranks)
    resource.setrlimit(resource.RLIMIT_NOFILE, (2048, max(2048, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))
    request = b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{" + b" " * 499

    def probe(until):
        waits = []
        while not until():
            begin = time.monotonic()
            s.text("Once upon a time", max_tokens=8, temperature=0)
            waits.append(time.monotonic() - begin)
            time.sleep(0.02)
        return waits

    def drip(wait):
        """Those that say nothing, those in the middle of their headers and of their body, a byte a second each, until all are closed."""
        drips = {}
        for i in range(1000):
            k = socket.create_connection(("127.0.0.1", s.port))
            sent = (0, 50, request.index(b"{"))[i % 3]
            k.sendall(request[:sent])
            drips[k] = sent
        begin = time.monotonic()
        while drips:
            wait(max(0, begin + 1 - time.monotonic()))
            begin = time.monotonic()
            for k in list(drips):
                try:
                    if drips[k] > 0:
                        k.send(request[drips[k]:drips[k] + 1])
                        drips[k] += 1
                    closed = not k.recv(4096, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    closed = False
                except OSError:
                    closed = True
                if closed:
                    k.close()
                    del drips[k]

    fork = multiprocessing.get_context("fork")
    for_s = lambda seconds: (lambda end=time.monotonic() + seconds: time.monotonic() > end)
    probe(for_s(2))
    before = probe(for_s(20))
    begin = time.monotonic()
    crowd_of_drips = fork.Process(target=drip, args=(time.sleep,))
    crowd_of_drips.start()
    beside = probe(lambda: not crowd_of_drips.is_alive())
    took = time.monotonic() - begin
    print("1000 connections closed after %.1f s; p99 of %d small requests before %.1f ms, of %d beside them %.1f ms" %
          (took, len(before), 1e3 * p99_of(before), len(beside), 1e3 * p99_of(beside)))
    check(took < 40, "the last of 1000 slow connections was closed after %.1f s" % took)
    check(p99_of(beside) < 2 * p99_of(before), "p99 beside slow connections")
    same(s.stats()["kv_blocks_used"], 0, "KV blocks in use")
    same(s.stop(), 0, "exit code")


def random_prompt(r):
    """Bytes as characters, what of bytes is UTF-8, or characters from all of Unicode."""
    n = r.randrange(1, 17)
    if r.random() < 0.6:
        return r.randbytes(n).decode(*r.choice((("latin-1",), ("utf-8", "replace"))))
    return "".join(chr(r.choice((r.randrange(128), r.randrange(0xd800), r.randrange(0xe000, 0x110000)))) for _ in range(n))


def bytes_(ranks):
    """Random prompts through the model, 32 a request: every one gets its text, that of the prompt alone (one in 500 is asked again),
    and the server holds no more than before."""
    total, each = int(os.environ.get("PROMPTS", 1600)), 32
    s = Server(DENSE, ranks, "--max-sequences", "64")
    n_ids = s.ask("GET", "/tokenizer_info")[1]["vocab_size"]
    tally = {"prompts": 0, "prompt tokens": 0, "text tokens": 0, "empty texts": 0, "asked again": 0}

    def one(seed):
        r = random.Random(seed)
        if r.random() < 0.5:
            prompts = [random_prompt(r) for _ in range(each)]
        else:
            prompts = [[r.randrange(n_ids) for _ in range(r.randrange(1, 25))] for _ in range(each)]
        ask = {"max_tokens": 1, "temperature": r.choice((0, 1)), "seed": seed}
        a = s.complete(prompt=prompts, **ask)
        texts = a["choices"]
        check(len(texts) == each and all(c["finish_reason"] in ("stop", "length") for c in texts), "texts of request %d" % seed)
        again = r.randrange(500)
        if again < each:
            same(s.text(prompts[again], **ask), texts[again]["text"], "prompt %r alone" % prompts[again])
            tally["asked again"] += 1
        for name, n in (("prompts", len(texts)), ("prompt tokens", a["usage"]["prompt_tokens"]),
                        ("text tokens", a["usage"]["completion_tokens"]), ("empty texts", sum(c["text"] == "" for c in texts))):
            tally[name] += n

    def run(first, last):
        with futures.ThreadPoolExecutor(4) as pool:
            for x in [pool.submit(one, seed) for seed in range(first, last)]:
                x.result()
        return held(s, 2)

    n = -(-total // each)
    warm = run(0, n // 5)
    begin = time.monotonic()
    end = run(n // 5, n)
    stats = s.stats()
    print("%s; the last four fifths in %.0f s; resident %.1f MB after a fifth, %.1f MB at the end; descriptors %d, %d; KV blocks in use %d" %
          (tally, time.monotonic() - begin, warm[0] / 1e6, end[0] / 1e6, warm[1], end[1], stats["kv_blocks_used"]))
    check(tally["prompts"] >= total, "prompts that got a text")
    if "ASAN_OPTIONS" not in os.environ:  # which keeps what is freed for a while
        check(end[0] < 1.05 * warm[0] + 4e6, "resident bytes grew from %d to %d" % (warm[0], end[0]))
    same(end[1], warm[1], "descriptors at the end")
    answers = dict(re.findall(r'http_answers_total\{.*status="(.xx)"\} (\d+)', s.ask("GET", "/metrics")[1].decode()))
    same({k: v for k, v in answers.items() if v != "0"}.keys(), {"2xx"}, "answers by status")
    same(s.stop(), 0, "exit code")


def guest(s, r):
    """What clients do who mean well."""
    ask = {"prompt": " ".join(r.choices(PROMPTS, k=r.randrange(1, 4))), "max_tokens": r.randrange(1, 60), "seed": 1,
           "temperature": r.choice((0, 0.9)), "n": r.choice((1, 1, 2))}
    kind = r.choice(("text", "stream"))
    if kind == "text":
        s.complete(**ask)
    else:
        check(s.stream(**ask)[-1] is None, "a stream without an end")
    return kind


def abuser(s, r):
    """And those who don't, or who change their mind."""
    kind = r.choice(("leave", "vanish", "half", "bad", "unicode", "drip"))
    ask = {"prompt": r.choice(PROMPTS), "max_tokens": 300, "ignore_eos": True, "n": r.choice((1, 2))}
    body = json.dumps({**ask, "stream": r.random() < 0.5}).encode()
    request = b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    if kind == "leave":  # in mid-stream
        c, response = s.open("POST", "/v1/completions", {**ask, "stream": True})
        response.read(r.randrange(1, 400))
        c.close()
    elif kind in ("vanish", "half"):  # somewhere in his own request; or says that nothing follows, and waits a little
        k = socket.create_connection(("127.0.0.1", s.port))
        k.sendall((request + body)[:r.randrange(1, 400)])
        if kind == "half":
            k.shutdown(socket.SHUT_WR)
            time.sleep(r.random() / 2)
        k.close()
    elif kind == "bad":
        status = s.ask("POST", "/v1/completions", r.randbytes(r.randrange(1, 300)))[0]
        check(400 <= status < 500, "random body: %d" % status)
    elif kind == "unicode":
        text = "".join(chr(r.randrange(0xd7ff)) for _ in range(r.randrange(1, 60)))
        status, answer, _ = s.ask("POST", "/v1/completions", {"prompt": text, "max_tokens": 1})
        check(status == 200 or answer["error"]["code"] == "context_length_exceeded", "random text: %d %s" % (status, answer))
    else:
        k = socket.create_connection(("127.0.0.1", s.port))
        for byte in request[:r.randrange(2, 6)]:
            k.sendall(bytes([byte]))
            time.sleep(1)
        k.close()
    return kind


def crowd(s, what, threads, seed, present, done, result):
    """A process of so many clients, who act while `present` is set."""
    counts = {}

    def act(i):
        r = random.Random("%d %d" % (seed, i))
        while not done.is_set():
            if present.wait(0.1):
                kind = what(s, r)
                counts[kind] = counts.get(kind, 0) + 1

    with futures.ThreadPoolExecutor(threads) as pool:
        for x in [pool.submit(act, i) for i in range(threads)]:
            x.result()
    result.put((counts, len(failed)))


def soak(ranks):
    """SOAK_S (600) seconds of four clients who mean well beside twelve who break off, disconnect, drip and send nonsense, after every
    40 s of which the twelve pause for 20 s. Nothing grows, nothing is kept; and small requests, whose texts are compared, wait less
    than twice as long (99th percentile) as in the pauses between, in which the machine's other load is the same."""
    seconds, on_s, off_s = float(os.environ.get("SOAK_S", 600)), 40, 20
    s = Server(DENSE, ranks, "--max-sequences", "16")
    wanted = s.text("Once upon a time", max_tokens=8, temperature=0)
    fresh = held(s, 1)
    fork = multiprocessing.get_context("fork")
    always, abused, done, result = fork.Event(), fork.Event(), fork.Event(), fork.Queue()
    always.set()
    crowds = [fork.Process(target=crowd, args=(s, guest, 4, 1, always, done, result)),
              fork.Process(target=crowd, args=(s, abuser, 12, 2, abused, done, result))]
    for c in crowds:
        c.start()
    waits = {True: [], False: []}  # of small requests, by whether the abusers were there

    def probe(until, to):
        while time.monotonic() < until:
            begin = time.monotonic()
            same(s.text("Once upon a time", max_tokens=8, temperature=0), wanted, "a small text")
            to.append(time.monotonic() - begin)
            time.sleep(0.02)

    peak, early, left = 0, None, seconds
    while left > 0:
        for there, length in ((True, min(left, on_s)), (False, off_s)):
            abused.set() if there else abused.clear()
            time.sleep(0 if there else 2)  # those who are still at it
            probe(time.monotonic() + length, waits[there])
            peak = max(peak, holds()[0])
        early = early or holds()
        left -= on_s
    done.set()
    reports = [result.get(timeout=PATIENCE_S) for _ in crowds]
    for c in crowds:
        c.join()
    failed.extend("seen by a crowd" for _, n in reports for _ in range(n))
    end = held(s)
    p99 = {there: p99_of(w) for there, w in waits.items()}
    print("requests %s; small ones %d and %d, p99 %.3f s beside abusers, %.3f s without; resident %.1f MB after a minute, %.1f MB at "
          "the end, %.1f MB at most; descriptors at the end %d; KV blocks in use %d" %
          ([counts for counts, _ in reports], len(waits[True]), len(waits[False]), p99[True], p99[False], early[0] / 1e6, end[0] / 1e6,
           peak / 1e6, end[1], s.stats()["kv_blocks_used"]))
    check(end[0] < 1.05 * early[0] + 4e6, "resident bytes grew from %d to %d" % (early[0], end[0]))
    same(end[1], fresh[1], "descriptors at the end")
    check(p99[True] < 2 * p99[False], "p99 of small requests: %.3f s, %.3f s without abusers" % (p99[True], p99[False]))
    same(s.stop(), 0, "exit code")


run({"bytes": bytes_, "slow": slow, "soak": soak})
