//! What stands behind the question mark of a path.

use std::fmt::Display;
use std::str::FromStr;

use super::super::api::Error;
use super::malformed;

/// Parameters by name. Their values are numbers, addresses and truth values,
/// none of which needs percent-encoding.
#[derive(Debug)]
pub(super) struct Query<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Query<'a> {
    /// Reads `text`, which may name `known` parameters, each once.
    ///
    /// # Errors
    /// Another parameter, or one twice.
    pub(super) fn parse(text: Option<&'a str>, known: &[&str]) -> Result<Self, Error> {
        let mut found: Vec<(&str, &str)> = Vec::new();
        for part in text.unwrap_or_default().split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, "true"));
            if !known.contains(&name) {
                let there = match known {
                    [] => "none is known here".to_owned(),
                    known => format!("known here: {}", known.join(", ")),
                };
                return Err(malformed(format!("unknown parameter \"{name}\": {there}")));
            }
            if found.iter().any(|(other, _)| *other == name) {
                return Err(malformed(format!("\"{name}\" is there twice")));
            }
            found.push((name, value));
        }
        Ok(Self(found))
    }

    /// A parameter that may be left out.
    ///
    /// # Errors
    /// It is no `T`.
    pub(super) fn get<T>(&self, name: &str) -> Result<Option<T>, Error>
    where
        T: FromStr,
        T::Err: Display,
    {
        let value = self.0.iter().find(|(other, _)| *other == name).map(|(_, value)| value);
        value
            .map(|value| value.parse().map_err(|error| malformed(format!("\"{name}\": {error}"))))
            .transpose()
    }

    /// A truth value; false if it is left out.
    ///
    /// # Errors
    /// Neither true nor false.
    pub(super) fn flag(&self, name: &str) -> Result<bool, Error> {
        match self.0.iter().find(|(other, _)| *other == name) {
            None | Some((_, "false")) => Ok(false),
            Some((_, "true")) => Ok(true),
            Some((_, other)) => {
                Err(malformed(format!("\"{name}\" is \"{other}\", and neither true nor false")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::units::Address;

    #[test]
    fn parameters_are_read_and_others_are_refused() {
        let known = ["from", "verify"];
        let query = Query::parse(Some("from=0x10&verify"), &known).unwrap();
        assert_eq!(query.get::<Address>("from").unwrap(), Some(Address(16)));
        assert!(query.flag("verify").unwrap());
        let query = Query::parse(None, &known).unwrap();
        assert_eq!(query.get::<Address>("from").unwrap(), None);
        assert!(!query.flag("verify").unwrap());
        for (text, part) in [
            ("form=1", "\"form\""),
            ("from=1&from=2", "twice"),
            ("from=x", "\"x\" is not an address"),
            ("verify=maybe", "\"maybe\""),
        ] {
            let query = Query::parse(Some(text), &known);
            let error = query
                .and_then(|query| query.get::<Address>("from").and(query.flag("verify")))
                .unwrap_err();
            assert!(error.message.contains(part), "{}", error.message);
        }
        assert!(Query::parse(Some("a=1"), &[]).unwrap_err().message.contains("none"));
    }
}
