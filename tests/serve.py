# SPDX-License-Identifier: Apache-2.0
"""glowq serve as its clients meet it. Called by cli/serve.sh in an empty folder:
    serve.py WHAT RANKS     WHAT: api | limits | loading | lost (LOST_RUNS); clients: OpenAI's
Truth comes from the other commands (generate, eval, tokenize), from the same request made alone, and from the interface's
definition."""
import concurrent.futures as futures, http.client, json, os, random, re, shutil, signal, socket, subprocess, sys, time

from serve_help import DENSE, GLOWQ, MPIEXEC, PATIENCE_S, PROMPTS, SOURCE, TINY, Server, check, glowq, processes, run, same, text_of

# ---- the interface -------------------------------------------------------------------------------------------------


def test_short_answers(s):
    for path, word in (("/health", "ok"), ("/readyz", "ok")):
        status, body, r = s.ask("GET", path)
        same((status, body["status"]), (200, word), path)
        check(r.getheader("X-Request-Id"), path + " has no request id")
    status, body, _ = s.ask("GET", "/v1/models")
    same((body["object"], body["data"][0]["id"], body["data"][0]["max_model_len"]), ("list", "dense", 512), "models")
    status, page, r = s.ask("GET", "/")
    check(status == 200 and b"<!doctype html>" in page and b"http://" not in page and b"https://" not in page, "page")
    status, text, _ = s.ask("GET", "/metrics")
    lines = text.decode().splitlines()
    for line in lines:
        check(line.startswith("# ") or re.fullmatch(r'[a-z_:0-9]+\{model_name="dense"(,[a-z_]+="[^"]*")?\} [-+0-9.e]+', line),
              "metrics: " + line)
    for name in ("vllm:num_requests_running", "vllm:kv_cache_usage_perc", "vllm:time_to_first_token_seconds_bucket"):
        check(any(line.startswith(name + "{") for line in lines), "metrics without " + name)
    info = s.ask("GET", "/tokenizer_info")[1]
    same((info["bos_token"], info["model_max_length"]), ("<|begin_of_text|>", 512), "tokenizer_info")
    for text in PROMPTS + ["", "a\u0000b", "\U0001f600 <|begin_of_text|>"]:
        ids = s.ask("POST", "/tokenize", {"prompt": text})[1]
        back = s.ask("POST", "/detokenize", {"tokens": ids["tokens"][1:]})[1]
        same((back["prompt"], len(ids["tokens"])), (text, ids["count"]), "tokenize and back")


def test_texts(s):
    for prompt in PROMPTS:
        wanted = glowq("generate", "-m", DENSE, "-p", prompt, "-n", "40")
        a = s.complete(prompt=prompt, max_tokens=40, temperature=0)
        choice = a["choices"][0]
        same((choice["text"], choice["finish_reason"]), (wanted["text"], wanted["finish"]), "text of " + prompt)
        usage = a["usage"]
        same(usage["prompt_tokens"], len(wanted["prompt_ids"]), "prompt tokens")
        same(usage["total_tokens"], usage["prompt_tokens"] + usage["completion_tokens"], "total tokens")
        same(s.text(wanted["prompt_ids"], max_tokens=40, temperature=0), wanted["text"], "text of ids")
        events = s.stream(prompt=prompt, max_tokens=40, temperature=0, stream_options={"include_usage": True})
        same(text_of(events), wanted["text"], "stream of " + prompt)
        same((events[-1], events[-2]["choices"], {k: events[-2]["usage"][k] for k in ("prompt_tokens", "completion_tokens")}),
             (None, [], {k: usage[k] for k in ("prompt_tokens", "completion_tokens")}), "end of a stream")
        same([e["choices"][0]["finish_reason"] for e in events[:-2]][-1], choice["finish_reason"], "finish of a stream")
    many = s.complete(prompt=PROMPTS, max_tokens=12, temperature=0)["choices"]
    same([c["index"] for c in many], list(range(len(PROMPTS))), "indices")
    for c, prompt in zip(many, PROMPTS):
        same(c["text"], s.text(prompt, max_tokens=12, temperature=0), "one of several prompts")


