"""Chat templates that want more than a chat."""

from typing import Any

import pytest

from syscalls import template
from syscalls.template import ChatTemplate

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]


def render(source: str, messages: Any = CHAT, prompt: bool = False) -> str:
    return ChatTemplate(source).render(messages, prompt)


# --- what templates in use do ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% for m in messages %}<{{ m.role }}>{{ m['content'] }}{% endfor %}",
         "<user>Hi<assistant>Yes"),
        ("{% for m in messages %}{{ loop.index0 }}{{ loop.first }}{{ loop.last }} {% endfor %}",
         "0TrueFalse 1FalseTrue "),
        ("{% for m in messages %}{{ loop.index }}/{{ loop.length }} {% endfor %}", "1/2 2/2 "),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% else %}-{% endfor %}", "Hi"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
         "{{ ns.n }}", "2"),
        ("{{ messages[1:][0].content ~ '!' ~ 1 }}", "Yes!1"),
        ("{{ messages[0]['content'].strip().split('i')[0] | upper | trim }}", "H"),
        ("{{ messages | map(attribute='content') | join(', ') }}", "Hi, Yes"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
        ("{{ {'a': [1, 'é'], 'b': none} | tojson }}", '{"a": [1, "é"], "b": null}'),
        ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}={{ v }}{% endfor %}", "a=1"),
        ("{% macro f(x, y='d') %}[{{ x }}{{ y }}]{% endmacro %}{{ f('a') }}{{ f('b', 'c') }}",
         "[ad][bc]"),
        ("{% set x %}a{{ 1 + 1 }}{% endset %}{{ x * 2 }}", "a2a2"),
        ("{% set a, b = 1, 2 %}{{ (a, b)[1] }}", "2"),
        ("{{ 'aXbX'.replace('X', 'yy') }} {{ 'aX' | replace('X', '') }}", "ayybyy a"),
        ("{% for m in messages %}{{ m.content.replace('H', 'h') }}{{ ','.join('ab') }}{% endfor %}",
         "hia,bYesa,b"),
        ("{{ 'aXbX'.replace('X', 'y', 1) }} {{ 'aXbX'.replace('X', 'y', -1) }}", "aybX ayby"),
        ("{{ '-'.join(['a', 'b']) }}{{ 2 ** 10 }}{{ 7 % 4 }}{{ 'ab' | safe }}", "a-b10243ab"),
        ("{{ nope }}{{ nope is defined }}{{ strftime_now is defined }}", "FalseFalse"),
        ("{% if add_generation_prompt %}p{% endif %}.", "."),
        ("  {%- if true %}\n x\n  {% endif %}", " x\n"),
    ],
)  # fmt: skip
def test_a_template(source: str, text: str) -> None:
    assert render(source) == text


# --- into Python ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__ }}",
        "{{ messages['__class__']['__base__'] }}",
        "{{ messages | attr('__class__') }}",
        "{{ (messages | map(attribute='__class__') | list | first).__name__ }}",
        "{{ messages | sort(attribute='__class__.__mro__') }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ raise_exception.__code__.co_consts }}",
        "{{ range.__globals__.sys }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ self._TemplateReference__context.environment.left }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ lipsum.__globals__.os.popen('id').read() }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ '{:9999999999}'.format(1) }}",
        "{{ '{a}'.format_map({'a': 1}) }}",
        "{{ loop._iterable }}{% for m in messages %}{{ loop.__init__.__globals__ }}{% endfor %}",
        "{% macro f() %}{% endmacro %}{{ f._environment.filters }}",
        "{% macro f() %}{% endmacro %}{{ f.__call__.__globals__ }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ messages.clear() }}",
        "{{ (1).to_bytes(1000000000, 'big') }}",
        "{{ (1).real.__class__('2').__add__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os.name }}",
        "{% extends 'base' %}",
        "{{ range }}",
        "{{ namespace(x=1) }}",
        "{{ [raise_exception] }}{{ raise_exception }}",
    ],
)
def test_there_is_no_way_into_python(source: str) -> None:
    with pytest.raises(ValueError, match=r"^it (fails|writes|is not sound)"):
        render(source)
    assert CHAT == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]


# --- without end ----------------------------------------------------------------------------------

