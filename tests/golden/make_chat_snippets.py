#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Small templates, one construct each, as transformers (>= 5, with jinja2 3.1.6) renders them -> chat/snippets.json
(and ../fuzz/seeds/template):
{"messages", "extra", "snippets": [[template, text or null]]}; null: rendering fails. Run again: the same bytes."""
import json
import os

from make_chat import CHATS, Clock, render

from transformers.utils import chat_template_utils

EXTRA = {"s": "Hello, World", "u": "héllo 中文 🙂", "n": 7, "f": 2.5, "t": True, "none_v": None, "l": [3, 1, 2], "words": ["b", "A", "c", "a"],
         "d": {"b": 1, "a": [1, 2, {"x": None}], "é": "ü", "items": "shadow"}, "rows": [{"k": "x", "v": 3}, {"k": "y", "v": 1}, {"k": "Z", "v": 2}],
         "empty": [], "nested": {"a": {"b": [10, {"c": "deep"}]}}, "lines": "one\n\n  two\r\nthree", "e": "", "big": 9007199254740993, "neg": -7, "bos_token": "<s>"}

EXPRESSIONS = r"""
1 + 2 * 3 ** 2 - 4 / 2|7 // 2|-7 // 2|7 % 3|-7 % 3|7 % -3|7.5 // 2|-7.5 % 2|2 ** -1|2 ** 10|1 / 3|1e16|1.0|1e-5|123456789.123|0.1 + 0.2|-0.0|1_000|0x1F|0b101|0o17|100 * 1.1|5e-324|1.7976931348623157e308|3.0 * 2
1 == 1.0|true == 1|"1" == 1|none == none|[1, 2] == [1.0, 2]|(1, 2) == [1, 2]|{"a": 1} == {"a": 1.0}|1 < 2 < 3|1 < 3 < 2|1 < 2 > 0 != 5|"a" < "b"|"Z" < "a"|[1, 2] < [1, 3]|"é" > "z"|big == 9007199254740992.0|big > 9007199254740992.0
1 in l|9 not in l|"World" in s|"x" in s|"b" in d|"zz" in d|2 in [1, 2.0]|none in [none]|"" in ""|"a" in undefined_name|not 1 in l
s ~ 1 ~ none ~ true ~ 1.5 ~ l ~ d|"a" "b" 'c'|"a" * 3|3 * "ab"|[1] * 2 + [2]|(1,) + (2, 3)|"%s is %d%%" % ("x", 5)|"%s" % s|"a" + "b" ~ "c"|"x" if t|"x" if not t|"x" if none_v else "y"|"a" if n > 9 else "b" if n > 8 else "c"
true and 0|0 or "x"|not none_v|not not s|1 and 2 or 3|none or false|undefined_name or "d"|n is defined and n > 3
s[0]|s[-1]|s[20] is defined|s[1:4]|s[:-3]|s[::-1]|s[::2]|s[-5:]|s[5:1]|s[5:1:-1]|s[10:2:-3]|u[1]|u[::-1]|u[6:8]|u[-1]|l[0]|l[-1]|l[5] is defined|l[1:]|l[::-1]|l[:]|l[-2:]|l[9:]|(1, 2, 3)[1:]|l[0:3:2]|l["0"] is defined|s["upper"]()|d["a"][2]["x"]|d.a[2].x|d.a.0|rows[0].k|nested.a.b[1].c|nested["a"]["b"][1]["c"]|l[true]|s[:none]
d.items is defined|d.items()|list(1)|d["items"]|d.get("b")|d.get("q")|d.get("q", 5)|d.keys() | list|d.values() | list|d.items() | list|d.keys()|d.values() | length|d.b|d.q is defined|d["é"]|d|l|rows|(1,)|()|[]|{}|[none, true, 1.5, "it's", 'say "x"', "both ' and \""]|"tab\tnl\n\\"|["tab\tnl\n\\ \x01 \x7f é 🙂 \u200b \xa0"]|{"a": (1, 2), 1: none, none: 2, true: 3, 2.5: []}
s.upper()|s.lower()|u.upper()|"ß straße".upper()|"HELLO wORLD it's 3rd".title()|"hELLO".capitalize()|"  x ".strip() ~ "|"|"  x ".lstrip() ~ "|"|"  x ".rstrip() ~ "|"|"xxayxx".strip("x")|"abcba".strip("ab")|"éaé".strip("é")|"\u00a0\u2003x\x1c".strip()|s.split()|s.split(", ")|s.split("l", 1)|"a,b,,c".split(",")|" a  b c ".split(none, 1)|"".split()|"".split(",")|"a b c d".rsplit(" ", 2)|"a  b c ".rsplit(none, 1)|"aXbXc".rsplit("X", 1)|lines.splitlines()|lines.splitlines(true)|s.startswith("Hell")|s.startswith(("x", "H"))|s.endswith("ld")|s.endswith("x")|s.replace("l", "L")|s.replace("l", "L", 2)|"ab".replace("", "-")|"aaa".replace("aa", "b")|", ".join(words)|"".join([])|s.find("o")|s.rfind("o")|s.find("zz")|u.find("中")|s.index("W")|s.count("l")|"aaa".count("aa")|"abc".count("")|"a=b=c".partition("=")|"a=b=c".rpartition("=")|"abc".partition("=")|"abc".rpartition("=")|"abcX".removesuffix("X")|"Xabc".removeprefix("X")|"abc".isalpha()|"ab1".isalnum()|"123".isdigit()|" \n".isspace()|"".isspace()|"ABC".isupper()|"aé".islower()|"A1".isupper()|l.index(1)|l.count(3)|words.index("c")
s | upper|s | lower|"hello wORLD-foo (bar) x_y" | title|"hELLO" | capitalize|"  x " | trim ~ "|"|"xxa" | trim("x")|none_v | trim|n | string + "x"|l | length|s | length|u | length|d | length|undefined_name | length|e | length|l | first|l | last|empty | first is defined|s | first|u | last|d | first|l | join|l | join("-")|words | join(", ")|rows | join(",", attribute="k")|s | join("-")|l | list|s | list|d | list|l | reverse | list|s | reverse|l | sort|l | sort(reverse=true)|words | sort|words | sort(case_sensitive=true)|rows | sort(attribute="v") | map(attribute="k") | list|rows | sort(attribute="k", reverse=true) | map(attribute="k") | join|words | unique | list|["a", "A", "b", "a"] | unique | list|l | max|l | min|words | max|rows | max(attribute="v")|empty | max is defined|l | sum|rows | sum(attribute="v")|[1, 2] | sum(start=0.5)
undefined_name | default("d")|none_v | default("d")|none_v | default("d", true)|e | d("x", boolean=true)|undefined_name | default|d | dictsort|{"B": 2, "a": 1} | dictsort|{"B": 2, "a": 1} | dictsort(true)|{"B": 2, "a": 1} | dictsort(by="value")|{"B": 2, "a": 1} | dictsort(reverse=true)|d | items | list|undefined_name | items | list|"3" | int|"3.9" | int|"x" | int|"x" | int(-1)|"0x1f" | int(base=16)|"ff" | int(0, 16)|2.99 | int|true | int|"1_0" | int|" 42 " | int|"3.5" | float|"x" | float|"1e3" | float|7 | float|neg | abs|-2.5 | abs|2.5 | round|3.5 | round|2.675 | round(2)|2.1 | round(method="ceil")|2.19 | round(1, "floor")|7 | round|-0.5 | round
lines | indent|lines | indent(2, true)|lines | indent("> ")|lines | indent(2, false, true)|e | indent ~ "|"|s | replace("o", "0")|s | replace("l", "L", 1)|n | replace("7", "8")|"<a href='x'>\"&" | escape|"<b>" | e|"<b>" | safe|"<b>" | safe ~ "<i>"|("<b>" | safe) + "<i>"|"<i>" + ("<b>" | safe)|("<b>" | e) | e|"<" | e is escaped|"<" is escaped
rows | selectattr("v", "gt", 1) | map(attribute="k") | list|rows | selectattr("k", "equalto", "y") | list|rows | selectattr("k", "==", "y") | list|rows | rejectattr("v", "in", [1, 2]) | list|rows | selectattr("q") | list|rows | selectattr("q", "defined") | list|rows | rejectattr("q", "defined") | list | length|l | select("odd") | list|l | reject("odd") | list|[0, 1, "", "x"] | select | list|[0, 1] | reject | list|words | map("upper") | list|words | map("replace", "a", "Q") | list|rows | map(attribute="q", default="none") | list|[nested] | map(attribute="a.b.0") | list|l | select("divisibleby", 3) | first|l | select | length|"yes" if l | select("gt", 100)|l | map("string") | join("+")|words | select("in", ["a", "c"]) | list|l | select("lessthan", 3) | sort
d | tojson|l | tojson|u | tojson|u | tojson(ensure_ascii=true)|"\"\\/\n\r\t\b\f\x01\x7f" | tojson|"\x7f" | tojson(ensure_ascii=true)|d | tojson(indent=2)|rows | tojson(indent=4)|[] | tojson(indent=2)|{} | tojson(indent=2)|[[], {}, [1]] | tojson(indent=1)|d | tojson(separators=(",", ":"))|{"b": 1, "a": 2} | tojson(sort_keys=true)|{"b": 1, "a": 2} | tojson(indent="\t", sort_keys=true)|[1.0, 1e16, 1e-7, -0.0, 123.456, true, none] | tojson|{1: 2, none: 3, true: 4, 1.5: 5} | tojson|(1, 2) | tojson|undefined_name | tojson|[undefined_name] | tojson|d.items() | tojson|range(3) | tojson|[1] | tojson(indent=0)|d | tojson(true, 1)|none_v | tojson|"<&'>" | tojson|namespace(a=1) | tojson
n is number|n is integer|f is float|t is boolean|t is integer|t is number|s is string|l is string|d is mapping|l is mapping|l is iterable|s is iterable|n is iterable|l is sequence|d is sequence|s is sequence|d.items() is sequence|undefined_name is sequence|none_v is none|undefined_name is none|undefined_name is undefined|undefined_name is not defined|4 is even|n is odd|n is divisibleby 7|n is divisibleby(2)|n is eq 7|n is ne(7)|n is gt 3|n is le 7|n is lt 7|n is ge 8|n is in [7]|n is not in [7]|s is in ["x", s]|"abc" is lower|"ABC" is upper|true is true|1 is true|false is false|none is sameas none|true is sameas true|s is equalto "Hello, World"|range is callable|s is callable|n is defined and not none_v|l is not mapping and d is mapping|n is == 7|d.b is defined and d.b is number
range(5) | list|range(2, 10, 3) | list|range(5, 0, -2) | list|range(0) | list|range(3) | length|range(3)[1]|range(10)[2:4] | list|2 in range(3)|dict(a=1, b=2)|dict([("x", 1)], y=2)|dict(d).b|dict({"k": 1}, k=2)|namespace(a=1).a|namespace({"a": 1}, b=2).b|namespace(a=1).q is defined|strftime_now("%Y-%m-%d %H:%M:%S")|strftime_now("%d %b %Y, %A %B %-d %j %p %I%%")|none_v.x is defined|n.x is defined|s.x is defined|l.x is defined|d.x.y is defined
undefined_name|none_v|undefined_name.x|undefined_name[0]|undefined_name[1:]|undefined_name + "x"|"x" + undefined_name|"x" ~ undefined_name ~ "y"|undefined_name == undefined_name|undefined_name < 1|-undefined_name|undefined_name()|s()|d.x()|"x" + 1|1 + "x"|l + (1,)|d + d|none_v + 1|none_v[0]|none_v[1:]|n[0]|d[1:]|l["a"]|1 / 0|1 % 0|1.0 // 0|"a" < 1|none_v < 1|1 in 5|1 in "1"|[] in d|{[]: 1}|l.append(4)|d.update(x=1)|d.pop("b")|range(100001) | length|range(0, 5, 0)|s.split("")|s.index("zz")|l.index(9)|s.__class__|d.__class__|s | int(1, 2, 3)|l | join(q=1)|s.strip(1)|s.nothing()|raise_exception("boom " + s)|raise_exception()|none_v | length|n | length|none_v | list|n | first|none_v | join|none_v | indent|l | tojson(indent=none)|l | map | list|l | select("nope") | list|l | map("nope") | list|9 ** 0.5|"%d" % "x"|"%s %s" % "x"|namespace(_x=1)|s.count()|d.get()
""".strip("\n")

STATEMENTS = [
    "{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ x }};{% endfor %}",
    "{% for x in l %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }}{{ loop.previtem is defined }}{% endfor %}",
    "{% for x in l %}{{ loop.cycle('a', 'b') }}{{ loop.changed(x > 1) }} {% endfor %}",
    "{% for x in l %}{% for y in words %}{{ loop.depth }}{{ loop.depth0 }}{{ loop.index }}{{ y }}{% endfor %}{{ loop.depth }}|{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k, v in d | dictsort %}{{ k }}{% endfor %}", "{% for k in d %}{{ k }},{% endfor %}",
    "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}", "{% for a, b in [(1, 2, 3)] %}x{% endfor %}", "{% for a, b in [1] %}x{% endfor %}", "{% for a, b in ['xy'] %}{{ b }}{{ a }}{% endfor %}",
    "{% for c in u %}[{{ c }}]{% endfor %}", "{% for x in empty %}x{% else %}none{% endfor %}", "{% for x in l %}x{% else %}none{% endfor %}", "{% for x in undefined_name %}x{% else %}undefined{% endfor %}", "{% for x in none_v %}x{% endfor %}",
    "{% for x in n %}x{% endfor %}", "{% for x in l if x > 1 %}{{ loop.index }}/{{ loop.length }}:{{ x }} {% else %}none{% endfor %}", "{% for x in l if x > 9 %}{{ x }}{% else %}none{% endfor %}",
    "{% for x in range(10) %}{% if x == 2 %}{% continue %}{% endif %}{% if x > 5 %}{% break %}{% endif %}{{ x }}{% endfor %}", "{% for x in l %}{% for y in l %}{% if y == 1 %}{% break %}{% endif %}{{ y }}{% endfor %}-{% endfor %}",
    "{% for x in l %}{% break %}{% else %}e{% endfor %}.", "{% for x in l %}{% continue %}{% else %}e{% endfor %}.", "{% for x in l %}{% if x == 1 %}{% break %}{% endif %}{% else %}e{% endfor %}.", "{% for x in 1, 2, 3 %}{{ x }}{% endfor %}",
    "{% set x = 1 %}{% for i in l %}{{ x }}{% set x = i %}{{ x }}{% endfor %}{{ x }}", "{% for i in l %}{% set y = i %}{% endfor %}{{ y is defined }}", "{% if t %}{% set y = 5 %}{% endif %}{{ y }}", "{% if not t %}{% set n = 5 %}{% endif %}{{ n }}",
    "{% for i in l %}{% if i == 1 %}{% set n = 'set' %}{% endif %}{{ n }}{% endfor %}{{ n }}", "{% set n = n + 1 %}{{ n }}", "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set a, b = [1] %}", "{% set (a, b) = 'xy' %}{{ b }}", "{% set x = 1, 2 %}{{ x }}",
    "{% set ns = namespace(c=0) %}{% for i in l %}{% set ns.c = ns.c + i %}{% endfor %}{{ ns.c }}{{ ns['c'] }}", "{% set ns = namespace() %}{% set ns.a = [1] %}{% set ns.a = ns.a + [2] %}{{ ns.a }}", "{% set d.x = 1 %}", "{% set ns = namespace() %}{% set ns._x = 1 %}", "{% set q.x = 1 %}",
    "{% set x %}a{{ n }}b{% endset %}[{{ x }}]{{ x | length }}", "{% set x | upper | replace('A', 'B') %}a{{ s }}{% endset %}{{ x }}", "{% set x %}{% set z = 1 %}{% endset %}{{ z is defined }}", "{% set ns = namespace() %}{% set ns.x %}block{% endset %}{{ ns.x }}",
    "{% if n > 9 %}a{% elif n > 6 %}b{% elif t %}c{% else %}d{% endif %}", "{% if none_v %}a{% elif empty %}b{% else %}d{% endif %}", "{% if undefined_name %}a{% endif %}.", "{% if l | selectattr('x') %}generators are true{% endif %}", "{% if d.keys() %}k{% endif %}{% if range(0) %}r{% endif %}",
    "{% macro m(a, b=2, c='x') %}<{{ a }}{{ b }}{{ c }}>{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(c=5, a=4) }}{{ m() }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(z=2) }}", "{% macro m(a) %}{{ a.x }}{% endmacro %}{{ m() }}",
    "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }}", "{% macro m(a, b=a ~ '!') %}{{ b }}{% endmacro %}{{ m('x') }}", "{% macro m(x) %}{% if x > 0 %}{{ x }}{{ m(x - 1) }}{% endif %}{% endmacro %}{{ m(5) }}", "{% macro m() %}{{ n }}{% set n = 1 %}{{ n }}{% endmacro %}{{ m() }}{{ n }}",
    "{% macro m() %}{{ later }}{% endmacro %}{% set later = 'L' %}{{ m() }}", "{% set x = 1 %}{% macro m() %}{{ x }}{% endmacro %}{% set x = 2 %}{{ m() }}", "{% macro a() %}A{% endmacro %}{% macro b() %}{{ a() | lower }}{% endmacro %}{{ b() + 'z' }}", "{{ m is defined }}{% macro m() %}{% endmacro %}{{ m is defined }}{{ m is callable }}",
    "{% for x in l %}{% macro m() %}{{ x }}{% endmacro %}{{ m() }}{% endfor %}", "{% macro m(t) %}{% if t is mapping %}{% for k, v in t.items() %}{{ k }}:{{ m(v) }};{% endfor %}{% elif t is iterable and t is not string %}[{% for v in t %}{{ m(v) }}{% if not loop.last %},{% endif %}{% endfor %}]{% else %}{{ t }}{% endif %}{% endmacro %}{{ m(d) }}{{ m(rows) }}",
    "{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}in {{ n }}{% endcall %}", "{% macro m(x) %}{{ caller(x, 2) }}{% endmacro %}{% call(a, b) m(1) %}{{ a }}{{ b }}{% endcall %}", "{% macro m() %}{{ caller is defined }}{% endmacro %}{{ m() }}", "{% macro m() %}x{% endmacro %}{% call m() %}y{% endcall %}",
    "{% filter upper %}abc {{ s }}{% endfilter %}", "{% filter replace('a', 'b') | trim %} aaa {% endfilter %}", "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% set n = 9 %}{{ n }}{% endwith %}{{ a is defined }}{{ n }}", "{% with %}{% set z = 1 %}{{ z }}{% endwith %}{{ z is defined }}", "{% with n = n + 1, m = n %}{{ n }}{{ m }}{% endwith %}",
    "{% generation %}text {{ n }}{% set q = 1 %}{% endgeneration %}{{ q is defined }}", "{% print n %}", "{% raw %}{{ not }} {% rendered %} {# x #}{% endraw %}", "a {%- raw -%}  x  {%- endraw -%} b", "a\n  {% raw %}\n x\n  {% endraw %}\n b", "{# comment #}a{#- b -#} c", "a  {#- strip -#}  b", "{# multi\nline #}\nx",
    "  {% if t %}\n  a\n  {% endif %}\nb\n", "x  {% if t %}  \n a {% endif %}\n\nb\n\n", "  {%+ if t %}\n a\n  {%+ endif %}\nb", "{% if t +%}\na{% endif +%}\nb", "  {{ n }}  \n  {{- n -}}  \n  {{ n }}\n", "a\n\n  {%- if t -%}\n\n b \n{%- endif -%}\n\n c", "  {# c #}\n  a\n   {# d #}  \nb", "\t{% if t %}x{% endif %}\t\n",
    "line\r\nnext\rlast\r\n", "a\n", "a\n\n", "\n", "", "{{ 'a\nb' }}", "{{ 'a\\\nb' }}", "{{ '\\x41\\u00e9\\U0001F642\\101\\q\\'\\\\' }}", "{{ \"it's\" ~ 'say \"hi\"' }}", "{{-1}}", "{{ - 1 }}", "{{+1}}", "{{ n-1 }}", "{{ n -}} x", "{{ {'a': {'b': 1}} }}", "{{ {'a': {'b': 1}}['a']['b'] }}", "{{ '}}' }}", "{{ '%}' }}{% if '%}' %}x{% endif %}",
    "{{ 'a' if t else 'b' if n else 'c' }}", "{{ ('x', 'y') | join }}", "{{ 1, 2 }}", "{{ (1) }}{{ (1,) }}", "{{ [1, 2, ] }}{{ {'a': 1, } }}", "{% if t: %}x{% endif %}", "{{ l | map('string') | map('upper') | join(',') }}", "{% set g = l | map('string') %}{{ g | join }}{{ g | join }}.", "{% set g = l | select('gt', 1) %}{{ g | first }}{{ g | list }}",
    "{% for m in messages %}{{ m.role }}:{{ m['content'] }}{{ m.tool_calls is defined }}{{ '\\n' if not loop.last }}{% endfor %}", "{% for m in messages[::-1] %}{{ m.content }}{% endfor %}", "{% set messages = messages[1:] %}{{ messages | length }}", "{{ messages | map(attribute='role') | list }}", "{{ messages[0] }}", "{{ messages[-1].content.split(' ')[-1] }}",
    "{{ raise_exception('no ' ~ messages[0].role) }}", "{% if messages | length > 2 %}{{ raise_exception('x') }}{% endif %}ok", "{{ loop }}", "{{ loop.index }}", "{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}{{ add_generation_prompt }}{{ tools }}{{ documents }}",
    "{{ [[1, 2], [3]] | map('sum') | list }}", "{{ [[1, 2], [3]] | sum(start=[]) }}", "{{ '%s-%s' % (1, [2]) }}", "{{ 'x' is in 'xyz' }}", "{{ not n is defined }}", "{{ (n is defined) == true }}", "{{ -n | abs }}", "{{ 2 ** 3 ** 2 }}", "{{ 10 - 2 - 3 }}", "{{ 'a' ~ 1 + 2 }}", "{{ n if n is number else 0 }}", "{{ 5 is odd and 4 is even }}", "{{ n is divisibleby 7 and t }}",
    "{%- set content = s.split('o')[-1].lstrip('r') %}{{ content }}", "{%- for t in rows %}{{ t.k }}{%- endfor %}{{ t }}", "{{ s.split(', ') | map('lower') | join('_') }}", "{{ rows[0].items() | list | tojson }}", "{{ rows | map(attribute='v') | sum / rows | length }}", "{{ (rows | first).k ~ (rows | last)['k'] }}", "{{ 'x' | default(none) }}", "{{ dict(a=1).items() | list }}",
]


def main():
    chat_template_utils.datetime = Clock
    messages = CHATS["system"]
    sources = ["{{ " + e + " }}" for line in EXPRESSIONS.split("\n") for e in split(line)] + STATEMENTS
    snippets = []
    for source in sources:
        try:
            result = render({"default": source}, {}, messages, None, EXTRA, True)
        except Exception:  # not a template, or one that names what doesn't exist
            result = {}
        snippets.append([source, result.get("text")])
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "chat", "snippets.json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump({"messages": messages, "extra": EXTRA, "snippets": snippets}, f, ensure_ascii=False, indent=0)
        f.write("\n")
    # Seeds of the fuzz target, some snippets each: those that render, so that what follows a mutation still runs.
    seeds = os.path.join(os.path.dirname(path), "..", "..", "fuzz", "seeds", "template")
    good = [source for source, text in snippets if text is not None]
    for i in range(0, len(good), 15):
        with open(os.path.join(seeds, f"{i // 15:02}"), "w", encoding="utf-8", newline="") as f:
            f.write("\n".join(good[i:i + 15]))
    print(f"{len(snippets)} snippets, {sum(t is None for _, t in snippets)} of them errors")


def split(line):
    """Expressions are separated by '|' without blanks around it; quotes hide it."""
    parts, quote, begin, escaped = [], "", 0, False
    for i, c in enumerate(line):
        if quote:
            quote = "" if c == quote and not escaped else quote
            escaped = c == "\\" and not escaped
        elif c in "'\"":
            quote = c
        elif c == "|" and line[i - 1] != " " and line[i + 1] != " ":
            parts.append(line[begin:i])
            begin = i + 1
    return parts + [line[begin:]]


if __name__ == "__main__":
    main()
