//! Takes named values out of an event's JSON before it leaves. Pure.
//!
//! Every byte outside of them stays as it was published: the values are found in the text and replaced
//! there, whatever keys come twice, are escaped, or lie within arrays.

use std::fmt;
use std::ops::Range;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// What stands in the place of a value.
const REDACTED: &[u8] = br#""[redacted]""#;

/// Arrays within arrays that are searched; what lies deeper is not JSON that applications write.
const ARRAYS_MAX: usize = 64;

/// The keys that lead to a value, from the outermost on. An array on the way stands for each of its
/// elements.
pub type Path = Vec<String>;

/// JSON that cannot be searched, and so must not leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it cannot be searched for what is to be redacted")]
pub struct Unsearchable;

/// Appends `json` to `to`, without the values at `paths`.
///
/// # Errors
/// When the JSON cannot be searched; `to` is unchanged then.
pub fn redact(json: &[u8], paths: &[Path], to: &mut Vec<u8>) -> Result<(), Unsearchable> {
    let text = std::str::from_utf8(json).map_err(|_| Unsearchable)?;
    let whole: &RawValue = serde_json::from_str(text).map_err(|_| Unsearchable)?;
    let mut search = Search {
        begin: text.as_ptr() as usize,
        found: Vec::new(),
    };
    let tails: Vec<&[String]> = paths.iter().map(Vec::as_slice).collect();
    search.value(whole, &tails, 0)?;
    let mut kept_to = 0;
    for Range { start, end } in search.found {
        to.extend_from_slice(&json[kept_to..start]);
        to.extend_from_slice(REDACTED);
        kept_to = end;
    }
    to.extend_from_slice(&json[kept_to..]);
    Ok(())
}

struct Search {
    /// Where the whole text lies in memory: a value's place in it is told by its own.
    begin: usize,
    /// Ascending and apart.
    found: Vec<Range<usize>>,
}

impl Search {
    /// Looks for what the rest of each path leads to from here.
    fn value(
        &mut self,
        value: &RawValue,
        tails: &[&[String]],
        arrays: usize,
    ) -> Result<(), Unsearchable> {
        let text = value.get();
        if tails.iter().any(|tail| tail.is_empty()) {
            let start = text.as_ptr() as usize - self.begin;
            self.found.push(start..start + text.len());
            return Ok(());
        }
        match text.as_bytes().first() {
            Some(b'{') => {
                let Members(members) = serde_json::from_str(text).map_err(|_| Unsearchable)?;
                for (key, value) in members {
                    let tails: Vec<&[String]> = tails
                        .iter()
                        .filter_map(|tail| tail.split_first().filter(|(first, _)| **first == key))
                        .map(|(_, rest)| rest)
                        .collect();
                    if !tails.is_empty() {
                        self.value(value, &tails, arrays)?;
                    }
                }
            }
            Some(b'[') if arrays < ARRAYS_MAX => {
                let elements: Vec<&RawValue> =
                    serde_json::from_str(text).map_err(|_| Unsearchable)?;
                for element in elements {
                    self.value(element, tails, arrays + 1)?;
                }
            }
            Some(b'[') => return Err(Unsearchable),
            _ => {}
        }
        Ok(())
    }
}

/// Every member of an object: also those of a key that comes twice.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        from.deserialize_map(Collect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redacted(json: &str, paths: &[&str]) -> Result<String, Unsearchable> {
        let paths: Vec<Path> = paths
            .iter()
            .map(|path| path.split('.').map(str::to_owned).collect())
            .collect();
        let mut to = Vec::new();
        redact(json.as_bytes(), &paths, &mut to)?;
        Ok(String::from_utf8(to).unwrap())
    }

    #[test]
    fn values_go_and_every_other_byte_stays() {
        for (json, paths, expected) in [
            (
                r#"{ "a" : 1.0, "user": {"email": "x@y", "n":1e2 } }"#,
                &["user.email"][..],
                r#"{ "a" : 1.0, "user": {"email": "[redacted]", "n":1e2 } }"#,
            ),
            // A whole object; a key of the same name elsewhere stays.
            (
                r#"{"card":{"no":[1,2]},"x":{"card":3}}"#,
                &["card"],
                r#"{"card":"[redacted]","x":{"card":3}}"#,
            ),
            // Each element of an array, arrays within arrays, and an array at the top.
            (
                r#"[{"p":[{"q":1},{"q":2,"r":3},[{"q":4}],5]}]"#,
                &["p.q"],
                r#"[{"p":[{"q":"[redacted]"},{"q":"[redacted]","r":3},[{"q":"[redacted]"}],5]}]"#,
            ),
            // A key that comes twice, and one that is escaped.
            (
                r#"{"e":1,"e":2,"\u0065":3,"E":4}"#,
                &["e"],
                r#"{"e":"[redacted]","e":"[redacted]","\u0065":"[redacted]","E":4}"#,
            ),
            // A path through another one, and one that leads nowhere.
            (
                r#"{"a":{"b":1,"c":2},"d":"\u0000\ud800"}"#,
                &["a.b", "a", "d.e", "z"],
                r#"{"a":"[redacted]","d":"\u0000\ud800"}"#,
            ),
            ("  null\n", &["a"], "  null\n"),
        ] {
            assert_eq!(redacted(json, paths).as_deref(), Ok(expected), "{json}");
        }
    }

    #[test]
    fn what_cannot_be_searched_does_not_leave() {
        let deep = format!("{}1{}", "[".repeat(100), "]".repeat(100));
        for json in ["", "{", r#"{"\ud800":1}"#, &deep] {
            assert_eq!(redacted(json, &["a"]), Err(Unsearchable), "{json}");
        }
    }

    #[test]
    fn depth_outside_of_the_path_costs_no_stack() {
        let deep = format!(
            r#"{{"a":{}1{},"b":2}}"#,
            "[".repeat(50_000),
            "]".repeat(50_000)
        );
        let found = redacted(&deep, &["b"]).unwrap();
        assert!(found.ends_with(r#""b":"[redacted]"}"#));
    }
}