GROW = "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = WHAT %}{% endfor %}"
WATCH = (
    "{% set ns = namespace(s='a' * 99999, l=range(9999) | list, m=range(9999) | list) %}"
    "{% for i in range(9999) %}{% if WHAT %}{% endif %}{% endfor %}"
)
TWICE = "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}"


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{{ 'a' * 10**10 }}",
        "{{ 10**10 * [1] }}",
        "{{ ''.join(['a'] * 99999999) }}",
        "{{ ('a' * 9000000) | replace('', 'b' * 9000000) }}",
        "{% set s = 'a' * 4000000 %}{% for i in range(99999) %}{% set y = s[1:] %}{% endfor %}",
        "{% for i in range(99999) %}{% set y = 'a'.replace('a', 'b' * 99999, -9) %}{% endfor %}",
        GROW.replace("WHAT", "ns.x ~ ns.x"),
        GROW.replace("WHAT", "ns.x + ns.x"),
        GROW.replace("WHAT", "ns.x * 9"),
        GROW.replace("WHAT", "[ns.x, ns.x]"),
        GROW.replace("WHAT", "(ns.x, ns.x)"),
        GROW.replace("WHAT", "{1: ns.x, 2: ns.x}"),
        GROW.replace("WHAT", "ns.x | replace('a', ns.x)"),
        GROW.replace("WHAT", "ns.x.replace('a', ns.x)"),
        GROW.replace("WHAT", "ns.x.replace('', ns.x)"),
        GROW.replace("WHAT", "ns.x | join(ns.x)"),
        GROW.replace("WHAT", "ns.x.join(ns.x)"),
        GROW.replace("WHAT", "[ns.x, ns.x] | tojson"),
        GROW.replace("WHAT", "y").replace("{% set ns.x", TWICE + "{% set ns.x"),
        # what only looks at things, and whose rounds are cheap
        WATCH.replace("WHAT", "ns.l == ns.m"),
        WATCH.replace("WHAT", "-1 in ns.l"),
        WATCH.replace("WHAT", "'x' in range(99999)"),
        WATCH.replace("WHAT", "'b' in ns.s"),
        WATCH.replace("WHAT", "-1 is in(ns.l)"),
        WATCH.replace("WHAT", "ns.l is eq(ns.m)"),
        WATCH.replace("WHAT", "ns.l | select('in', ns.m) | list"),
        WATCH.replace("WHAT", "ns.l | reject('in', ns.m) | first"),
        WATCH.replace("WHAT", "ns.s.isalpha()"),
        WATCH.replace("WHAT", "ns.s.count('b')"),
        WATCH.replace("WHAT", "ns.l.index(9998)"),
        WATCH.replace("WHAT", "ns.s | min"),
        WATCH.replace("WHAT", "ns.s | trim('b')"),
        WATCH.replace("WHAT", "ns.s | tojson"),
        WATCH.replace("WHAT", "{}[(ns.l[1:], 1) | first] is defined"),
        "{% set s = 'a' * 99999 %}{{ s.rfind('ab' ~ s) }}",
        "{% set s = 'a' * 99999 %}{{ s.strip('b' * 99999 ~ 'a') }}",
        "{% set s = 'a' * 99999 %}{{ s | trim('b' * 99999 ~ 'a') }}",
        "{% set s = 'a ' * 99999 %}{{ s.split() | length }}",
        "{% set s = '€' * 99999 %}{{ s | list | length }}",
        "{% set s = '€' * 99999 %}{{ s | select | list | length }}",
        "{{ ['a'] | map(attribute='0.' * 99999 ~ '0') | list }}",
        "{{ range(99999) | unique | list | length }}",
        "{% for i in range(99999) %}" + 5000 * "{% if messages %}{% endif %}" + "{% endfor %}",
        "{% macro f() %}" + 5000 * "{% if x %}{% endif %}" + "{% endmacro %}"
        "{% for i in range(99999) %}{% set y = f() %}{% endfor %}",
        "{% macro g() %}{% for i in range(99999) %}{{ caller() }}{% endfor %}{% endmacro %}"
        "{% call g() %}" + 5000 * "{% if x %}{% endif %}" + "{% endcall %}",
        "{% block b %}{% if n is defined %}" + 5000 * "{% if x %}{% endif %}" + "{% endif %}"
        "{% endblock %}{% for n in range(99999) %}{% set y = self.b() %}{% endfor %}",
        # nobody gives himself a present
        "{{ -99 | paid }}",
        "{{ 'nan' | float | paid }}",
        "{% for i in 'a' | rounds(-99) %}{% endfor %}",
    ],
)  # fmt: skip
def test_what_has_no_end_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "MAX_COST", 1 << 22)
    with pytest.raises(ValueError, match="it does too much: more than 4194304"):
        render(source)


@pytest.mark.timeout(60)
def test_the_limit_is_near_enough() -> None:
    """It is reached in seconds, not in minutes."""
    with pytest.raises(ValueError, match="it does too much: more than 134217728"):
        render("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "source",
    [
        "{{ 2 ** (10 ** 9) }}",
        "{{ 2 ** 4096 }}",
        "{% set x = 2 ** 4000 %}{{ x * x }}{{ x * x }}",
        GROW.replace("'ab'", "9").replace("WHAT", "ns.x * ns.x"),
        GROW.replace("'ab'", "9").replace("WHAT", "ns.x + ns.x").replace("99", "9999"),
        "{{ ('9' * 4000) | int + 1 }}",
    ],
)
def test_numbers_are_limited(source: str) -> None:
    with pytest.raises(ValueError, match="more than 4096 bits"):
        render(source)