def test_sampling(s):
    ask = dict(prompt="Once", max_tokens=24, temperature=1, top_p=0.95, seed=7)
    a = [c["text"] for c in s.complete(n=3, **ask)["choices"]]
    same([c["text"] for c in s.complete(n=3, **ask)["choices"]], a, "a seed")
    check(len(set(a)) > 1, "n texts are all the same")
    same(s.text(**ask), a[0], "the first of n")
    forced = s.complete(prompt="Once", max_tokens=6, temperature=1, logit_bias={"70": 100}, logprobs=0)["choices"][0]["logprobs"]
    same(len(set(forced["tokens"])), 1, "tokens of a bias of 100")
    first = s.complete(prompt="Once", max_tokens=1, temperature=0, logprobs=0)["choices"][0]["text"]
    greedy = s.ask("POST", "/tokenize", {"prompt": "Once" + first})[1]["tokens"][-1]
    check(s.text("Once", max_tokens=1, temperature=0, logit_bias={str(greedy): -100}) != first, "a bias of -100")
    base = s.text("Once upon a time", max_tokens=60, temperature=0)
    check(s.text("Once upon a time", max_tokens=60, temperature=0, repetition_penalty=1.5) != base, "repetition penalty")
    same(s.text("Once upon a time", max_tokens=60, temperature=0.8, top_k=1), base, "top_k 1 is greedy")
    same(s.text("Once upon a time", max_tokens=60, temperature=0.8, min_p=1), base, "min_p 1 is greedy")


def test_stops(s):
    whole = s.text("Once upon a time", max_tokens=60, temperature=0)
    for begin in range(2, 40, 3):
        for n in (1, 2, 5, 9):
            stop = whole[begin:begin + n]
            wanted = whole[:whole.index(stop)]
            ask = dict(prompt="Once upon a time", max_tokens=60, temperature=0, stop=["never so", stop])
            c = s.complete(**ask)["choices"][0]
            same((c["text"], c["finish_reason"]), (wanted, "stop"), "stop %r" % stop)
            if n == 5:
                same(text_of(s.stream(**ask)), wanted, "stream with stop %r" % stop)
    c = s.complete(prompt="Once upon a time", max_tokens=60, temperature=0, stop=[whole[-8:] + "?", "\u00fc"])["choices"][0]
    same((c["text"], c["finish_reason"]), (whole, "length"), "a stop string that is begun and never ends")


def test_logprobs(s):
    text = open(SOURCE + "/tests/golden/text.txt").read()[:2000]
    open("text.txt", "w").write(text)
    ids = s.ask("POST", "/tokenize", {"prompt": text})[1]["tokens"][:480]
    nll = glowq("eval", "-m", DENSE, "--text", "text.txt", "--protocol", "windows", "--ctx", "480", "--max-tokens", "479",
                "--per-token-nll")["token_nll"]
    a = s.complete(prompt=ids, max_tokens=1, temperature=0, echo=True, logprobs=1)["choices"][0]
    l = a["logprobs"]
    same({len(l[k]) for k in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}, {len(ids) + 1}, "echo's lengths")
    same((l["token_logprobs"][0], l["top_logprobs"][0]), (None, None), "echo's first entry")
    check(len(nll) >= 470 and all(abs(x + y) < 1e-5 for x, y in zip(l["token_logprobs"][1:], nll)), "echo differs from eval")
    for i in range(1, len(ids) + 1):
        top = l["top_logprobs"][i]
        check(l["token_logprobs"][i] in top.values() and max(top.values()) >= l["token_logprobs"][i], "top of %d" % i)
        check(a["text"][l["text_offset"][i]:].startswith(l["tokens"][i]), "offset of %d" % i)
    same(l["token_logprobs"][-1], max(l["top_logprobs"][-1].values()), "the greedy token is the most probable")
    same("".join(l["tokens"][1:]), a["text"], "tokens make the text")
    e = s.stream(prompt=ids, max_tokens=3, temperature=0, echo=True, logprobs=1)
    streamed = [x for v in e if v for x in v["choices"][0]["logprobs"]["token_logprobs"]]
    same((streamed[:len(ids) + 1], len(streamed)), (l["token_logprobs"], len(ids) + 3), "streamed echo")
    c = s.complete(prompt=ids, max_tokens=0, echo=True, logprobs=5)["choices"][0]
    same(c["logprobs"]["token_logprobs"], l["token_logprobs"][:-1], "echo alone")
    check(all(len(t) >= 5 for t in c["logprobs"]["top_logprobs"][1:]), "five of the top")


