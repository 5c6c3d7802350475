//! Reading of options, and messages about mistakes.

use super::*;
use serde_json::json;

named! {
    /// A colour
    #[derive(Default)]
    enum Colour {
        /// As blood
        #[default]
        Red = "red",
        /// As the sky
        Blue = "light-blue",
    }
}

options! {
    /// Options inside others.
    struct Inner {
        /// A share
        pub some_share: f32 = 0.5, within Bounds::above(0.0).up_to(1.0);
    }
}

options! {
    /// Options that stand beside others.
    struct Beside {
        /// A number
        pub far_number: usize = 7, within Bounds::from(2.0);
    }
}

options! {
    /// Everything.
    struct All {
        /// Texts
        #[form(As("text"))]
        pub texts: Vec<String> = Vec::new(), required = true;
        /// A flag
        pub turned_on: bool = false;
        /// A colour
        pub colour: Option<Colour> = None;
        /// Others
        pub inner: Inner = Inner::default();
        /// Beside it.
        #[form(Group)]
        pub beside: Beside = Beside::default();
        /// Bytes
        pub room: Option<Bytes> = None;
        /// Tokens
        pub tokens: Vec<u32> = Vec::new();
        /// One text or several
        pub said: Texts = Texts::default();
    }
}

#[test]
fn results_are_spelled_as_javascript_has_names() {
    let value = json!({
        "bits_per_weight": 4.5,
        "klp": [{ "kl_p99": null, "top1_agreement": 1 }],
        "parameters": { "group_size": 32 },
        "linear_formats": { "q8_0": 7 },
        "a_text": ["some_text", "\"some_text\": 1", "x\": 1", ""],
        "an_empty": {},
    });
    let text = camel_case_keys(&serde_json::to_string_pretty(&value).unwrap());
    let expected = json!({
        "bitsPerWeight": 4.5,
        "klp": [{ "klP99": null, "top1Agreement": 1 }],
        "parameters": { "group_size": 32 },
        "linearFormats": { "q8_0": 7 },
        "aText": ["some_text", "\"some_text\": 1", "x\": 1", ""],
        "anEmpty": {},
    });
    assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), expected);
}

#[test]
fn options_are_set_one_by_one() {
    let set = All::default()
        .texts(["a", "b"])
        .turned_on(true)
        .colour(Colour::Blue)
        .inner(Inner::default().some_share(0.25))
        .beside(Beside::default().far_number(3))
        .room(1 << 20)
        .tokens(vec![1])
        .said("much");
    let written = All {
        texts: vec!["a".to_owned(), "b".to_owned()],
        turned_on: true,
        colour: Some(Colour::Blue),
        inner: Inner { some_share: 0.25 },
        beside: Beside { far_number: 3 },
        room: Some(Bytes(1 << 20)),
        tokens: vec![1],
        said: Texts("much".to_owned()),
    };
    assert_eq!(set, written);
    assert_eq!(written.clone().colour(None).colour, None);
}

#[test]
fn an_object_is_read() {
    let given = json!({
        "texts": ["a"], "turnedOn": true, "colour": "light-blue", "inner": {"someShare": 1}, "farNumber": 3.0,
        "room": 5_000_000_000_u64, "tokens": [1, 2], "said": ["b", "c"],
    });
    let expected = All {
        texts: vec!["a".to_owned()],
        turned_on: true,
        colour: Some(Colour::Blue),
        inner: Inner { some_share: 1.0 },
        beside: Beside { far_number: 3 },
        room: Some(Bytes(5_000_000_000)),
        tokens: vec![1, 2],
        said: Texts("b\n\nc".to_owned()),
    };
    assert_eq!(read::<All>(&given).unwrap(), expected);
    let nothing = json!({"texts": ["a"], "colour": null, "turnedOn": null, "inner": {}, "said": "b"});
    let expected = All { texts: vec!["a".to_owned()], said: Texts("b".to_owned()), ..All::default() };
    assert_eq!(read::<All>(&nothing).unwrap(), expected);
}

