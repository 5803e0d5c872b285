//! Options of the form `key=value,key=value`, as one type for the command
//! line and for `vm.toml`.
//!
//! The text becomes a TOML table of strings and serde does the rest, so that
//! a wrong key or value gets the same answer in both places.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};

/// An option with keys.
pub trait Keyed: DeserializeOwned {
    /// Key of a first value that stands without one, as in `--memory 2G`.
    const FIRST: Option<&'static str> = None;
    /// Keys that may be given several times; their values are joined by
    /// commas, as in `cpus=0-1,cpus=4`.
    const REPEATED: &'static [&'static str] = &[];
}

/// A [`Keyed`] option that can be read from a text or from a TOML table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValues<T>(pub T);

impl<T: Keyed> FromStr for KeyValues<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut table = toml::Table::new();
        for (index, part) in text.split(',').enumerate() {
            let (key, value) = match (part.split_once('='), T::FIRST) {
                (Some(pair), _) => pair,
                (None, Some(first)) if index == 0 => (first, part),
                (None, _) => return Err(format!("\"{part}\" is not key=value")),
            };
            match table.get_mut(key) {
                None => {
                    table.insert(key.to_owned(), toml::Value::String(value.to_owned()));
                }
                Some(toml::Value::String(known)) if T::REPEATED.contains(&key) => {
                    known.push(',');
                    known.push_str(value);
                }
                Some(_) => return Err(format!("{key}= is given twice")),
            }
        }
        T::deserialize(table).map(Self).map_err(|error| error.message().replace('`', "\""))
    }
}

impl<'de, T: Keyed> Deserialize<'de> for KeyValues<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrTable<T>(PhantomData<T>);

        impl<'de, T: Keyed> Visitor<'de> for TextOrTable<T> {
            type Value = KeyValues<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text of key=value parts, or a table")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(KeyValues)
            }
        }
        deserializer.deserialize_any(TextOrTable(PhantomData))
    }
}

/// A value that TOML may give as a text, a number or a truth value, and the
/// command line as a text only. `T` reads the text.
pub fn lenient<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr,
    T::Err: fmt::Display,
{
    struct Scalar<T>(PhantomData<T>);

    impl<T> Visitor<'_> for Scalar<T>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text, a number, true or false")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }

        fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<T, E> {
            self.visit_str(&number.to_string())
        }

        fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<T, E> {
            self.visit_str(&number.to_string())
        }

        fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<T, E> {
            self.visit_str(&number.to_string())
        }

        fn visit_bool<E: serde::de::Error>(self, truth: bool) -> Result<T, E> {
            self.visit_str(if truth { "on" } else { "off" })
        }
    }
    deserializer.deserialize_any(Scalar(PhantomData))
}

/// As [`lenient`], for a key that may be left out.
pub fn lenient_option<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr,
    T::Err: fmt::Display,
{
    lenient(deserializer).map(Some)
}

/// As [`lenient`], for a whole number: the standard library's error says
/// neither the value nor what would do.
pub fn number<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr,
{
    lenient::<D, Number<T>>(deserializer).map(|number| number.0)
}

/// As [`number`], for a key that may be left out.
pub fn number_option<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr,
{
    number(deserializer).map(Some)
}

struct Number<T>(T);

impl<T: FromStr> FromStr for Number<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |_| {
            format!("\"{text}\" is not a whole number from 0 that fits {} bits", 8 * size_of::<T>())
        };
        text.parse().map(Self).map_err(bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize, Debug, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[serde(deserialize_with = "lenient")]
        size: u32,
        #[serde(default)]
        cpus: String,
    }

    impl Keyed for Sample {
        const FIRST: Option<&'static str> = Some("size");
        const REPEATED: &'static [&'static str] = &["cpus"];
    }

    fn parse(text: &str) -> Result<Sample, String> {
        text.parse::<KeyValues<Sample>>().map(|parsed| parsed.0)
    }

    #[test]
    fn the_first_value_may_stand_alone_and_keys_may_repeat() {
        let expected = Sample { size: 3, cpus: "0-1,4".to_owned() };
        assert_eq!(parse("3,cpus=0-1,cpus=4"), Ok(expected));
    }

    #[test]
    fn mistakes_name_what_is_wrong() {
        assert_eq!(parse("size=1,size=2").unwrap_err(), "size= is given twice");
        assert_eq!(parse("1,fast").unwrap_err(), "\"fast\" is not key=value");
        assert!(parse("1,colour=red").unwrap_err().contains("unknown field \"colour\""));
        assert!(parse("cpus=1").unwrap_err().contains("missing field \"size\""));
    }

    #[test]
    fn toml_takes_a_text_or_a_table() {
        #[derive(Deserialize)]
        struct File {
            a: KeyValues<Sample>,
            b: KeyValues<Sample>,
        }
        let file: File = toml::from_str("a = \"7\"\nb = { size = 7 }").unwrap();
        assert_eq!(file.a, file.b);
    }
}
