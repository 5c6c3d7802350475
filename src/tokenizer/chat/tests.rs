//! Tests of rendered templates. Expected values are those of transformers 5.23 with Jinja2 3.1.6.

use super::*;
use proptest::prelude::*;
use serde_json::json;

fn clock() -> Moment {
    Moment { year: 2024, month: 7, day: 4, hour: 15, minute: 5, second: 9, microsecond: 42 }
}

fn render(text: &str, messages: &[Json], tools: Option<&[Json]>) -> Result<String> {
    let special_tokens = Map::from_iter([("eos_token".to_owned(), json!("</s>"))]);
    ChatTemplate { text, special_tokens: &special_tokens, clock }.render(messages, tools, None, true)
}

fn messages() -> Vec<Json> {
    let arguments = json!({"zz": [1, 1.5, 1e20, 1e-7], "a": {}});
    vec![
        json!({"role": "user", "content": "It's <b>é</b> & \"x\""}),
        json!({
            "role": "assistant", "content": null, "reasoning": "hm",
            "tool_calls": [{"function": {"name": "w", "arguments": arguments}}],
        }),
    ]
}

const RENDERED: &[(&str, &str)] = &[
    ("{{ messages[0].content|tojson }}", "\"It's <b>é</b> & \\\"x\\\"\""),
    (
        "{{ messages[0]|tojson(ensure_ascii=true) }}",
        "{\"role\": \"user\", \"content\": \"It's <b>\\u00e9</b> & \\\"x\\\"\"}",
    ),
    (
        "{{ messages[1].tool_calls|tojson }}",
        "[{\"function\": {\"name\": \"w\", \"arguments\": {\"zz\": [1, 1.5, 1e+20, 1e-07], \"a\": {}}}}]",
    ),
    (
        "{{ messages[1].tool_calls|tojson(indent=2) }}",
        "[\n  {\n    \"function\": {\n      \"name\": \"w\",\n      \"arguments\": {\n        \"zz\": [\n          1,\n          1.5,\n          1e+20,\n          1e-07\n        ],\n        \"a\": {}\n      }\n    }\n  }\n]",
    ),
    (
        "{{ messages[1].tool_calls|tojson(separators=(\",\",\":\"),sort_keys=true) }}",
        "[{\"function\":{\"arguments\":{\"a\":{},\"zz\":[1,1.5,1e+20,1e-07]},\"name\":\"w\"}}]",
    ),
    ("{{ []|tojson(indent=2) }}", "[]"),
    ("{{ {\"a\":[],\"b\":{}}|tojson(indent=1) }}", "{\n \"a\": [],\n \"b\": {}\n}"),
    (
        "{{ [1e400,-1e400,1e16,1e-5,123456789012345.0,-0.0,none,true]|tojson }}",
        "[Infinity, -Infinity, 1e+16, 1e-05, 123456789012345.0, -0.0, null, true]",
    ),
    ("{{ {1:2,none:1,1.5:1}|tojson }}", "{\"1\": 2, \"null\": 1, \"1.5\": 1}"),
    ("{{ [1,[2]]|tojson(true,\"\\t\",none,true) }}", "[\n\t1,\n\t[\n\t\t2\n\t]\n]"),
    ("{{ tools }}", "None"),
    ("{{ documents is none }}", "True"),
    ("{{ tools is iterable }}", "False"),
    ("{{ tools is defined }}", "True"),
    ("{{ bos_token }}", ""),
    ("{{ bos_token is defined }}", "False"),
    ("{{ add_generation_prompt }}", "True"),
    ("{{ messages[1].content is defined }}", "False"),
    ("{{ messages[1].reasoning_content ~ messages[1].thinking ~ messages[1].reasoning }}", "hmhmhm"),
    (
        "{{ messages[1].tool_calls }}",
        "[{'function': {'name': 'w', 'arguments': {'zz': [1, 1.5, 1e+20, 1e-07], 'a': {}}}}]",
    ),
    ("{{ messages[1]|list }}", "['thinking', 'role', 'reasoning', 'tool_calls', 'reasoning_content']"),
    ("{{ strftime_now(\"%d %b %Y\") }}", "04 Jul 2024"),
    (
        "{{ strftime_now(\"%A, %-d. %B %y %H:%M:%S.%f %I %p %j %U %W %V %G %u %w %c %x %X %e %D %F %R %T %z%Z%%\") }}",
        "Thursday, 4. July 24 15:05:09.000042 03 PM 186 26 27 27 2024 4 4 Thu Jul  4 15:05:09 2024 07/04/24 15:05:09  4 07/04/24 2024-07-04 15:05 15:05:09 %",
    ),
    ("{{ \"a.b.c\".rsplit(\".\", 1) }}", "['a.b', 'c']"),
    ("{{ \" a  b \".split() }}", "['a', 'b']"),
    ("{{ \" a  b c\".rsplit(none, 1) }}", "[' a  b', 'c']"),
    ("{{ \"a,b,c\".split(\",\", maxsplit=1) }}", "['a', 'b,c']"),
    ("{{ \"a=b=c\".partition(\"=\") }}", "('a', '=', 'b=c')"),
    ("{{ \"a=b=c\".rpartition(\"=\") }}", "('a=b', '=', 'c')"),
    ("{{ \"ab\".rpartition(\"=\") }}", "('', '', 'ab')"),
    ("{{ \"<x>y\".removeprefix(\"<x>\") }}", "y"),
    ("{{ \"a.py\".removesuffix(\".py\") }}", "a"),
    ("{{ \"a\\r\\nb\\n\".splitlines() }}", "['a', 'b']"),
    ("{{ \"a\\nb\".splitlines(true) }}", "['a\\n', 'b']"),
    ("{{ \"-42\".zfill(6) }}", "-00042"),
    ("{{ \"ab\".center(7, \"*\") }}", "***ab**"),
    ("{{ \"abc\".center(6, \"*\") }}", "*abc**"),
    ("{{ \"ab\".ljust(4) ~ \"|\" }}", "ab  |"),
    ("{{ \"ab\".rjust(4, \"é\") }}", "ééab"),
    ("{{ \"aBc\".swapcase() }}", "AbC"),
    ("{{ \"ÀBя\".casefold() }}", "àbя"),
    ("{{ \"a\\tb\".expandtabs(4) }}", "a   b"),
    ("{{ \"abcb\".index(\"b\") }}", "1"),
    ("{{ \"abcb\".rindex(\"b\") }}", "3"),
    ("{{ \"日本本\".find(\"本\") }}", "1"),
    ("{{ \"abc\".find(\"c\", 1, 2) }}", "-1"),
    ("{{ \"abab\".count(\"ab\", 1) }}", "1"),
    ("{{ \"abc\".startswith((\"x\", \"a\")) }}", "True"),
    ("{{ \"don't stop\".title() }}", "Don'T Stop"),
    ("{{ \"HELLO world\".capitalize() }}", "Hello world"),
    ("{{ \"ab1\".isalnum() }}", "True"),
    ("{{ \"Ab Cd\".istitle() }}", "True"),
    ("{{ \"{0:>4}|{x:.2f}\".format(\"a\", x=3.14159) }}", "   a|3.14"),
    ("{{ \"{a}\".format_map({\"a\": 1}) }}", "1"),
    ("{{ [3, 4, 3].index(3, 1) }}", "2"),
    ("{{ (1, 2, 1).count(1) }}", "2"),
    ("{{ {\"items\": 5}.items()|list }}", "[('items', 5)]"),
    ("{{ {\"b\": 1, \"a\": 2}.keys()|list }}", "['b', 'a']"),
    ("{{ \"%s\" % 1 }}", "1"),
    ("{{ \"%s-%s\" % (\"a\", none) }}", "a-None"),
    ("{{ \"%d%%\" % 3.9 }}", "3%"),
    ("{{ \"%05.1f|%-4d|%+d|%x\" % (3.14159, 7, 5, 255) }}", "003.1|7   |+5|ff"),
    ("{{ \"%(a)s\" % {\"a\": [1, \"x\"]} }}", "[1, 'x']"),
    ("{{ \"%r\" % \"a\" }}", "'a'"),
    ("{{ \"%*d\" % (4, 2) }}", "   2"),
    ("{{ 7 % 4 * 2 }}", "6"),
    ("{{ 2 * 7 % 4 }}", "2"),
    ("{{ -7 % 4 }}", "1"),
    ("{{ 7 % -4 }}", "-1"),
    ("{{ 7 % 2 ** 2 }}", "3"),
    ("{{ 7.5 % 2 }}", "1.5"),
    ("{{ 1 + 7 % 4 }}", "4"),
    ("{{ \"n\" ~ 7 % 4 }}", "n3"),
    ("{{ \"%s\" % messages[0].role|upper }}", "USER"),
    ("{{ 7 % 4 if 8 % 2 else 9 % 5 }}", "4"),
    ("{{ [7 % 4, {\"a\": 8 % 3}[\"a\"]] }}", "[3, 2]"),
    ("{{ \"ab\" * 2 }}", "abab"),
    ("{{ 1e16 }}", "1e+16"),
    ("{{ [1e22, \"it's\", \"a\\n\", true, none, (1,)] }}", "[1e+22, \"it's\", 'a\\n', True, None, (1,)]"),
    ("{{ {\"a\": 0.1} }}", "{'a': 0.1}"),
    ("{{ \"é\" is sequence }}", "True"),
    ("{{ undefined_thing|length }}", "0"),
    ("a\n  {% generation %}\n x {{ 1 }}\n  {% endgeneration %}\n b", "a\n x 1\n b"),
    ("a\n {%- generation -%}\n x\n {%- endgeneration -%}\n b", "axb"),
    ("a\n {%+ generation %} x\n {%+ endgeneration %} b", "a\n  x\n  b"),
    ("{%\n generation\n %}a{%\tendgeneration\t%}", "a"),
    (
        "{% for m in messages %}{% generation %}{{ m.role }}{{ loop.index }}{% endgeneration %}{% endfor %}",
        "user1assistant2",
    ),
    ("{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}", "21"),
    ("{% set ns = namespace(x=1) %}{% generation %}{% set ns.x = 2 %}{% endgeneration %}{{ ns.x }}", "2"),
    (
        "{% raw %}{% generation %}{{ 1 % 2 }}{% endraw %}{% generation %}{% endgeneration %}",
        "{% generation %}{{ 1 % 2 }}",
    ),
    ("{# {% generation %} #}y{{ '{% generation %}' }}", "y{% generation %}"),
    ("{%- raw -%} {% generation %} {%- endraw -%} x", "{% generation %}x"),
    ("{% generation %}{% generation %}<a>{% endgeneration %}{% endgeneration %}", "<a>"),
    ("{% macro f(x) %}{% generation %}{{ x }}{% endgeneration %}{% endmacro %}{{ f('q') }}", "q"),
    ("{% set generation = 3 %}{{ generation }}", "3"),
    ("{% for i in range(6) if i % 2 == 0 %}{{ i }}{% endfor %}", "024"),
    ("{% if (messages[0].role == 'user') != (0 % 2 == 0) %}a{% else %}b{% endif %}", "b"),
    ("{{5%2}}{{-5%3}}{{- 5 % 3 -}} x", "122x"),
    (
        "{% for k, v in {'items': {'items': 1}}.items() %}{{ k }}{% for a, b in v.items() %}={{ b }}{% endfor %}{% endfor %}",
        "items=1",
    ),
];