#[test]
fn mistakes_are_named_as_they_are_spelled() {
    let cases = [
        (json!([]), "expected an object of options but found a list"),
        (json!({}), "`texts`: it has to be given"),
        (json!({"texts": []}), "`texts`: it has to be given"),
        (json!({"texts": "a"}), "`texts`: expected a list of texts but found \"a\""),
        (json!({"texts": [1]}), "`texts`: expected a text but found 1"),
        (
            json!({"far_number": 1}),
            "unknown field \"far_number\", expected one of texts, turnedOn, colour, inner, farNumber",
        ),
        (json!({"beside": {}}), "unknown field \"beside\""),
        (json!({"inner": {"someshare": 1}}), "inner: unknown field \"someshare\", expected one of someShare"),
        (json!({"turnedOn": 1}), "`turnedOn`: expected true or false but found 1"),
        (json!({"colour": "green"}), "`colour`: expected one of red, light-blue but found \"green\""),
        (json!({"colour": 3}), "`colour`: expected one of red, light-blue but found 3"),
        (json!({"farNumber": -3}), "`farNumber`: expected a whole number of at least 0 but found -3"),
        (json!({"farNumber": 2.5}), "`farNumber`: expected a whole number of at least 0 but found 2.5"),
        (json!({"texts": ["a"], "farNumber": 1}), "`farNumber`: expected a number of at least 2 but found 1"),
        (
            json!({"texts": ["a"], "inner": {"someShare": 0}}),
            "inner: `someShare`: expected a number above 0 and at most 1 but found 0",
        ),
        (json!({"inner": 1}), "inner: expected an object of options but found 1"),
        (json!({"tokens": [4_294_967_296_u64]}), "`tokens`: expected a smaller number but found 4294967296"),
        (json!({"said": 1}), "`said`: expected a text or a list of texts but found 1"),
    ];
    for (given, expected) in cases {
        let error = read::<All>(&given).unwrap_err();
        assert!(error.to_string().starts_with(expected), "{given}: {error}");
    }
}

#[test]
fn who_sets_the_fields_reads_their_own_names() {
    let options =
        All { texts: vec!["a".to_owned()], inner: Inner { some_share: f32::NAN }, ..All::default() };
    let error = options.check().unwrap_err().to_string();
    assert_eq!(error, "inner: `some_share`: expected a number above 0 and at most 1 but found NaN");
    assert!(All { inner: Inner::default(), ..options }.check().is_ok());
}

#[test]
fn options_are_described_with_their_defaults() {
    let specs = All::specs();
    let names: Vec<&str> = specs.iter().map(|spec| spec.declared.name).collect();
    assert_eq!(names, ["texts", "turned_on", "colour", "inner", "far_number", "room", "tokens", "said"]);
    assert_eq!(specs[1].default, Some(json!(false)));
    assert_eq!(specs[4].default, Some(json!(7)));
    // Not the 32-bit number in 64 bits.
    let Kind::Object { options, .. } = &specs[3].kind else { panic!("{:?}", specs[3]) };
    assert_eq!(options[0].default, Some(json!(0.5)));
    assert_eq!(0.05f32.show(), Some(json!(0.05)));
}

#[test]
fn every_name_is_read_back() {
    for (value, name, _) in Colour::VALUES {
        assert_eq!(
            (find::<Colour>(name), value.name(), value.to_string()),
            (Ok(*value), *name, (*name).to_owned())
        );
        let json = serde_json::to_string(value).unwrap();
        assert_eq!(serde_json::from_str::<Colour>(&json).unwrap(), *value);
    }
    let error = serde_json::from_str::<Colour>("\"RED\"").unwrap_err().to_string();
    assert!(error.starts_with("expected one of red, light-blue but found \"RED\""), "{error}");
}