def test_bad_requests(s):
    good = {"prompt": "x", "max_tokens": 1}
    cases = [({"temperature": -1}, "temperature"), ({"temperature": "hot"}, "temperature"), ({"top_p": 1.5}, "top_p"),
             ({"n": 0}, "n"), ({"n": 9}, "n"), ({"n": 1.5}, "n"), ({"logprobs": 21}, "logprobs"), ({"logprobs": True}, "logprobs"),
             ({"max_tokens": -1}, "max_tokens"), ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": 1 << 40}, "max_tokens"),
             ({"stop": ["a"] * 17}, "stop"), ({"stop": ""}, "stop"), ({"stop": [1]}, "stop"), ({"stop": "a" * 2000}, "stop"),
             ({"prompt": None}, "prompt"), ({"prompt": ""}, None), ({"prompt": []}, "prompt"), ({"prompt": [[]]}, "prompt"),
             ({"prompt": [1, "a"]}, "prompt"), ({"prompt": [-1]}, "prompt"), ({"prompt": [512000]}, "prompt"), ({"prompt": {}}, "prompt"),
             ({"prompt": ["x"] * 300}, "prompt"), ({"logit_bias": {"a": 1}}, "logit_bias"), ({"logit_bias": {"1": 200}}, "logit_bias"),
             ({"logit_bias": [1]}, "logit_bias"), ({"stream": "yes"}, "stream"), ({"stream_options": {}}, "stream_options"),
             ({"suffix": "x"}, "suffix"), ({"best_of": 3}, "best_of"), ({"seed": "s"}, "seed"), ({"echo": 1}, "echo"),
             ({"repetition_penalty": 0}, "repetition_penalty"), ({"stop_token_ids": [-4]}, "stop_token_ids"),
             ({"response_format": {"type": "json_object"}}, "response_format"), ({"model": 5}, "model")]
    for bad, param in cases:
        if bad == {"prompt": ""}:
            continue  # BOS alone is a prompt
        status, body, _ = s.ask("POST", "/v1/completions", {**good, **bad})
        same((status, body["error"]["type"], body["error"]["param"]), (400, "invalid_request_error", param), str(bad)[:60])
        check(len(body["error"]["message"]) < 200, "a long message: " + str(bad)[:60])
    status, body, _ = s.ask("POST", "/v1/completions", {**good, "model": "other"})
    same((status, body["error"]["code"]), (404, "model_not_found"), "another model")
    status, body, _ = s.ask("POST", "/v1/completions", {**good, "prompt": "word " * 3000})
    same((status, body["error"]["code"]), (400, "context_length_exceeded"), "a long prompt")
    same(s.ask("POST", "/v1/completions", {**good, "prompt": [5] * 511})[0], 200, "a prompt that just fits")
    same(s.ask("POST", "/v1/completions", {**good, "prompt": [5] * 512})[0], 400, "a prompt that just doesn't")
    # a length that is asked for has to fit beside the prompt, to the token; one that isn't named is cut to what fits
    ids = [5] * 500
    for long, status in (({"max_tokens": 12}, 200), ({"max_tokens": 13}, 400), ({"max_completion_tokens": 13}, 400),
                         ({"max_tokens": 13, "stream": True}, 400), ({"max_tokens": None}, 200), ({}, 200)):
        answer = s.ask("POST", "/v1/completions", {"prompt": ids, "ignore_eos": True, **long})
        same(answer[0], status, "500 ids and " + str(long))
        if status == 200:
            same((answer[1]["choices"][0]["finish_reason"], answer[1]["usage"]["completion_tokens"]), ("length", 12), "what is left")
        else:
            same((answer[1]["error"]["code"], answer[1]["error"]["param"]), ("context_length_exceeded", "prompt"), str(long))
            check("500 tokens and max_tokens is 13; this server takes 512" in answer[1]["error"]["message"], str(answer[1]))
    chat = {"messages": [{"role": "user", "content": "Who is there?"}], "ignore_eos": True}
    status, body, _ = s.ask("POST", "/v1/chat/completions", {**chat, "max_tokens": 512})
    same((status, body["error"]["code"], body["error"]["param"]), (400, "context_length_exceeded", "messages"), "a chat of 512 and more")
    status, body, _ = s.ask("POST", "/v1/chat/completions", chat)
    same((status, body["usage"]["total_tokens"]), (200, 512), "a chat of no named length")
    for raw in (b"", b"{", b"[]", b"null", b'{"prompt": "x"} ', b'{"prompt": "x", "prompt": "y"}', b'{"prompt": "\xff"}',
                b'{"prompt": "\\ud800"}', b'{"n": 1e999, "prompt": "x"}', b'{"n": 99999999999999999999, "prompt": "x"}',
                b"[" * 100000, b'{"a":' * 100000, b'{"prompt": ' + b"[" * 65 + b"]" * 65 + b"}", b"\0" * 100, b"{'prompt': 1}"):
        status, body, _ = s.ask("POST", "/v1/completions", raw)
        same(status, 200 if raw.endswith(b"} ") else 400, repr(raw[:40]))
        check(len(json.dumps(body)) < 2000, "input echoed: " + repr(raw[:40]))
    for method, path, wanted in (("GET", "/v1/completions", 405), ("POST", "/health", 405), ("DELETE", "/v1/models", 405),
                                 ("GET", "/nothing", 404), ("GET", "/" + "a" * 5000, 404), ("OPTIONS", "/v1/completions", 405)):
        same(s.ask(method, path)[0], wanted, method + " " + path[:20])
    status, body, _ = s.ask("POST", "/v1/completions", b'{"prompt": "x"}', {"Content-Type": "text/plain"})
    same(status, 415, "another content type")
    same(s.ask("POST", "/v1/completions", {**good, "user": "u", "unknown": [1], "top_k": None})[0], 200, "unknown members")


