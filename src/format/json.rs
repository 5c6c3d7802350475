//! Deserializes small JSON files: options, configurations, records.
//!
//! One reader replaces `serde_json`'s three (text, value, reference to a value). Each of those is compiled again for
//! every structure, with a second code path for arrays that stand for structures; this cost 15 kB of the WebAssembly
//! module. Here a structure is always an object.
//!
//! Not for headers of weight files: those are large, and duplicate keys in them must be detected.

use super::quoted;
use serde::de::value::StrDeserializer;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_json::{Error, Number, Value, map};
use std::slice;

/// Reads JSON text.
///
/// # Errors
/// As [`read`], and for invalid JSON, with the line and column.
pub fn parse<T: for<'de> Deserialize<'de>>(text: &[u8]) -> Result<T, Error> {
    read(&value(text)?)
}

/// Parses JSON text as Python's `json` writes it, with the numbers `NaN`, `Infinity` and `-Infinity`, which JSON does
/// not have. They become strings of that name, so that a reader that expects a number names them in its error.
///
/// # Errors
/// For invalid JSON, with the line and column.
pub fn value(text: &[u8]) -> Result<Value, Error> {
    serde_json::from_slice(text).or_else(|error| match without_python_numbers(text) {
        Some(text) => serde_json::from_slice(&text),
        None => Err(error),
    })
}

/// The text with quotes around Python's non-JSON numbers; `None` if there are none.
fn without_python_numbers(text: &[u8]) -> Option<Vec<u8>> {
    let mut changed = Vec::with_capacity(text.len() + 16);
    let mut rest = text;
    let (mut in_string, mut found) = (false, false);
    while let Some((&byte, after)) = rest.split_first() {
        let number = [&b"-Infinity"[..], b"Infinity", b"NaN"].into_iter().find(|name| rest.starts_with(name));
        if let Some(name) = number.filter(|_| !in_string) {
            changed.push(b'"');
            changed.extend_from_slice(name);
            changed.push(b'"');
            rest = &rest[name.len()..];
            found = true;
            continue;
        }
        changed.push(byte);
        rest = after;
        match byte {
            b'"' => in_string = !in_string,
            // An escaped quote does not end the string.
            b'\\' if in_string => {
                let escaped = after.first().copied();
                changed.extend(escaped);
                rest = after.get(1..).unwrap_or_default();
            }
            _ => {}
        }
    }
    found.then_some(changed)
}

/// Reads a value.
///
/// # Errors
/// States what was expected and what was found, prefixed by the keys that lead there.
pub fn read<'de, T: Deserialize<'de>>(value: &'de Value) -> Result<T, Error> {
    T::deserialize(Reader(value))
}

#[derive(Clone, Copy)]
struct Reader<'de>(&'de Value);

impl Reader<'_> {
    fn refuse(self, visitor: &dyn serde::de::Expected) -> Error {
        let found = match self.0 {
            Value::Null => Unexpected::Unit,
            Value::Bool(value) => Unexpected::Bool(*value),
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => Unexpected::Unsigned(number),
                (None, Some(number)) => Unexpected::Signed(number),
                (None, None) => Unexpected::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(text) => Unexpected::Str(text),
            Value::Array(_) => Unexpected::Seq,
            Value::Object(_) => Unexpected::Map,
        };
        Error::invalid_type(found, visitor)
    }
}

/// Defines one deserialization method per number type.
macro_rules! numbers {
    ($convert:expr; $($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self.0 {
                Value::Number(number) => $convert(number).deserialize_any(visitor),
                _ => Err(self.refuse(&visitor)),
            }
        })*
    };
}

/// Turns a whole floating-point number into an integer: some tools write `4.0`.
fn whole(number: &Number) -> Number {
    match number.as_f64().filter(|_| number.is_f64()) {
        Some(float) if float == libm::trunc(float) && float.abs() < 9.0e15 => Number::from(float as i64),
        _ => number.clone(),
    }
}

impl<'de> Deserializer<'de> for Reader<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(number) => number.deserialize_any(visitor),
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Array(items) => elements(items, visitor),
            Value::Object(map) => visitor.visit_map(Entries { rest: map.iter(), entry: None }),
        }
    }

    numbers! {
        whole;
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
    }

    numbers! { Number::clone; deserialize_f32 deserialize_f64 }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Bool(value) => visitor.visit_bool(*value),
            _ => Err(self.refuse(&visitor)),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::String(text) => visitor.visit_borrowed_str(text),
            _ => Err(self.refuse(&visitor)),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(items) => elements(items, visitor),
            _ => Err(self.refuse(&visitor)),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Object(map) => visitor.visit_map(Entries { rest: map.iter(), entry: None }),
            _ => Err(self.refuse(&visitor)),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_map(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    /// Enums are strings in these files.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::String(name) => visitor.visit_enum(StrDeserializer::new(name)),
            _ => Err(self.refuse(&visitor)),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple tuple_struct identifier
    }
}

/// Reads all elements of an array: a pair is not read from three elements.
fn elements<'de, V: Visitor<'de>>(items: &'de [Value], visitor: V) -> Result<V::Value, Error> {
    let mut rest = Items(items.iter());
    let read = visitor.visit_seq(&mut rest)?;
    if rest.0.len() == 0 {
        Ok(read)
    } else {
        Err(Error::invalid_length(items.len(), &"fewer elements in array"))
    }
}

struct Items<'de>(slice::Iter<'de, Value>);

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        self.0.next().map(|item| seed.deserialize(Reader(item))).transpose()
    }
}