def test_output_is_limited() -> None:
    with pytest.raises(ValueError, match="wrote more than 4194304 characters"):
        render("{% for i in range(99999) %}{{ 'a' * 100 }}{% endfor %}")


@pytest.mark.parametrize("how", ["-10000000", "10000000, 'ceil'", "17"])
def test_rounding_is_limited(how: str) -> None:
    with pytest.raises(ValueError, match="digits, the limit is 16"):
        render("{{ 5 | round(" + how + ") }}")


def test_a_text_is_no_longer_than_what_may_be_written() -> None:
    assert render("{{ ('a' * 4194304) | length }}") == "4194304"
    with pytest.raises(ValueError, match="makes a text of more than 4194304 characters"):
        render("{% set s = 'a' * 4194305 %}{{ s == 'b' }}")


def test_nesting_is_limited() -> None:
    source = "{% set ns = namespace(x=[]) %}{% for i in range(99) %}{% set ns.x = [ns.x] %}"
    with pytest.raises(ValueError, match="nests lists more than 32 deep"):
        render(source + "{% endfor %}")
    with pytest.raises(ValueError, match="puts a Namespace into another value"):
        render("{% set ns = namespace() %}{% set ns.x = [ns, ns] %}{{ [ns.x] }}")


def test_dictionaries_are_small() -> None:
    """Multiples of 2 ** 61 - 1 have one hash: a look-up among many would read them all."""
    source = "{% set d = {" + ", ".join(f"{n * (2**61 - 1)}: 1" for n in range(129)) + "} %}{{ d }}"
    with pytest.raises(ValueError, match="a dictionary of more than 128 keys"):
        render(source)


def test_json_is_not_indented_by_a_billion() -> None:
    with pytest.raises(ValueError, match="by 1000000000, the limit is 8"):
        render("{{ messages | tojson(indent=1000000000) }}")


def test_a_budget_is_for_one_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "MAX_COST", 50_000)
    chat = ChatTemplate("{% for i in range(1000) %}{% endfor %}x")
    assert [chat.render(CHAT, False) for _ in range(20)] == ["x"] * 20
    with pytest.raises(ValueError, match="too much: more than 50000"):
        ChatTemplate("{% for i in range(5000) %}{% endfor %}").render(CHAT, False)


LONG = {
    "plain": "{% for m in messages %}<|{{ m['role'] + '|>' + m['content'] + '</s>' }}{% endfor %}",
    "with all that templates do": """
        {%- set ns = namespace(last=messages|length - 1) %}
        {%- for m in messages[::-1] %}
            {%- set index = (messages|length - 1) - loop.index0 %}
            {%- if m.role == "user" and m.content is string and not(m.content.startswith('<t>')
                and m.content.endswith('</t>')) %}{%- set ns.last = index %}{%- endif %}
        {%- endfor %}
        {%- for m in messages %}
            {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('no') }}
            {%- endif %}
            {%- if m.role in ['user', 'assistant'] and m.content is not none %}
                {%- set c = m.content.split('</think>')[-1].lstrip('\n') | trim %}
                {{- '<|im_start|>' + m.role + '\n' + c + '<|im_end|>' + '\n' }}
            {%- elif m.tools is defined and loop.index0 > ns.last %}{{ m.tools | tojson }}
            {%- endif %}
        {%- endfor %}""",
}


@pytest.mark.parametrize("source", LONG.values(), ids=LONG)
def test_a_long_chat_is_far_from_the_limit(source: str) -> None:
    chat = ChatTemplate(source)
    assert len(chat.render(CHAT * 5000, False)) > 100_000
    assert chat._sandbox.left > 0.6 * template.MAX_COST


# --- not sound ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% for %}", "Expected an expression"),
        ("{{ 1", "unexpected end of template"),
        ("{% generation %}x{% endgeneration %}", "unknown tag 'generation'"),
        ("{{ 1 | nofilter }}", "No filter named 'nofilter'"),
        ("{{ 1 is notest }}", "No test named 'notest'"),
        ("{{" + "(" * 3000 + "1" + ")" * 3000 + "}}", "recursion"),
        ("{{" + "-" * 100_000 + "1}}", "recursion"),
        ("{% for a in b recursive %}{{ loop(b) }}{% endfor %}", "recursive loop"),
        ("x" * 300_000, "300000 characters, the limit is 262144"),
    ],
)
def test_a_template_that_does_not_compile(source: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ChatTemplate(source)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ nope.a }}", "'nope' is undefined"),
        ("{{ nope + 1 }}", "'nope' is undefined"),
        ("{{ nope() }}", "'nope' is undefined"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ 'a' + 1 }}", "concatenate"),
        ("{{ messages | length | join }}", "not iterable"),
        ("{{ '%s' % 1 }}", "formats with %"),
        ("{{ range(10**6) }}", "Range too big"),
        ("{{ raise_exception('only pairs') }}", "refuses this chat: only pairs"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ {[]: 1} }}", "unhashable"),
    ],
)
def test_a_template_that_fails(source: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        render(source)
    assert len(str(caught.value)) < 300