def test_random_bytes(s):
    r = random.Random(5)
    for _ in range(150):
        raw = bytes(r.randrange(256) for _ in range(r.randrange(1, 200)))
        status = s.ask("POST", "/v1/completions", raw)[0]
        check(400 <= status < 500, "random body: %d" % status)
        text = raw.decode("utf-8", "replace") if r.random() < 0.5 else "".join(chr(r.choice((r.randrange(128), r.randrange(
            0xd7ff), r.randrange(0xe000, 0x110000)))) for _ in range(r.randrange(1, 60)))
        status, body, _ = s.ask("POST", "/v1/completions", {"prompt": text, "max_tokens": 1})
        check(status == 200 or body["error"]["code"] == "context_length_exceeded", "random text: %d %s" % (status, body))


def test_load(s):
    """Texts under load are those of the request alone; who leaves, leaves nothing behind."""
    r = random.Random(11)
    asks = [dict(prompt=" ".join(r.choices(PROMPTS, k=r.randrange(1, 4))), max_tokens=r.randrange(1, 60),
                 temperature=r.choice((0, 0.9)), seed=r.randrange(1 << 40)) for _ in range(40)]
    alone = [s.text(**a) for a in asks]

    def leave(i):
        ask = {"prompt": "Once", "max_tokens": 400, "ignore_eos": True, "stream": i % 2 == 0}
        if ask["stream"]:
            c, response = s.open("POST", "/v1/completions", ask)
            response.read(200)
            c.close()
            return
        k = socket.create_connection(("127.0.0.1", s.port))
        body = json.dumps(ask).encode()
        k.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" %
                  len(body) + body)
        time.sleep(0.05)
        k.close()

    with futures.ThreadPoolExecutor(12) as pool:
        leavers = [pool.submit(leave, i) for i in range(20)]
        streamed = [pool.submit(lambda a=a: text_of(s.stream(**a))) for a in asks]
        got = [pool.submit(lambda a=a: s.text(**a)) for a in asks]
        for a, wanted, x, y in zip(asks, alone, streamed, got):
            same(x.result(), wanted, "stream under load of %s" % a)
            same(y.result(), wanted, "text under load of %s" % a)
        for x in leavers:
            x.result()
    s.idle()