struct Entries<'de> {
    rest: map::Iter<'de>,
    /// The entry whose key was read last.
    entry: Option<(&'de str, &'de Value)>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some((key, value)) = self.rest.next() else { return Ok(None) };
        self.entry = Some((key, value));
        seed.deserialize(StrDeserializer::new(key)).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Error> {
        let (key, value) =
            self.entry.take().ok_or_else(|| Error::custom("a value was read before its key"))?;
        seed.deserialize(Reader(value)).map_err(|error| under(key, &error))
    }
}

/// Prefixes an error with its key. Separate, so that it is compiled only once.
#[cold]
fn under(key: &str, error: &Error) -> Error {
    Error::custom(format_args!("{}: {error}", quoted(key)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::BTreeMap;

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(rename_all = "lowercase")]
    enum Kind {
        #[default]
        Plain,
        Other,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(untagged)]
    enum OneOrMore {
        One(u32),
        More(Vec<u32>),
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Inner {
        count: usize,
        factor: Option<f32>,
        pair: (i64, u8),
    }

    #[derive(Debug, Deserialize, PartialEq)]
    struct Outer {
        name: String,
        #[serde(default)]
        kind: Kind,
        #[serde(default)]
        flag: bool,
        inner: Option<Inner>,
        ids: Option<OneOrMore>,
        map: Option<BTreeMap<String, f64>>,
        any: Option<Value>,
    }

    #[test]
    fn reads_what_serde_json_reads_and_refuses_what_it_refuses() {
        for value in [
            json!({"name": "a"}),
            json!({"name": "a", "more": [1, {"b": null}], "kind": "other", "flag": true}),
            json!({"name": "a", "inner": {"count": 3, "factor": 0.1, "pair": [-1, 255]}, "ids": 7}),
            json!({"name": "a", "inner": {}, "ids": [7, 8], "map": {"x": 1, "y": -0.5}, "any": {"z": []}}),
            json!({"name": "a", "inner": null, "ids": null, "map": null, "any": null}),
            json!({"name": 1}),
            json!({"name": null}),
            json!({}),
            json!(3),
            json!("a"),
            json!({"name": "a", "kind": "third"}),
            json!({"name": "a", "flag": 0}),
            json!({"name": "a", "inner": {"wrong": 1}}),
            json!({"name": "a", "inner": {"count": -1}}),
            json!({"name": "a", "inner": {"count": 1.5}}),
            json!({"name": "a", "inner": {"count": "1"}}),
            json!({"name": "a", "inner": {"factor": []}}),
            json!({"name": "a", "inner": {"pair": [1, 256]}}),
            json!({"name": "a", "inner": {"pair": [1]}}),
            json!({"name": "a", "inner": {"pair": [1, 2, 3]}}),
            json!({"name": "a", "inner": true}),
            json!({"name": "a", "ids": "7"}),
            json!({"name": "a", "map": {"x": "1"}}),
            json!({"name": "a", "map": [["x", 1]]}),
        ] {
            match (read::<Outer>(&value), Outer::deserialize(&value)) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{value}"),
                // Our messages are prefixed by the keys.
                (Err(found), Err(expected)) => {
                    assert!(found.to_string().ends_with(&expected.to_string()), "{value}: {found}");
                }
                (found, expected) => panic!("{value}: {found:?} and {expected:?}"),
            }
            let found = parse::<Outer>(value.to_string().as_bytes());
            assert_eq!(found.ok(), serde_json::from_str(&value.to_string()).ok(), "{value}");
        }
    }

    #[test]
    fn whole_numbers_may_be_written_as_floating_point() {
        let inner = |count: Value| read::<Inner>(&json!({"count": count})).map(|inner| inner.count).ok();
        assert_eq!(inner(json!(4.0)), Some(4));
        for refused in [json!(4.5), json!(-4.0), json!(1e300), json!("4.0")] {
            assert_eq!(inner(refused.clone()), None, "{refused}");
        }
    }

    #[test]
    fn python_s_numbers_that_json_does_not_have_are_read_as_texts() {
        for (text, expected) in [
            (r#"{"a": NaN}"#, json!({"a": "NaN"})),
            (
                r#"[-Infinity, Infinity, NaN, "NaN", "\\", "\"NaN"]"#,
                json!(["-Infinity", "Infinity", "NaN", "NaN", "\\", "\"NaN"]),
            ),
            (r#"{"NaN": [1, -2.5e3]}"#, json!({"NaN": [1, -2500.0]})),
        ] {
            assert_eq!(value(text.as_bytes()).unwrap(), expected, "{text}");
        }
        for broken in ["", "{", "NaNa", "[Infinity", "\"NaN", "{\"a\": NaN \"b\"}", "\"\\"] {
            assert!(value(broken.as_bytes()).is_err(), "{broken}");
        }
        assert!(parse::<Inner>(b"{\"factor\": NaN}").unwrap_err().to_string().contains("NaN"));
    }

    #[test]
    fn structures_are_objects_and_enums_are_names() {
        for (value, expected) in [
            (
                json!({"name": "a", "inner": [1, 0.5, [1, 2]]}),
                "`inner`: invalid type: sequence, expected struct Inner",
            ),
            (json!({"name": "a", "kind": 3}), "`kind`: invalid type: integer `3`, expected enum Kind"),
            (json!({"name": "a", "kind": {"plain": null}}), "`kind`: invalid type: map, expected enum Kind"),
            (
                json!({"name": "a", "inner": {"count": "1"}}),
                "`inner`: `count`: invalid type: string \"1\", expected usize",
            ),
        ] {
            assert_eq!(read::<Outer>(&value).unwrap_err().to_string(), expected);
        }
    }
}