#[test]
fn templates_render_as_transformers_renders_them() {
    for (template, expected) in RENDERED {
        let rendered = render(template, &messages(), None).map_err(|error| error.to_string());
        assert_eq!(rendered.as_deref(), Ok(*expected), "{template}");
    }
}

#[test]
fn what_is_not_done_is_refused_by_name() {
    for (template, named) in [
        ("{{ 'a'.encode() }}", "encode"),
        ("{{ messages.append(1) }}", "append"),
        ("{{ 'ß'.casefold() }}", "`ß`"),
        ("{{ 'ⅷ'.isalpha() }}", "`ⅷ`"),
        ("{{ strftime_now('%q') }}", "`%q`"),
        ("{{ 1|tojson(compact=true) }}", "compact"),
        ("{{ undefined_thing|tojson }}", "undefined"),
        ("{{ '%y' % 1 }}", "`%y`"),
        ("{{ '%s' % (1, 2) }}", "fewer conversions"),
        ("{{ '%s %s' % 1 }}", "not enough"),
        ("{{ 5 % 0 }}", "by zero"),
        ("{{ 5 % }}", "syntax"),
        ("{% generation x %}{% endgeneration %}", "generation"),
        ("{% generation %}", "template"),
        ("{% trans %}a{% endtrans %}", "trans"),
        ("{{ 'a'|nothing }}", "nothing"),
        ("{{ nothing() }}", "nothing"),
        ("{{ raise_exception('no tools here') }}", "no tools here"),
        ("{{ 'x'.center(10 ** 12) }}", "too large"),
        ("{{ '%999999999d' % 1 }}", "too large"),
        ("{{ '{:999999999}'.format(1) }}", "too large"),
        ("{% for i in range(10000000) %}{% endfor %}", "template"),
    ] {
        let error = render(template, &messages(), None).expect_err(template);
        assert_eq!(error.code(), crate::error::ErrorCode::Tokenizer, "{template}");
        let text = error.to_string();
        assert!(text.contains(named) && !text.contains('\n'), "{template}: {text}");
    }
}