def test_chat(ranks):
    """The bundled model with another template."""
    shutil.copytree(DENSE, "chat")
    with open("chat/chat_template.jinja", "w") as f:
        f.write("{{ bos_token }}{% for m in messages %}{{ m['role'] + ': ' + m['content'] | trim + '\\n' }}{% endfor %}"
                "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}{% if messages | length > 5 %}"
                "{{ raise_exception('too many messages') }}{% endif %}")
    s = Server("chat", ranks)
    messages = [{"role": "system", "content": "Tell a story."}, {"role": "user", "content": " Once upon a time \u00fc"}]
    written = "system: Tell a story.\nuser: Once upon a time \u00fc\nassistant:"
    wanted = s.complete(prompt=written, max_tokens=30, temperature=0)
    status, a, _ = s.ask("POST", "/v1/chat/completions", {"messages": messages, "max_tokens": 30, "temperature": 0,
                                                          "logprobs": True, "top_logprobs": 2})
    c = a["choices"][0]
    same((status, c["message"]["role"], c["message"]["content"]), (200, "assistant", wanted["choices"][0]["text"]), "chat")
    same(a["usage"]["prompt_tokens"], wanted["usage"]["prompt_tokens"], "the template's tokens")
    content = c["logprobs"]["content"]
    same(b"".join(bytes(t["bytes"]) for t in content).decode(), c["message"]["content"], "bytes of tokens")
    check(all(t["top_logprobs"][0]["logprob"] >= t["logprob"] and len(t["top_logprobs"]) == 2 for t in content), "top")
    parts = [messages[0], {"role": "user", "content": [{"type": "text", "text": " Once upon"}, {"type": "text", "text": " a time \u00fc"}]}]
    events = s.stream("/v1/chat/completions", messages=parts, max_completion_tokens=30, temperature=0)
    deltas = [e["choices"][0]["delta"] for e in events[:-1]]
    same(("".join(d.get("content", "") for d in deltas), deltas[0]["role"], events[-1]),
         (c["message"]["content"], "assistant", None), "streamed chat")
    # what a user writes is never a special token, unless he is allowed to
    ask = {"messages": [{"role": "user", "content": "a<|begin_of_text|>b"}], "max_tokens": 1}
    plain = s.ask("POST", "/v1/chat/completions", ask)[1]["usage"]["prompt_tokens"]
    special = s.ask("POST", "/v1/chat/completions", {**ask, "parse_special": True})[1]["usage"]["prompt_tokens"]
    check(plain > special + 3, "a user wrote a special token: %d, %d tokens" % (plain, special))
    for bad, param in (({"messages": None}, "messages"), ({"messages": []}, "messages"), ({"messages": ["x"]}, "messages"),
                       ({"messages": [{"role": "user", "content": 5}]}, "messages"), ({"messages": [{"content": "x"}]}, "messages"),
                       ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "messages"),
                       ({"messages": messages * 3}, "messages"), ({"top_logprobs": 2}, "top_logprobs"),
                       ({"logprobs": 2}, "logprobs"), ({"tools": [{}]}, "tools"), ({"max_tokens": 0}, "max_tokens")):
        status, body, _ = s.ask("POST", "/v1/chat/completions", {"messages": messages, **bad})
        same((status, body["error"]["param"]), (400, param), "chat with " + str(bad)[:70])
    same(s.stop(), 0, "exit code")


def test_load_generator(s):
    with open("trace.txt", "w") as f:
        f.write("# prompt generate seconds\n" + "".join("%d %d %g\n" % (5 + i, 3 + i, i / 50) for i in range(10)))
    port = ["--port", str(s.port)]
    for args, n, tokens in ((["-n", "20", "--clients", "4", "--prompt", "30", "--generate", "9"], 20, 180),
                            (["-n", "20", "--rate", "50", "--prompt", "30", "--generate", "9"], 20, 180),
                            (["--trace", "trace.txt"], 10, sum(range(3, 13)))):
        r = glowq("bench-serve", *port, *args)
        same((r["answered"], r["failed"], r["tokens"]), (n, 0, tokens), "load of " + " ".join(args))
        for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
            check(0 <= r[name]["p50"] <= r[name]["p90"] <= r[name]["p99"] <= r[name]["max"], "percentiles of " + name)
        check(r["e2e_s"]["p99"] == r["e2e_s"]["max"], "p99 of fewer than 100 by nearest rank is the largest")
        same(r["first_failure"], None, "failure of requests that are answered")
        check(r["e2e_s"]["p50"] > 0, "answers that took no time")  # tokens can arrive together: the time between them may be 0
        check(r["ttft_s"]["max"] <= r["e2e_s"]["max"], "the first token after the last")
    rows = subprocess.run([GLOWQ, "bench-serve", *port, "-n", "3", "--prompt", "500", "--generate", "12", "--csv"],
                          stdout=subprocess.PIPE, text=True).stdout.splitlines()
    same([row.split(",")[3] for row in rows], ["status", "200", "200", "200"], "csv")
    too_long = subprocess.run([GLOWQ, "bench-serve", *port, "-n", "2", "--prompt", "600"], capture_output=True, text=True)
    check(too_long.returncode == 1 and "answered none" in too_long.stderr, "load that is refused")
    check("as it should: 400: " in too_long.stderr and "600" in too_long.stderr, "why a load is refused: " + too_long.stderr)
    check("p99" not in too_long.stdout, "percentiles of nothing")
    none = subprocess.run([GLOWQ, "bench-serve", *port, "-n", "2", "--prompt", "600", "--json"], stdout=subprocess.PIPE, text=True)
    none = json.loads(none.stdout)
    same((none["ttft_s"]["p50"], none["e2e_s"]["max"], none["first_failure"][:5]), (None, None, "400: "), "load that is refused, as JSON")