#[test]
fn messages_are_objects_with_a_role() {
    for (messages, expected) in [
        (vec![], "at least one message"),
        (vec![json!("Hi")], "messages[0]"),
        (vec![json!({"role": "user"}), json!(null)], "messages[1]"),
        (vec![json!({"content": "Hi"})], "messages[0]: expected `role`"),
        (vec![json!({"role": 5})], "messages[0]: expected `role`"),
    ] {
        let error = render("{{ messages }}", &messages, None).unwrap_err();
        assert_eq!(error.code(), crate::error::ErrorCode::InvalidArgument);
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn tools_that_are_given_are_there() {
    let tools = [json!({"type": "function", "function": {"name": "w"}})];
    let found = render(
        "{{ tools is iterable and tools|length > 0 }}{{ tools[0]|tojson }}",
        &messages(),
        Some(&tools),
    );
    assert_eq!(found.unwrap(), "True{\"type\": \"function\", \"function\": {\"name\": \"w\"}}");
    assert!(render("", &messages(), Some(&[json!(1)])).is_err());
}

#[test]
fn weeks_and_years_meet_as_in_python() {
    // Days around New Year: `%G-%V %U %W %j %u`.
    for ((year, month, day), expected) in [
        ((2020, 12, 31), "2020-53 52 52 366 4"),
        ((2021, 1, 3), "2020-53 01 00 003 7"),
        ((2021, 1, 4), "2021-01 01 01 004 1"),
        ((2024, 12, 30), "2025-01 52 53 365 1"),
        ((2027, 1, 1), "2026-53 00 00 001 5"),
        ((2000, 2, 29), "2000-09 09 09 060 2"),
    ] {
        let moment = Moment { year, month, day, ..Moment::default() };
        assert_eq!(moment.strftime("%G-%V %U %W %j %u").as_deref(), Ok(expected), "{year}-{month}-{day}");
    }
}

proptest! {
    /// Any template renders or is refused.
    #[test]
    fn no_template_breaks_it(pieces in prop::collection::vec(prop::sample::select(vec![
        "{{", "}}", "{%", "%}", "{#", "#}", "-", "+", "%", "(", ")", "[", "]", "{", "}", "\"", "'", "\\\\", "|", ".", " ", "\n", "is",
        "not", "in", "generation", "endgeneration", "raw", "endraw", "for x in messages", "endfor", "messages", "1", "2.5",
        "'%s'", "tojson", "**", "~", ",", ":", "é", "upper()", "rsplit", "set a =",
    ]), 0..24)) {
        let _ = render(&pieces.concat(), &messages(), None);
    }

    /// The rewriting of `%` keeps the order of operations.
    #[test]
    fn products_keep_their_order(numbers in prop::collection::vec(1i64..40, 2..6), signs in prop::collection::vec(0usize..4, 5)) {
        let mut flat = numbers[0].to_string();
        let mut value = numbers[0];
        for (number, sign) in numbers[1..].iter().zip(&signs) {
            flat += &format!(" {} {number}", ["%", "*", "//", "%"][*sign]);
            value = [value.rem_euclid(*number), value.saturating_mul(*number), value.div_euclid(*number), value.rem_euclid(*number)][*sign];
        }
        prop_assert_eq!(render(&format!("{{{{ 1 + {flat} }}}}"), &messages(), None).unwrap(), (1 + value).to_string());
    }
}