def test_broken_characters(ranks):
    """A model of random weights writes bytes that are no characters."""
    s = Server(TINY, ranks)
    status, body, _ = s.ask("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})
    same((status, body["error"]["code"]), (400, "no_chat_template"), "chat without a template")
    for seed in range(25):
        ask = dict(prompt="\u00fc", max_tokens=60, temperature=1.5, seed=seed, ignore_eos=True)
        whole = s.text(**ask)
        same(text_of(s.stream(**ask)), whole, "stream of seed %d" % seed)
        ids = s.complete(logprobs=0, **ask)["choices"][0]
        same(ids["text"], whole, "text with logprobs")
    same(s.stop(), 0, "exit code")


def api(ranks):
    s = Server(DENSE, ranks, "--access-log", "access.log", "--drain-timeout", "600")
    for test in (test_short_answers, test_texts, test_sampling, test_stops, test_logprobs, test_bad_requests, test_random_bytes,
                 test_load, test_load_generator):
        begin = time.time()
        test(s)
        print("%s: %.1f s" % (test.__name__, time.time() - begin))
    # a drain: what is under way is finished, new requests are refused, health goes on
    c, r = s.open("POST", "/v1/completions", {"prompt": "Once", "max_tokens": 450, "ignore_eos": True, "stream": True})
    r.read(100)
    s.process.send_signal(signal.SIGUSR1 if ranks > 1 else signal.SIGTERM)
    refused = None
    try:
        for _ in range(200):
            status, body, _ = s.ask("POST", "/v1/completions", {"prompt": "x", "max_tokens": 1})
            if status != 200:
                refused = (status, body["error"]["code"])
                break
    except OSError:
        refused = (503, "draining")  # the stream was finished and the server gone in the meantime
    same(refused, (503, "draining"), "a request to a server that drains")
    check(r.read().endswith(b"data: [DONE]\n\n"), "a drain cut a stream off")
    c.close()
    same(s.process.wait(PATIENCE_S), 0, "exit code after a drain")
    lines = [json.loads(line) for line in open("access.log")]
    check(all({"time", "request_id", "method", "path", "status", "seconds"} <= set(l) for l in lines) and len(lines) > 100,
          "access log")
    test_broken_characters(ranks)
    test_chat(ranks)


# ---- limits --------------------------------------------------------------------------------------------------------


def limits(ranks):
    s = Server(DENSE, ranks, "--max-sequences", "2", "--max-queue", "2", "--api-key", "k")
    key = {"Authorization": "Bearer k"}
    same(s.ask("GET", "/health")[0], 200, "health without a key")
    for path in ("/v1/models", "/metrics", "/readyz", "/stats", "/nothing"):
        same(s.ask("GET", path)[0], 401, path + " without a key")
        same(s.ask("GET", path, None, {"Authorization": "Bearer kk"})[0], 401, path + " with a wrong key")
    same(s.ask("GET", "/v1/models", None, key)[0], 200, "with the key")
    long = {"prompt": "Once", "max_tokens": 500, "ignore_eos": True}
    with futures.ThreadPoolExecutor(16) as pool:
        replies = [x.result() for x in [pool.submit(s.ask, "POST", "/v1/completions", long, key) for _ in range(16)]]
    statuses = sorted(r[0] for r in replies)
    check(set(statuses) == {200, 429}, "statuses of a full queue: %s" % statuses)
    for status, body, r in replies:
        if status == 429:
            same((body["error"]["type"], int(r.getheader("Retry-After")) > 0), ("rate_limit_error", True), "429")
    status, body, _ = s.ask("POST", "/v1/completions", {**long, "prompt": ["x"] * 8}, key)
    same(status, 400, "more prompts than may wait")
    same(s.stop(), 0, "exit code")
    s = Server(DENSE, ranks, "--request-timeout", "0.001")
    status, body, r = s.ask("POST", "/v1/completions", long)
    same((status, body["error"]["code"], r.getheader("x-should-retry")), (408, "timeout", "false"), "a deadline")
    same(s.stop(), 0, "exit code")
    for args, word in ((["--host", "0.0.0.0"], "--insecure"), (["--port", "99999"], "65535"), (["--host", "no.such.host.invalid"], "")):
        p = subprocess.run([GLOWQ, "serve", "-m", DENSE, *args] + (["--insecure"] if "no" in args[-1][:2] else []), capture_output=True,
                           text=True)
        check(p.returncode == (2 if word else 1) and word in p.stderr, "%s: %d %s" % (args, p.returncode, p.stderr))
    s = Server(DENSE, 1)
    p = subprocess.run([GLOWQ, "serve", "-m", DENSE, "--port", str(s.port)], capture_output=True, text=True)
    check(p.returncode == 1 and "in use" in p.stderr, "a port that is taken: %d %s" % (p.returncode, p.stderr))
    same(s.stop(), 0, "exit code")


# ---- a lost rank ---------------------------------------------------------------------------------------------------


def lose(ranks, how, victim, r):
    """A rank is lost in mid-stream: seconds until the stream's client knows (None: rank 0, who would tell him) and until all ended."""
    os.environ["GLOWQ"], os.environ["MPIRUN"] = GLOWQ, MPIEXEC
    s = Server(DENSE, ranks, "--linger", "3", launch=[SOURCE + "/launch/serve.sh", str(ranks)])
    c, answer = s.open("POST", "/v1/completions", {"prompt": "Once", "max_tokens": 490, "ignore_eos": True, "stream": True, "n": 8})
    answer.read(r.randrange(1, 2000))
    os.kill(processes()[victim], how)
    begin, told, what = time.monotonic(), None, "%s of rank %d" % (how.name, victim)
    if victim > 0:
        rest = answer.read()
        told = time.monotonic() - begin
        check(b'"error"' in rest and b"rank %d" % victim in rest and b"[DONE]" not in rest, "%s: no error event: %r" % (what, rest[-200:]))
        status, body, _ = s.ask("GET", "/health")
        same((status, body["status"]), (503, "dead"), "health after " + what)
        status, body, _ = s.ask("POST", "/v1/completions", {"prompt": "x"})
        same((status, body["error"]["code"]), (503, "engine_dead"), "a request after " + what)
    same(s.process.wait(PATIENCE_S), 6, "exit code after " + what)
    ended = time.monotonic() - begin
    c.close()
    time.sleep(1)
    same(processes(), {}, "ranks left after " + what)
    return told, ended


def lost(ranks):
    """LOST_RUNS (1) times a KILL and a STOP, then a KILL of rank 0."""
    r = random.Random(3)
    kills, stops = [], []
    for _ in range(int(os.environ.get("LOST_RUNS", 1))):
        kills.append(lose(ranks, signal.SIGKILL, r.randrange(1, ranks), r))
        stops.append(lose(ranks, signal.SIGSTOP, r.randrange(1, ranks), r))
        lose(ranks, signal.SIGKILL, 0, r)
    for how, runs in (("KILL", kills), ("STOP", stops)):
        print("%s: %d runs; told after %.2f s at most, all ended after %.1f s at most (3 s of them --linger)" %
              (how, len(runs), max(t for t, _ in runs), max(e for _, e in runs)))


# ---- loading -------------------------------------------------------------------------------------------------------


def start_slowly(launcher, ms, *options):
    """A server that loads from a disk of so many milliseconds a read, as soon as it says so: its process, port."""
    with open("slow.sh", "w") as f:
        f.write('#!/bin/sh\nLD_PRELOAD=%s SLOW_MS=%d exec "%s" "$@"\n' % (os.environ["SLOW_READ"], ms, GLOWQ))
    os.chmod("slow.sh", 0o755)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    p = subprocess.Popen(launcher + ["--model", DENSE, "--port", str(port), *options], stdout=subprocess.DEVNULL,
                         stderr=open("server.err", "w"))
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        try:
            status, body = health(port)
            same((status, body["status"]), (503, "loading"), "health while it loads")
            return p, port
        except OSError:
            time.sleep(0.05)
    sys.exit("FAIL: no server: " + open("server.err").read())


def health(port):
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    c.request("GET", "/health")
    r = c.getresponse()
    return r.status, json.loads(r.read())


def gone(p, code, what):
    same(p.wait(PATIENCE_S), code, "exit code after " + what)
    until = time.monotonic() + PATIENCE_S
    while processes() and time.monotonic() < until:
        time.sleep(0.05)
    same(processes(), {}, "ranks left after " + what)


def loading(ranks):
    """A server that is stopped, or loses a rank, while it loads what would take it minutes."""
    if "SLOW_READ" not in os.environ:
        print("skipped: SLOW_READ, slow_read.c as a library, isn't named")
        sys.exit(77)
    os.environ["GLOWQ"], os.environ["MPIRUN"] = "./slow.sh", MPIEXEC
    script = [SOURCE + "/launch/serve.sh", str(ranks)]
    mpirun = [MPIEXEC, "-n", str(ranks), "./slow.sh", "serve"]
    alone = ["./slow.sh", "serve"]
    for launcher, how in ((alone, signal.SIGTERM), (alone, signal.SIGINT), (mpirun, signal.SIGUSR1), (script, signal.SIGTERM)):
        p, _ = start_slowly(launcher, 1000)
        p.send_signal(how)
        gone(p, 0, "%s to %s" % (how.name, launcher[0]))
        check("the model isn't loaded yet" in open("server.err").read(), "nothing is said of a stop: " + open("server.err").read())
    p, _ = start_slowly(mpirun, 1000)
    os.kill(processes()[0], signal.SIGTERM)
    gone(p, 0, "TERM to rank 0")
    p, _ = start_slowly(alone, 3600000)  # a disk that doesn't answer
    p.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    p.send_signal(signal.SIGTERM)
    gone(p, 0, "two TERM")
    p, port = start_slowly(script, 1000, "--linger", "3")
    os.kill(processes()[1], signal.SIGKILL)
    until = time.monotonic() + PATIENCE_S
    while health(port)[1]["status"] != "dead" and time.monotonic() < until:
        time.sleep(0.05)
    gone(p, 6, "KILL of rank 1")


# ---- OpenAI's client -----------------------------------------------------------------------------------------------


def clients(ranks):
    """The official client of OpenAI's interface, where it is installed: PYTHON names the interpreter that has it."""
    try:
        import openai
    except ImportError as e:
        print("skipped: %s" % e)
        sys.exit(77)
    s = Server(DENSE, ranks, "--max-sequences", "2", "--max-queue", "2")
    seen = []  # statuses of all answers

    def client_of(retries):
        hooks = {"response": [lambda r: seen.append(r.status_code)]}
        return openai.OpenAI(base_url="http://127.0.0.1:%d/v1" % s.port, api_key="none", max_retries=retries,
                             http_client=openai.DefaultHttpxClient(event_hooks=hooks, timeout=PATIENCE_S))

    client = client_of(0)
    ask = dict(model="dense", prompt="Once upon a time", max_tokens=30, temperature=0)
    wanted = s.text("Once upon a time", max_tokens=30, temperature=0)
    same([m.id for m in client.models.list()], ["dense"], "models")
    a = client.completions.create(logprobs=2, **ask)
    same((a.choices[0].text, a.usage.completion_tokens), (wanted, 30), "completion")
    same({len(a.choices[0].logprobs.tokens), len(a.choices[0].logprobs.top_logprobs)}, {30}, "logprobs")
    events = list(client.completions.create(stream=True, stream_options={"include_usage": True}, **ask))
    same(("".join(c.text for e in events for c in e.choices), events[-1].usage.completion_tokens), (wanted, 30), "stream")
    chat = dict(model="dense", messages=[{"role": "user", "content": "Who is there?"}], max_tokens=20, temperature=0)
    a = client.chat.completions.create(logprobs=True, top_logprobs=2, **chat).choices[0]
    same("".join(c.delta.content or "" for e in client.chat.completions.create(stream=True, **chat) for c in e.choices),
         a.message.content, "streamed chat")
    same("".join(t.token for t in a.logprobs.content), a.message.content, "the chat's tokens")
    for bad, error in (({"temperature": -1}, openai.BadRequestError), ({"model": "other"}, openai.NotFoundError)):
        try:
            client.completions.create(**{**ask, **bad})
            check(False, "%s was taken" % bad)
        except error as e:
            check(e.body["message"], "an error without a message")
    # a full queue: it tries again when Retry-After says
    del seen[:]
    with futures.ThreadPoolExecutor(12) as pool:
        texts = [x.result() for x in [pool.submit(lambda: client_of(100).completions.create(
            **{**ask, "max_tokens": 200}, extra_body={"ignore_eos": True}).choices[0].text) for _ in range(12)]]
    check(len(set(texts)) == 1 and texts[0].startswith(wanted), "texts of a full queue")
    check(seen.count(200) == 12 and set(seen) == {200, 429}, "statuses of a full queue: %s" % seen)
    print("a full queue: %d answers, %d of 429 before them" % (seen.count(200), seen.count(429)))
    # a server that drains and is started anew: the client waits for its successor
    del seen[:]
    c, r = s.open("POST", "/v1/completions", {"prompt": "Once", "max_tokens": 450, "ignore_eos": True, "stream": True, "n": 2})
    r.read(100)
    s.process.send_signal(signal.SIGUSR1 if ranks > 1 else signal.SIGTERM)
    while s.ask("GET", "/readyz")[0] != 503:
        pass
    with futures.ThreadPoolExecutor(1) as pool:
        text = pool.submit(lambda: client_of(10).completions.create(**ask).choices[0].text)
        r.read()
        c.close()
        same(s.process.wait(PATIENCE_S), 0, "exit code after a drain")
        s = Server(DENSE, ranks, port=s.port)
        same(text.result(), wanted, "the successor's text")
    check(seen[0] == 503 and seen[-1] == 200 and set(seen) <= {200, 503}, "statuses of a restart: %s" % seen)
    print("a restart: %s" % seen)
    same(s.stop(), 0, "exit code")


run({"api": api, "loading": loading, "limits": limits, "lost": lost, "clients": clients})
